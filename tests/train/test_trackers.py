"""TensorBoard's curves, and the documentation's trackers with the real libraries."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ppxcls
from ppxcls.checkpoints.progress import Progress
from ppxcls.config.trust import read_code, record_trust
from ppxcls.system.logs import set_up_logging
from ppxcls.train.tensorboard_tracker import TensorBoard
from tests.conftest import ROOT, SMALL_NETWORK

EXAMPLES = ROOT / "docs/examples"


def train(file: Path, *overrides: str) -> Path:
    trainer = ppxcls.build_trainer(ppxcls.load_config(file, list(overrides)))
    trainer.fit()
    return trainer.output_dir


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def curves(folder: Path) -> Any:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator
    found = accumulator(str(folder), size_guidance={"scalars": 0})
    return found.Reload()


def test_tensorboard_shows_what_the_lines_say(small: Callable[..., Path]) -> None:
    """Also after a run was resumed from an earlier step: each point appears once."""
    file = small(
        **{
            "Global.epochs": 2,
            "Global.save_interval_steps": 1,
            "Global.keep_last": 9,
            "Global.trackers": [{"TensorBoard": {}}],
        }
    )
    folder = train(file)
    found = curves(folder / "tensorboard")
    points = {event.step: event.value for event in found.Scalars("train/loss")}
    assert points == {row["step"]: pytest.approx(row["loss"]) for row in lines(folder, "train")}
    assert [e.value for e in found.Scalars("eval/top1")] == [
        pytest.approx(row["top1"]) for row in lines(folder, "eval")
    ]
    assert "train/eta" not in found.Tags()["scalars"]
    folder = train(file, f"Global.checkpoints={folder / 'step_4'}")
    again = curves(folder / "tensorboard").Scalars("train/loss")
    assert [event.step for event in again] == sorted(points)
    assert len(list((folder / "tensorboard").iterdir())) == 2


def test_a_new_run_moves_the_curves_aside(small: Callable[..., Path]) -> None:
    file = small(**{"Global.trackers": [{"TensorBoard": {}}]})
    train(file)
    folder = train(file)
    assert len(list((folder / "tensorboard").iterdir())) == 1


def test_without_tensorboard_the_error_says_what_to_install(
    small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorboard.summary.writer.record_writer", None)
    with pytest.raises(ppxcls.ConfigError, match=r"pip install 'ppxcls\[tensorboard\]'"):
        ppxcls.build_trainer(ppxcls.load_config(small(**{"Global.trackers": [{"TensorBoard": {}}]})))


def test_curves_that_cant_be_written_dont_end_the_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    set_up_logging()
    tracker = TensorBoard(tmp_path)
    tracker.start(Progress())
    tracker._writer = tracker._make_writer(open("/dev/full", "wb"))  # noqa: SIM115  the tracker closes it
    for step in range(3):
        tracker.log("train", {"step": step}, {"loss": 1.0})
    tracker.close()
    said = capfd.readouterr()
    assert (said.out + said.err).count("the run continues without them") == 1
    assert tracker._writer is None


def with_plugin(small: Callable[..., Path], name: str, block: dict[str, Any]) -> Path:
    plugins = [SMALL_NETWORK, str(EXAMPLES / f"{name}_tracker.py")]
    record_trust([read_code(Path(plugins[1]))])
    return small(
        **{
            "Global.plugins": plugins,
            "Global.trackers": [block],
            "Global.epochs": 2,
            "Global.save_interval_steps": 1,
            "Global.keep_last": 9,
        }
    )


def test_mlflow(small: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    file = with_plugin(small, "mlflow", {"MLflow": {"experiment": "digits"}})
    folder = train(file)
    train(file, f"Global.checkpoints={folder / 'step_4'}")
    (run,) = mlflow.search_runs(experiment_names=["digits"], output_format="list")
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "train/loss")
    assert {point.step for point in history} == {row["step"] for row in lines(folder, "train")}
    assert run.data.metrics["eval/top1"] == pytest.approx(lines(folder, "eval")[-1]["top1"])


def leveldb_records(data: bytes, before: int) -> Iterator[bytes]:
    """Returns the records of a log in LevelDB's format, as written by W&B.

    The format has fragments with a header of 7 bytes, in blocks of 32 KiB.
    """
    at, parts = 0, b""
    while at + 7 <= len(data):
        left = 32768 - (at + before) % 32768
        if left < 7:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a full record, or its last fragment
            yield parts
            parts = b""


def test_wandb_offline(small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="W&B is not installed")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = train(with_plugin(small, "wandb", {"WandB": {}}))
    (file,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    seen: dict[str, list[float]] = {}
    for data in leveldb_records(file.read_bytes()[7:], 7):
        record = Record()
        record.ParseFromString(data)
        for item in record.history.item:
            seen.setdefault("/".join(item.nested_key) or item.key, []).append(json.loads(item.value_json))
    assert seen["train/loss"] == pytest.approx([row["loss"] for row in lines(folder, "train")])
