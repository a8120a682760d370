"""Unreadable samples are left out, counted and listed, with one and with two processes.

Too many of them stop the run.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import ppxcls
from ppxcls.build.data import build_dataset
from ppxcls.data.bad_samples import BadSamples
from ppxcls.data.errors import DataError
from tests.conftest import run_tool, write_images


def bad_data(tmp_path: Path, bad: list[int], count: int = 12) -> Path:
    folder = write_images(tmp_path / "bad", count)
    write_images(folder, 7, seed=1, name="val")
    for index in bad:
        (folder / f"train/{index:04d}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


def skipping(small: Callable[..., Path], folder: Path, **keys: Any) -> Path:
    roots = {f"DataLoader.{m}.dataset.image_root": str(folder) for m in ("Train", "Eval")}
    for mode, name in (("Train", "train"), ("Eval", "val")):
        roots[f"DataLoader.{mode}.dataset.cls_label_path"] = str(folder / f"{name}_list.txt")
    return small(**{**roots, "Global.on_bad_image": "skip", "Global.max_bad_share": 0.3, **keys})


def test_bad_samples_are_left_out_counted_and_listed(small: Callable[..., Path], tmp_path: Path) -> None:
    folder = bad_data(tmp_path, [2, 7])
    (folder / "val/0003.png").write_bytes(b"")
    results = []
    for workers in (0, 2):
        loader = {f"DataLoader.{m}.loader": {"num_workers": workers} for m in ("Train", "Eval")}
        keys = {"Global.output_dir": str(tmp_path / f"output{workers}"), "Global.epochs": 2, **loader}
        trainer = ppxcls.build_trainer(ppxcls.load_config(skipping(small, folder, **keys)))
        trainer.fit()
        results.append({k: v.numpy().tobytes() for k, v in trainer.learner.network.state_dict().items()})
        listed = (trainer.output_dir / "bad_samples.txt").read_text().splitlines()
        assert sorted(line.split("\t")[:2] for line in listed) == [
            [f"{folder}/train_list.txt:3", "train/0002.png"],
            [f"{folder}/train_list.txt:8", "train/0007.png"],
            [f"{folder}/val_list.txt:4", "val/0003.png"],
        ]
        assert any(line.endswith("the file is empty") for line in listed)
        log = (trainer.output_dir / "train.log").read_text()
        assert log.count("samples: 10, left out as unreadable: 2") == 2
        assert log.count("samples: 6, left out as unreadable: 1") == 2
        rows = [json.loads(line) for line in (trainer.output_dir / "metrics.jsonl").read_text().splitlines()]
        assert {(r["num_samples"], r["bad_samples"]) for r in rows if r["kind"] == "eval"} == {(6, 1)}
    assert results[0] == results[1], "deterministic for any number of threads"
    file = skipping(small, folder)
    result = run_tool(
        "tools/eval.py", "-c", file, "-o", f"Global.pretrained_model={tmp_path}/output0/SmallNetwork/latest"
    )
    assert result.returncode == 0, result.stderr
    assert "samples: 6, left out as unreadable: 1 (written to" in result.stdout.splitlines()[-1]


def test_bad_samples_on_two_processes(small: Callable[..., Path], tmp_path: Path) -> None:
    folder = bad_data(tmp_path, [4, 5, 6, 7])  # all of rank 1's first batch
    keys = {
        "Global.max_bad_share": 0.5,
        "DataLoader.Train.sampler.shuffle": False,
        "Global.eval_during_train": False,
    }
    result = run_tool(
        "tools/train.py", "-c", skipping(small, folder, **keys), processes=2, log_dir=tmp_path / "log"
    )
    logs = "".join(f.read_text() for f in (tmp_path / "log").glob("workerlog.*"))
    assert result.returncode != 0
    assert "rank 1: error: no sample of the first batch can be read" in logs
    keys["DataLoader.Train.sampler.shuffle"] = True
    result = run_tool(
        "tools/train.py", "-c", skipping(small, folder, **keys), processes=2, log_dir=tmp_path / "log"
    )
    assert result.returncode == 0, result.stderr + result.stdout
    assert "samples: 8, left out as unreadable: 4" in (tmp_path / "output/SmallNetwork/train.log").read_text()
    assert len((tmp_path / "output/SmallNetwork/bad_samples.txt").read_text().splitlines()) == 4


def test_too_many_bad_samples_stop_the_run(small: Callable[..., Path], tmp_path: Path) -> None:
    folder = bad_data(tmp_path, [1, 2, 3, 4])
    trainer = ppxcls.build_trainer(ppxcls.load_config(skipping(small, folder)))
    with pytest.raises(
        DataError,
        match=r"4 of 12 samples of .*train_list.txt can't be read, more than Global.max_bad_share = 0.3",
    ):
        trainer.fit()


@pytest.mark.parametrize(
    ("bad", "share", "is_allowed"),
    [
        ([3], 0.001, True),
        ([3, 5], 0.001, False),
        ([3], 0, False),
        ([3, 5], 0.17, True),
        ([3, 5], 0.16, False),
    ],
)
def test_one_bad_sample_is_always_allowed(
    small: Callable[..., Path], tmp_path: Path, bad: list[int], share: float, *, is_allowed: bool
) -> None:
    """12 samples. A fraction of 0 allows none."""
    config = ppxcls.load_config(skipping(small, bad_data(tmp_path, bad), **{"Global.max_bad_share": share}))
    dataset = build_dataset(config, "Train", None)
    samples = BadSamples(tmp_path / "bad_samples.txt", dataset, config.Global.max_bad_share)
    for index in bad[:-1]:
        samples.add(index, DataError("damaged"))
    with contextlib.nullcontext() if is_allowed else pytest.raises(DataError, match="max_bad_share"):
        samples.add(bad[-1], DataError("damaged"))


def test_a_new_run_lists_its_own_bad_samples(small: Callable[..., Path], tmp_path: Path) -> None:
    folder = bad_data(tmp_path, [2])
    file = skipping(small, folder)
    for _ in range(2):
        ppxcls.build_trainer(ppxcls.load_config(file)).fit()
    listed = tmp_path / "output/SmallNetwork/bad_samples.txt"
    assert len(listed.read_text().splitlines()) == 1
    assert (listed.parent / "earlier_1/bad_samples.txt").read_text() == listed.read_text()
    assert yaml.safe_load((listed.parent / "config.yaml").read_text())["Global"]["on_bad_image"] == "skip"
