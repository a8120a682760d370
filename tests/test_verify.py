"""``ppxcls verify``: repeats steps of a run, compares the bits, and says why they differ."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import ppxcls
from ppxcls.build import verification
from ppxcls.checkpoints.files import AVERAGE, WEIGHTS
from ppxcls.checkpoints.progress import Progress
from ppxcls.cli import parser_for
from ppxcls.cli.verify import run_verify
from ppxcls.system import machine_facts
from ppxcls.train.differing_facts import differing_facts
from ppxcls.train.repetition import Repetition
from ppxcls.train.starts import append_start, read_start, state_digest
from tests.conftest import SMALL_NETWORK, small_config, write_images

EMA = {"use_ema": True, "decay": 0.5}


def fingerprint(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of 3 epochs of 3 steps, and its images. Tests must not change it."""
    folder = tmp_path_factory.mktemp("trained")
    for name, count in (("train", 12), ("val", 7)):
        write_images(folder, count, name=name)
    keys = {
        "Arch": {"name": "SmallNetwork"},
        "Global.plugins": [SMALL_NETWORK],
        "Global.epochs": 3,
        "EMA": EMA,
    }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(small_config(folder, folder / "output", **keys)))
    ppxcls.build_trainer(ppxcls.load_config(file)).fit()
    return folder


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run's folder, whose images are those of the original."""
    return Path(shutil.copytree(trained / "output/SmallNetwork", tmp_path / "copy/SmallNetwork"))


@pytest.mark.parametrize(
    ("steps", "from_epoch", "count", "content"),
    [
        (None, None, 3, "18 figures in 3 log lines and the weights of latest"),
        (2, 1, 2, "12 figures in 2 log lines"),
        (0, 1, 3, "18 figures in 3 log lines and the weights of epoch_1"),
        (9, 2, 3, "18 figures in 3 log lines and the weights of epoch_2"),
    ],
)
def test_a_run_repeats_to_the_bit(
    steps: int | None, from_epoch: int | None, count: int, content: str, trained: Path
) -> None:
    run = trained / "output/SmallNetwork"
    before = fingerprint(run)
    result = ppxcls.verify(run, steps, from_epoch=from_epoch)
    assert result.is_same
    assert (result.steps, list(result.differences), list(result.causes)) == (count, [], [])
    assert result.summary == f"same bits: {count} steps from epoch {from_epoch or 3}, iteration 0: {content}"
    assert fingerprint(run) == before, "nothing is written"


def test_the_middle_of_an_epoch_and_accumulated_gradients(small: Callable[..., Path], tmp_path: Path) -> None:
    """The sums of the epoch so far come from the checkpoint."""
    keys = {"Global.save_interval_steps": 1, "Global.samples_per_step": 8, "Global.keep_last": 9}
    file = small(**{**keys, "DataLoader.Train.sampler.batch_size": 2, "Global.print_batch_step": 4})
    ppxcls.build_trainer(ppxcls.load_config(file)).fit()
    run = tmp_path / "output/SmallNetwork"
    result = ppxcls.verify(run)
    assert result.is_same
    assert result.summary.startswith(
        "same bits: 1 steps from epoch 1, iteration 4: 12 figures in 2 log lines"
    )
    with pytest.raises(ppxcls.VerificationError, match="epochs to start from: 1$"):
        ppxcls.verify(run, from_epoch=2)


def test_by_how_much_the_bits_differ(trained: Path) -> None:
    result = ppxcls.verify(
        trained / "output/SmallNetwork", from_epoch=2, overrides=["Optimizer.lr.learning_rate=0.03"]
    )
    assert not result.is_same
    first = result.differences[0]
    assert first.startswith("epoch 2, iteration 0: lr 0.015")
    assert first.endswith("which is +5.0e-01 of it")
    assert [text.split(" weights")[0] for text in result.differences if "epoch_2" in text] == [
        "epoch_2: 8 of 8 averages of the",
        "epoch_2: 8 of 8",
    ]
    assert list(result.causes) == ["-o Optimizer.lr.learning_rate=0.03"]


def test_other_images_are_named_as_the_cause(copied: Path, trained: Path, tmp_path: Path) -> None:
    """The list is the same. The repetition starts elsewhere than the run, whose first images it compares."""
    shutil.copytree(trained / "train", tmp_path / "train")
    shutil.copy(trained / "train_list.txt", tmp_path)
    for file in (tmp_path / "train").iterdir():
        write_images(tmp_path / "others", 1, seed=5)
        shutil.copy(tmp_path / "others/train/0000.png", file)
    root = f"DataLoader.Train.dataset.image_root={tmp_path}"
    result = ppxcls.verify(copied, overrides=[root])
    assert not result.is_same
    assert list(result.causes) == [
        "files of the first images: not the same content",
        "pixels of the first images, after decoding and augmentation: not the same content",
        f"-o {root}",
    ]
    same_images = ppxcls.verify(copied, 1, overrides=[f"DataLoader.Train.dataset.image_root={trained}"])
    assert same_images.is_same
    assert len(same_images.causes) == 1, "the override is named, though it has no effect"


def test_another_machine_is_named_as_the_cause(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [json.loads(line) for line in (copied / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line["loss"] = float(np.nextafter(line["loss"], 9))  # the last bit
    (copied / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    facts = machine_facts.machine_facts()
    words = {*facts["instructions"].split(), "avx9"} if "instructions" in facts else set()
    changed = {**facts, "numpy": "0.1", "instructions": " ".join(words), "threads": "99", "code": "0"}
    monkeypatch.setattr("ppxcls.train.starts.machine_facts", lambda: {**facts, **changed})
    result = ppxcls.verify(copied, 1)
    assert [text.split(",")[1].split()[0] for text in result.differences] == ["iteration"]
    assert "loss" in result.differences[0]
    causes = " | ".join(result.causes)
    assert f"numpy: {facts['numpy']} in the run, 0.1 here" in causes
    assert "code of ppxcls: not the same content" in causes
    assert f"threads: {facts['threads']} in the run, 99 here" in causes
    if words:
        assert "instructions of the processor: avx9 here only" in causes
    assert "numpy" in result.summary


def test_a_run_of_an_older_version(copied: Path) -> None:
    (copied / "starts.jsonl").unlink()
    result = ppxcls.verify(copied, 1)
    assert result.is_same
    assert list(result.causes) == ["not known: the run has no starts.jsonl"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("metrics.jsonl", {}, "metrics.jsonl: No such file or directory; the run's figures are needed"),
        ("*.json", {}, "there is no checkpoint with the facts of the run"),
        ("*.json", {"from_epoch": 1}, "there is no checkpoint with the facts of the run"),
        (None, {"from_epoch": 9}, "epochs to start from: 1, 2, 3"),
        (None, {"steps": -1}, "--steps: expected at least 0, received -1"),
        (
            None,
            {"overrides": ["DataLoader.Train.sampler.batch_size=3"]},
            "trained on 4 images a step in 1 processes, and here these are 3 in 1",
        ),
    ],
)
def test_what_a_run_lacks_is_said(
    name: str | None, options: dict[str, Any], message: str, copied: Path
) -> None:
    for file in copied.glob(name) if name else []:
        file.unlink()
    with pytest.raises(ppxcls.VerificationError, match=message):
        ppxcls.verify(copied, **options)


def test_another_list_cannot_be_compared(copied: Path, trained: Path, tmp_path: Path) -> None:
    lines = (trained / "train_list.txt").read_text().splitlines()[1:]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    with pytest.raises(ppxcls.VerificationError, match="list had 12 images, and here it has 11"):
        ppxcls.verify(copied, overrides=[f"DataLoader.Train.dataset.cls_label_path={tmp_path}/list.txt"])


def test_steps_without_a_log_line_prove_nothing(copied: Path) -> None:
    lines = (copied / "metrics.jsonl").read_text().splitlines()
    (copied / "metrics.jsonl").write_text("\n".join(text for text in lines if '"iter": 2' in text))
    with pytest.raises(ppxcls.VerificationError, match="lies within 1 steps of its epoch 3, iteration 0"):
        ppxcls.verify(copied, 1)
    assert ppxcls.verify(copied).summary.startswith("same bits: 3 steps from epoch 3")


@pytest.mark.parametrize(
    ("words", "code", "output", "errors"),
    [
        (["--steps", "1"], 0, "same bits: 1 steps from epoch 3, iteration 0: ", ""),
        (
            ["--steps", "1", "-o", "Optimizer.lr.learning_rate=0.03"],
            1,
            "different: 1 steps from epoch 3, iteration 0: ",
            "",
        ),
        (["--from", "7"], 2, "", "can't be compared: --from 7: this epoch has no checkpoint at its start"),
        (["-o", "DataLoader.Train.dataset.image_root=/"], 2, "", "can't be compared: /train/00"),
        (["-o", "Arch.widht=3"], 2, "", "can't be compared: "),
    ],
)
def test_exit_codes(
    words: list[str],
    code: int,
    output: str,
    errors: str,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["ppxcls verify", str(trained / "output/SmallNetwork"), *words])
    assert run_verify(parser_for("verify")) == code
    printed = capsys.readouterr()
    assert (printed.out.splitlines() or [""])[-1].startswith(output)
    assert printed.err.startswith(errors)
    assert len(printed.err.splitlines()) == bool(errors)


def test_a_loss_that_is_not_finite_here_is_a_difference(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(trained / "output/SmallNetwork"), "-o", "Optimizer.lr.learning_rate=1e30"]
    monkeypatch.setattr("sys.argv", ["ppxcls verify", *words])
    assert run_verify(parser_for("verify")) == 1
    assert capsys.readouterr().err.startswith("different: ")


def test_the_plugin_of_a_stranger_does_not_run(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "stranger.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    config = yaml.safe_load((copied / "config.yaml").read_text())
    config["Global"]["plugins"].append(str(tmp_path / "stranger.py"))
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ppxcls.ConfigError, match="--trust"):
        ppxcls.verify(copied)
    assert not (tmp_path / "mark").exists()


def test_a_run_records_each_of_its_starts(small: Callable[..., Path], tmp_path: Path) -> None:
    """A start at a step that is repeated later is removed."""
    file = small(**{"Global.epochs": 2})
    ppxcls.build_trainer(ppxcls.load_config(file)).fit()
    run = tmp_path / "output/SmallNetwork"
    overrides = ["Global.epochs=3", f"Global.checkpoints={run}/epoch_2"]
    for _ in range(2):
        ppxcls.build_trainer(ppxcls.load_config(file, overrides)).fit()
    starts = [json.loads(line) for line in (run / "starts.jsonl").read_text().splitlines()]
    assert [(start["epoch"], start["iter"], start["step"]) for start in starts] == [(1, 0, 0), (3, 0, 6)]
    assert starts[0]["files"] != starts[1]["files"], "each epoch has its own order"
    assert starts[0]["start_weights"] != starts[1]["start_weights"]
    assert ppxcls.verify(run).is_same
    with pytest.raises(ppxcls.VerificationError, match="now: epochs: 2 in the run, 3 here; give"):
        ppxcls.verify(run, from_epoch=1)
    assert ppxcls.verify(run, from_epoch=1, overrides=["Global.epochs=2"]).is_same
    lines = (run / "starts.jsonl").read_text().replace(starts[1]["optimizer"], "0" * 64)
    (run / "starts.jsonl").write_text(lines)
    with pytest.raises(ppxcls.VerificationError, match="settings of the optimizer: not the same content"):
        ppxcls.verify(run)


def test_a_full_disk_for_temporary_files_is_said(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ppxcls.train.run.append_start", full)
    with pytest.raises(ppxcls.VerificationError, match="starts.jsonl can't be written; set TMPDIR"):
        ppxcls.verify(trained / "output/SmallNetwork", 1)


@pytest.mark.parametrize(
    ("place", "expected"), [((1, 0), "a"), ((1, 2), "a"), ((2, 3), "b"), ((2, 0), "a"), ((9, 9), "b")]
)
def test_the_last_start_before_a_place(place: tuple[int, int], expected: str, tmp_path: Path) -> None:
    file = tmp_path / "starts.jsonl"
    append_start(file, Progress(), {"numpy": "a"})
    append_start(file, Progress(epoch=2, batches_done=3, step=5), {"numpy": "b"})
    start = read_start(file, *place)
    assert start
    assert start[1]["numpy"] == expected


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b'{"epoch": "1", "iter": 0}', b'{"epoch": 1}', b"\xff", b"[" * 9999]
)
def test_hostile_records_of_starts(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "starts.jsonl"
    assert read_start(file, 1, 0) is None
    file.write_bytes(content + b'\n{"epoch": 1, "iter": 0, "numpy": 5, "x": "' + b"y" * 20000 + b'"}\n')
    assert read_start(file, 1, 0) == ((1, 0), {})


def test_facts_are_compared_in_words() -> None:
    recorded = {"numpy": "1", "instructions": "avx fma", "variables": "A=1 B=2", "code": "x", "gone": "z"}
    here = {"numpy": "1", "instructions": "avx avx2", "variables": "A=1", "code": "y", "new": "z"}
    assert differing_facts(recorded, here) == [
        "code of ppxcls: not the same content",
        "instructions of the processor: fma in the run only, avx2 here only",
        "environment variables: B=2 in the run only",
        "gone: z in the run, none here",
    ]
    many = {"instructions": " ".join(f"avx{i}" for i in range(20))}
    assert differing_facts(many, {"instructions": ""})[0].endswith("and 8 more in the run only")


def test_weights_are_compared_by_element() -> None:
    state = {"w": np.array([1.0, 2.0], np.float32), "b": np.zeros(3, np.float32), "names": {}}
    near = {**state, "w": np.array([1.0, 2.25], np.float32)}
    result = Repetition()
    result.compare_weights("same", {WEIGHTS: state}, {WEIGHTS: state})
    assert (result.differences, result.checkpoints) == ([], ["same"])
    result.compare_weights("epoch_1", {WEIGHTS: near, AVERAGE: state}, {WEIGHTS: state, AVERAGE: {}})
    assert result.differences == [
        "epoch_1: 2 of 2 averages of the weights differ, by up to inf (w)",
        "epoch_1: 1 of 2 weights differ, by up to 0.25 (w)",
    ]


def test_digests_of_states_see_types_and_shapes() -> None:
    array = np.zeros((2, 3), np.float32)
    digests = {state_digest({"w": value}) for value in (array, array.T, array.astype("float64"), array + 1)}
    assert len(digests) == 4
    assert state_digest({"a": array, "b": array}) == state_digest({"b": array, "a": array})


def test_the_log_is_as_before(trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The log of the repetition is hidden, and later log lines are not."""
    verification.verify(trained / "output/SmallNetwork", 1)
    assert "Resumed" not in capfd.readouterr().out
    ppxcls.system.logs.logger.warning("still there")
    assert "still there" in "".join(capfd.readouterr())
