"""TensorBoard's curves, and MLflow, W&B and SwanLab: stand-ins with their signatures, and themselves if installed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import ppxcls
from ppxcls.checkpoints.progress import Progress
from ppxcls.system.logs import set_up_logging
from ppxcls.train.continued_tracker import RUN_FILE
from ppxcls.train.tensorboard_tracker import TensorBoard


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


def with_tracker(small: Callable[..., Path], block: dict[str, Any]) -> Path:
    return small(
        **{
            "Global.trackers": [block],
            "Global.epochs": 2,
            "Global.save_interval_steps": 1,
            "Global.keep_last": 9,
        }
    )


class Calls:
    """Stands in for the modules of MLflow, W&B and SwanLab, with the signatures that the trackers use.

    Runs are kept by their id, as a server does it: a list of (name, step, value).
    """

    def __init__(self) -> None:
        self.points: dict[str, list[tuple[str, int, float]]] = {}
        self.settings: dict[str, dict[str, Any]] = {}
        self.modes: list[str] = []
        self.names: list[str] = []
        self.is_open = False
        self.error: Exception | None = None

    def open(self, run_id: str | None, config: dict[str, Any]) -> str:
        assert run_id is None or run_id in self.points
        run_id = run_id or f"run{len(self.points)}"
        self.points.setdefault(run_id, [])
        self.settings.setdefault(run_id, config)
        self.is_open = True
        return run_id

    def add(self, run_id: str, values: dict[str, float], step: int) -> None:
        assert self.is_open
        if self.error:
            raise self.error
        self.points[run_id] += [(name, step, value) for name, value in values.items()]

    def close(self) -> None:
        self.is_open = False

    def run(self, run_id: str) -> Any:
        def log(data: dict[str, float], step: int | None = None) -> None:
            assert step is not None
            self.add(run_id, data, step)

        return SimpleNamespace(id=run_id, log=log, finish=self.close)

    def wandb(self) -> ModuleType:
        def init(
            *,
            project: str,
            mode: str,
            dir: str,
            id: str | None,
            resume: str | None,
            name: str,
            config: Any,
            settings: Any,
        ) -> Any:
            self.modes.append(mode)
            self.names.append(name)
            assert (id is None) == (resume is None)
            return self.run(self.open(id, config))

        module = ModuleType("wandb")
        module.__dict__.update(init=init, Settings=lambda *, console, silent: None)
        return module

    def swanlab(self) -> ModuleType:
        def init(
            *,
            project: str,
            mode: str,
            log_dir: str,
            name: str,
            config: Any,
            id: str | None = None,
            resume: str | None = None,
        ) -> Any:
            self.modes.append(mode)
            self.names.append(name)
            return self.run(self.open(id, config))

        module = ModuleType("swanlab")
        module.__dict__.update(init=init)
        return module

    def mlflow(self) -> ModuleType:
        calls = self

        class MlflowException(Exception):
            error_code = "RESOURCE_DOES_NOT_EXIST"

        class MlflowClient:
            def __init__(self, tracking_uri: str) -> None:
                calls.modes.append("offline" if tracking_uri.startswith("sqlite:////") else tracking_uri)

            def get_experiment_by_name(self, name: str) -> None:
                return None

            def create_experiment(self, name: str) -> str:
                return "7"

            def create_run(self, experiment_id: str, run_name: str) -> Any:
                calls.names.append(run_name)
                return SimpleNamespace(info=SimpleNamespace(run_id=calls.open(None, {})))

            def update_run(self, run_id: str, status: str) -> None:
                assert status == "RUNNING"
                if run_id not in calls.points:
                    raise MlflowException("no such run")
                calls.open(run_id, {})

            def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
                assert len(params) <= 100
                calls.settings[run_id] |= dict(params)
                for key, value, _, step in metrics:
                    calls.add(run_id, {key: value}, step)

            def set_terminated(self, run_id: str) -> None:
                calls.close()

        module, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
        exceptions = ModuleType("mlflow.exceptions")
        entities.__dict__.update(Metric=lambda *values: values, Param=lambda *values: values)
        exceptions.__dict__.update(MlflowException=MlflowException)
        module.__dict__.update(MlflowClient=MlflowClient, entities=entities, exceptions=exceptions)
        return module


PROGRAMS = {"mlflow": "MLflow", "wandb": "WandB", "swanlab": "SwanLab"}


@pytest.fixture
def calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Calls:
    stand_in = Calls()
    module = getattr(stand_in, request.param)()
    monkeypatch.setitem(sys.modules, request.param, module)
    if request.param == "mlflow":
        monkeypatch.setitem(sys.modules, "mlflow.entities", module.entities)
        monkeypatch.setitem(sys.modules, "mlflow.exceptions", module.exceptions)
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "SWANLAB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("MLFLOW_DISABLE_TELEMETRY", "WANDB_ERROR_REPORTING"):
        monkeypatch.setenv(name, "true")  # set before, so that the trackers' own values don't stay
    stand_in.settings["name"] = {"tracker": PROGRAMS[request.param]}
    return stand_in


@pytest.mark.parametrize("calls", PROGRAMS, indirect=True)
def test_a_resumed_run_has_each_step_once(small: Callable[..., Path], calls: Calls) -> None:
    """The run resumes at step 4 of 6, so two training lines and an evaluation are computed again."""
    name = calls.settings.pop("name")["tracker"]
    file = with_tracker(small, {name: {}})
    folder = train(file)
    train(file, f"Global.checkpoints={folder / 'step_4'}")
    (points,) = calls.points.values()
    for kind, figure in (("train", "loss"), ("eval", "top1")):
        rows = [(row["step"], row[figure]) for row in lines(folder, kind)]
        sent = [(step, value) for curve, step, value in points if curve == f"{kind}/{figure}"]
        assert [step for step, _ in sent] == [step for step, _ in rows]
        assert [value for _, value in sent] == pytest.approx([value for _, value in rows])
    assert calls.modes == ["offline", "offline"]
    assert not calls.is_open
    assert "train/eta" not in {curve for curve, _, _ in points}
    (settings,) = calls.settings.values()
    assert float(settings["Optimizer.lr.learning_rate"]) == 0.02
    train(file)  # a new run
    assert len(calls.points) == 2
    assert set(calls.names) == {str(folder)}


@pytest.mark.parametrize("calls", ["mlflow"], indirect=True)
def test_another_address_gets_a_new_run(
    tmp_path: Path, calls: Calls, new_warnings: Callable[[], list[str]]
) -> None:
    """It has all lines from the step at which the run resumes. Later starts continue it."""

    def start(first_step: int) -> None:
        tracker = ppxcls.TRACKERS.components()["MLflow"](folder=tmp_path)
        tracker.start(Progress(step=first_step))
        for step in range(first_step, 4):
            tracker.log("train", {"epoch": 1, "iter": step, "step": step}, {"loss": 1.0})
        tracker.close()

    start(0)
    calls.points = {"another": []}
    calls.settings = {}
    start(2)
    assert "MLflow has no run run0 at this address: it gets a new run" in new_warnings()
    start(1)
    assert calls.points == {"another": [], "run1": [("train/loss", 2, 1.0), ("train/loss", 3, 1.0)]}


@pytest.mark.parametrize("calls", PROGRAMS, indirect=True)
def test_a_program_that_fails_does_not_end_the_run(
    tmp_path: Path, calls: Calls, capfd: pytest.CaptureFixture[str]
) -> None:
    set_up_logging()
    name = calls.settings.pop("name")["tracker"]
    tracker = ppxcls.TRACKERS.components()[name](folder=tmp_path)
    tracker.start(Progress())
    calls.error = RuntimeError("no such\nhost")
    for step in range(3):
        tracker.log("train", {"epoch": 1, "iter": step, "step": step}, {"loss": 1.0})
    tracker.close()
    said = capfd.readouterr()
    assert (said.out + said.err).count("fails, the run continues without it: RuntimeError: no such host") == 1


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"id": "../x", "last_lines": {}}', '{"id": "a", "last_lines": {"eval": "no"}}']
)
@pytest.mark.parametrize("calls", ["wandb"], indirect=True)
def test_a_damaged_position_begins_a_new_run(tmp_path: Path, calls: Calls, text: str) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / RUN_FILE).write_text(text)
    tracker = ppxcls.TRACKERS.components()["WandB"](folder=tmp_path)
    tracker.start(Progress(step=3))
    tracker.log("train", {"epoch": 1, "iter": 3, "step": 3}, {"loss": 1.0})
    assert calls.points == {"run0": [("train/loss", 3, 1.0)]}


@pytest.mark.parametrize("calls", PROGRAMS, indirect=True)
def test_nothing_is_written_through_a_link(tmp_path: Path, calls: Calls) -> None:
    name = calls.settings.pop("name")["tracker"]
    (tmp_path / "home").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name.lower()).symlink_to(tmp_path / "home")
    with pytest.raises(OSError, match="a link out of its folder"):
        ppxcls.TRACKERS.components()[name](folder=tmp_path / "run").start(Progress())
    assert not calls.points
    assert not list((tmp_path / "home").iterdir())


@pytest.mark.parametrize(("module", "name"), PROGRAMS.items())
def test_a_missing_package_is_named(
    small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    for variable in ("MLFLOW_DISABLE_TELEMETRY", "WANDB_ERROR_REPORTING"):
        monkeypatch.setenv(variable, "true")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ppxcls.ConfigError, match=rf"pip install 'ppxcls\[{module}\]'"):
        ppxcls.build_trainer(ppxcls.load_config(small(**{"Global.trackers": [{name: {}}]})))


def test_mlflow(small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    file = with_tracker(small, {"MLflow": {"experiment": "digits"}})
    folder = train(file)
    train(file, f"Global.checkpoints={folder / 'step_4'}")
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow/mlflow.db")
    number = client.get_experiment_by_name("digits").experiment_id
    (run,) = client.search_runs([number])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted(point.step for point in history) == [row["step"] for row in lines(folder, "train")]
    assert run.data.metrics["eval/top1"] == pytest.approx(lines(folder, "eval")[-1]["top1"])
    assert run.data.params["Optimizer.lr.learning_rate"] == "0.02"
    assert run.info.status == "FINISHED"


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

    monkeypatch.delenv("WANDB_MODE", raising=False)
    file = with_tracker(small, {"WandB": {}})
    folder = train(file)
    train(file, f"Global.checkpoints={folder / 'step_4'}")
    seen: dict[str, list[float]] = {}
    run_ids = set()
    for part in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        run_ids.add(part.stem)
        for data in leveldb_records(part.read_bytes()[7:], 7):
            record = Record()
            record.ParseFromString(data)
            for item in record.history.item:
                seen.setdefault("/".join(item.nested_key) or item.key, []).append(json.loads(item.value_json))
    assert len(run_ids) == 1
    assert seen["train/loss"] == pytest.approx([row["loss"] for row in lines(folder, "train")])
    assert seen["eval/top1"] == pytest.approx([row["top1"] for row in lines(folder, "eval")])


def test_swanlab_offline(small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("swanlab", reason="SwanLab is not installed")
    monkeypatch.delenv("SWANLAB_MODE", raising=False)
    file = with_tracker(small, {"SwanLab": {}})
    folder = train(file)
    train(file, f"Global.checkpoints={folder / 'step_4'}")
    parts = sorted((folder / "swanlab").glob("run-*/*.swanlab"))
    assert len(parts) == 2
    assert len({part.stem for part in parts}) == 1
    assert parts[0].read_bytes().count(b"train/loss") >= len(lines(folder, "train"))
    assert parts[1].read_bytes().count(b"train/loss") <= 1  # its column, but no point
