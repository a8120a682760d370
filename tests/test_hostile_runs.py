"""Folders of runs that somebody else has prepared: what is refused, and when."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ppxcls
from ppxcls.checkpoints.files import (
    read_checkpoint,
    read_state,
    remove_copied_manifest,
    write_checkpoint,
    write_copied_manifest,
    write_state,
)
from ppxcls.checkpoints.progress import Progress, read_snapshot
from ppxcls.checkpoints.run_folder import RunFolder, RunFolderError
from ppxcls.data.bad_samples import BadSamples
from ppxcls.data.dataset import ImageNetDataset
from ppxcls.data.errors import DataError
from ppxcls.fitting.progress import read_progress
from ppxcls.reports.run_files import read_metrics
from ppxcls.system.json_text import read_json
from ppxcls.train.trackers import JsonLines

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links and pipes of POSIX")
FIT: dict[str, Any] = {
    "arguments": {},
    "photographs": "a",
    "settings": {
        **{"network": "Xception41", "weights": None, "class_num": 2, "device": "cpu", "size": 71},
        **{"mean": [0.5] * 3, "std": [0.5] * 3, "batch_size": 2, "epochs": 3, "head_epochs": 0},
        **{"learning_rate": 0.1, "reasons": ["a"]},
    },
    "finished_steps": ["find_lr"],
    "yaml_digests": [],
    "folder": "/a",
}


@pytest.mark.parametrize("name", ["metrics.jsonl", "run.lock", "anything"])
def test_a_pipe_in_the_folder_of_a_run(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(RunFolderError, match=f"{name} is no regular file; remove it"):
        RunFolder(tmp_path).lock()


def test_a_run_is_not_written_into_a_folder_of_something_else(tmp_path: Path) -> None:
    victim, link = tmp_path / "victim", tmp_path / "Xception41"
    victim.mkdir()
    (victim / "config.yaml").write_text("user: me\n")
    link.symlink_to(victim)
    with pytest.raises(RunFolderError, match="Xception41 is a link to .*victim, a folder with other files"):
        RunFolder(link).lock()
    assert [file.name for file in victim.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("is_run", [False, True])
def test_a_run_may_lie_on_another_disk(tmp_path: Path, *, is_run: bool) -> None:
    disk, link = tmp_path / "disk", tmp_path / "Xception41"
    disk.mkdir()
    if is_run:
        (disk / "run.lock").touch()
    link.symlink_to(disk)
    folder = RunFolder(link)
    folder.lock()
    folder.release()
    assert (disk / "run.lock").is_file()


def test_a_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "run.lock").symlink_to("run.lock")
    with pytest.raises(OSError, match="symbolic links: '.*run.lock'"):
        RunFolder(tmp_path).lock()


def test_the_lock_of_a_copy_made_with_hard_links(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "precious").write_text("precious")
    os.link(tmp_path / "precious", tmp_path / "a/run.lock")
    folder = RunFolder(tmp_path / "a")
    folder.lock()
    folder.release()
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "a/run.lock").read_text().startswith("process ")


def test_an_evaluation_is_refused_before_it_begins(small: Callable[..., Path], tmp_path: Path) -> None:
    config = ppxcls.load_config(small())
    config.run_folder.mkdir(parents=True)
    os.mkfifo(config.run_folder / "eval.json")
    with pytest.raises(OSError, match=r"expected a file or nothing, found a pipe: '.*eval.json'"):
        ppxcls.evaluate(config)


def test_metrics_that_are_a_folder(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(OSError, match=r"it is a folder: '.*metrics.jsonl'"):
        JsonLines(tmp_path / "metrics.jsonl").start(Progress(epoch=2))


def test_bad_samples_are_not_appended_through_a_link(images: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/bad_samples.txt").symlink_to(tmp_path / "bashrc")
    samples = BadSamples(
        tmp_path / "run/bad_samples.txt", ImageNetDataset(str(images), str(images / "train_list.txt")), 0.5
    )
    with pytest.raises(OSError, match="a link out of its folder"):
        samples.add(0, DataError("$(a command)"))
    assert not (tmp_path / "bashrc").exists()


def test_parts_are_not_written_through_links(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "bashrc").write_text("precious")
    names = ("latest.pdparams.new", "latest.pdparams", "latest.json.new", "best_model.pdparams.new")
    for name in names:
        (tmp_path / "run" / name).symlink_to(tmp_path / "bashrc")
    state = {"a": np.arange(3, dtype=np.float32)}
    prefixes = [tmp_path / "run/latest", tmp_path / "run/best_model"]
    write_checkpoint(prefixes, {".pdparams": state}, manifest={"progress": {}})
    assert (tmp_path / "bashrc").read_text() == "precious"
    for prefix in prefixes:
        assert np.array_equal(read_checkpoint(prefix)[0][".pdparams"]["a"], state["a"])
    assert not any(file.is_symlink() or file.suffix == ".new" for file in (tmp_path / "run").iterdir())


def test_weights_that_are_replaced_lose_the_manifest_of_the_earlier_ones(tmp_path: Path) -> None:
    file = tmp_path / "out.pdparams"
    write_state(file, {"a": np.zeros(3, np.float32)})
    write_copied_manifest(file, {"progress": {}, "samples": 7})
    assert json.loads((tmp_path / "out.json").read_text())["samples"] == 7
    remove_copied_manifest(file)
    assert not (tmp_path / "out.json").exists()
    write_state(file, {"a": np.ones(3, np.float32)})
    assert read_state(file)["a"].tolist() == [1, 1, 1]
    (tmp_path / "out.json").write_text("{}")
    remove_copied_manifest(file)
    assert (tmp_path / "out.json").read_text() == "{}", "the file of another program"


def test_the_progress_of_fit(tmp_path: Path) -> None:
    (tmp_path / "fit.json").write_text(json.dumps(FIT))
    progress = read_progress(tmp_path, [])
    assert progress
    assert progress.settings.mean == (0.5, 0.5, 0.5)
    changes = [("finished_steps", "train"), ("yaml_digests", [1]), ("folder", "a\0b"), ("arguments", [])]
    contents = [{**FIT, key: value} for key, value in changes]
    settings = [("mean", [0.5] * 2), ("batch_size", -1), ("epochs", True), ("reasons", None)]
    contents += [{**FIT, "settings": {**FIT["settings"], key: value}} for key, value in settings]
    for content in contents:
        (tmp_path / "fit.json").write_text(json.dumps(content))
        with pytest.raises(ppxcls.DataError, match=r"fit.json is damaged: give another --output"):
            read_progress(tmp_path, [])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": NaN}', "NaN is no number of JSON"),
        (b'{"a": 1e999}', "a number is too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "an integer is too large"),
        (b'{"a": 1, "a": 2}', "a key is repeated"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 8"),
        (b'{"password": hunter2}', r"^not JSON \(Expecting value, column 14\)$"),
        (b"", "not JSON"),
    ],
)
def test_json_of_a_stranger(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_json(data)


def test_a_run_of_a_version_that_wrote_nan(tmp_path: Path) -> None:
    """Such a number is missing, in the metrics and in the manifest. It is no valid count."""
    line = '{"kind": "eval", "epoch": 1, "step": 2, "loss": NaN, "top1": -Infinity, "top5": 0.5}'
    (tmp_path / "metrics.jsonl").write_text(line + "\n")
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"kind": "eval", "epoch": 1, "step": 2, "loss": None, "top1": None, "top5": 0.5}
    ]
    (tmp_path / "metrics.jsonl").write_text(line.replace("2", "NaN") + "\n")
    with pytest.raises(ppxcls.DataError, match="expected a whole number from 0 as 'step'"):
        read_metrics(tmp_path / "metrics.jsonl")
    best = {"metric": "top1", "value": float("nan"), "epoch": 1, "loss": float("inf")}
    progress = {"best": best, "totals": {"loss": float("nan")}, "plateau": {"best": float("inf"), "bad": 1.0}}
    state = {"a": np.arange(3, dtype=np.float32)}
    parts = {".pdparams": state, ".pdopt": {"b": state["a"]}}
    write_checkpoint([tmp_path / "latest"], parts, manifest={"progress": {}})
    file = tmp_path / "latest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "progress": progress}))
    assert "NaN" in file.read_text()
    again = read_snapshot(tmp_path / "latest")[0].progress
    assert again.best == {}
    assert again.plateau == {"bad": 1.0}
    assert np.isnan(again.totals["loss"])


def test_json_of_a_windows_editor() -> None:
    assert read_json(b'\xef\xbb\xbf{"a":\r\n [1, -9223372036854775808, 0.5]}\r\n') == {
        "a": [1, -(1 << 63), 0.5]
    }
