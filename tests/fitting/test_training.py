"""The trainings of ``fit``: as many epochs as the time allows, and all photographs in the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ppxcls
from ppxcls.checkpoints.files import read_manifest, read_state
from ppxcls.fitting import all_layers, classifiers, folder, stages, training
from ppxcls.fitting.clock import Clock
from ppxcls.fitting.progress import read_progress
from ppxcls.fitting.stage_results import TOO_LITTLE_TIME
from ppxcls.fitting.training import EpochLimits, Training
from ppxcls.train.trainer import Trainer
from tests.fitting.small_fits import OPTIONS, chosen, interrupted, only_linear, records

pytest.importorskip("scipy")


@dataclass
class _Settings:
    epochs: int


class _Progress:
    def __init__(self, epochs: int) -> None:
        self.settings = _Settings(epochs)

    def write_yaml(self, *_: object) -> None:
        pass


class _Request:
    minutes = 1.0
    photos = output = Path()


@pytest.mark.parametrize(
    ("planned_epochs", "possible_epochs", "epochs"),
    [(30, 20, 20), (30, 29, 29), (30, 30, 30), (30, 40, 30), (30, 41, 41), (30, 90, 60), (30, 1, 5)],
)
def test_a_training_is_never_longer_than_the_time(
    planned_epochs: int, possible_epochs: int, epochs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to a third more epochs change no plan. Fewer always do."""
    monkeypatch.setattr(training, "train_yaml", lambda *_: "")
    request: Any = _Request()
    progress: Any = _Progress(planned_epochs)
    clock = Clock(minutes=(100 * (possible_epochs - 1) + 20 + 50) / 60)
    limits = EpochLimits(min_epochs=5, max_epochs=60, end_seconds=20)
    Training(request, progress, clock)._change_epochs(planned_epochs, 100, finished_epochs=1, limits=limits)
    assert progress.settings.epochs == epochs


@pytest.mark.parametrize("seconds", [0.0, 700.0, 2000.0, 9000.0])
def test_the_time_of_training_again_is_kept(seconds: float) -> None:
    limits = EpochLimits(min_epochs=1, max_epochs=100, end_seconds=50, again_share=1.25)
    epochs = limits.epochs(seconds, epoch_seconds=100, finished_epochs=2)

    def needed(count: int) -> float:
        return 100 * (count - 2) + 125 * count + 50

    assert epochs >= 2
    assert needed(epochs) <= seconds or epochs == 2
    assert needed(epochs + 1) > seconds


def eval_epochs(run: Path) -> list[int]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["epoch"] for row in rows if row["kind"] == "eval"]


def test_a_training_ends_early_if_the_time_is_over(
    weights: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """But not before the smallest number of epochs."""
    monkeypatch.setattr("ppxcls.fitting.settings._seconds_per_step", lambda *_: 0.001)
    monkeypatch.setattr(folder, "MAX_EPOCHS", 8)
    monkeypatch.setattr(Clock, "has_time", lambda *_: False)
    run = ppxcls.fit("photos", "none", **OPTIONS)
    assert "epoch 5 of 8 is the last one: the time is over" in capsys.readouterr().out
    assert eval_epochs(run) == [1, 2, 3, 4, 5]


def test_a_plan_that_is_off_is_made_anew_after_the_first_epoch(
    weights: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step was timed as slow, and is fast. An interruption after the first epoch changes nothing."""
    monkeypatch.setattr("ppxcls.fitting.settings._seconds_per_step", lambda *_: 1000.0)
    monkeypatch.setattr(folder, "MAX_EPOCHS", 8)
    with monkeypatch.context() as patch:
        patch.setattr(training.Training, "_change_epochs", interrupted(training.Training._change_epochs))
        with pytest.raises(KeyboardInterrupt):
            ppxcls.fit("photos", "none", **OPTIONS)
    progress = read_progress(Path("out"), ())
    assert progress
    assert progress.used_seconds > 0, "the same command continues with the time that is left"
    run = ppxcls.fit("photos", "none", **OPTIONS)
    assert "8 epochs instead of 5, for about 10 minutes" in capsys.readouterr().out
    assert eval_epochs(run) == list(range(1, 9))
    assert "epochs: 8" in Path("out/train.yaml").read_text()


def test_a_first_epoch_of_all_layers_that_was_cut_is_not_measured(
    weights: str, speeds: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one is. Then the plan is made anew."""
    monkeypatch.setattr(all_layers, "MAX_TUNING_EPOCHS", 4)
    monkeypatch.setattr("ppxcls.fitting.stage_results.is_better_score", lambda *_: True)
    overrides = ["Global.save_interval_steps=1", "DataLoader.Train.sampler.batch_size=16"]
    options = {**OPTIONS, "overrides": overrides}
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_finish_epoch", interrupted(lambda *_: None))
        with pytest.raises(KeyboardInterrupt):
            ppxcls.fit("photos", weights, **options)
    measured: list[int] = []
    original = training.Training._change_epochs

    def change_epochs(*arguments: Any, finished_epochs: int, **keys: Any) -> None:
        measured.append(finished_epochs)
        original(*arguments, finished_epochs=finished_epochs, **keys)

    monkeypatch.setattr(training.Training, "_change_epochs", change_epochs)
    run = ppxcls.fit("photos", weights, **options)
    assert measured == [2]
    assert [stage.epochs for stage in records(run)] == [None, 4]
    assert "epochs: 4" in Path("out/train.yaml").read_text()


def test_all_layers_are_trained_again_with_the_photographs_that_choose(
    weights: str, speeds: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppxcls.fitting.stage_results.is_better_score", lambda *_: True)
    starts: list[tuple[str, str, int]] = []
    original = training.build_trainer

    def build_trainer(config: ppxcls.config.sections.Config) -> Trainer:
        trainer = original(config)
        lists = config.DataLoader.Train.dataset.cls_label_path  # type: ignore[union-attr]
        start = str(config.Global.pretrained_model)
        starts.append((Path(lists).name, Path(start).name, len(trainer.loader.dataset)))
        return trainer

    monkeypatch.setattr(training, "build_trainer", build_trainer)
    run = ppxcls.fit("photos", weights, **OPTIONS, overrides=["Global.epochs=2"])
    counts = [len(Path(f"out/lists/{name}_list.txt").read_text().splitlines()) for name in ("train", "val")]
    assert starts == [
        ("train_list.txt", "held_out.pdparams", counts[0]),
        ("features_list.txt", "whole.pdparams", sum(counts)),
    ]
    _, stage = records(run)
    evaluation = json.loads((run / "eval.json").read_text())
    assert (stage.accuracy, stage.loss) == (evaluation["top1"], evaluation["loss"])
    assert "those of best_model were, after the choice" in evaluation["about"]
    files = sorted(file.name for file in Path("out/stages").iterdir())
    assert files == ["held_out.json", "held_out.pdparams"]


@pytest.mark.parametrize(
    ("overrides", "is_trained"),
    [
        (["Global.eval_during_train=false"], False),
        (["EMA.use_ema=true", "EMA.decay=0.5"], True),
        (["Global.early_stop.patience=3"], True),
        (["Metric.Eval=[{TopkAcc: {}}, {CohenKappa: {}}]", "Global.best_metric=CohenKappa"], True),
        (["Global.weights_format=safetensors"], True),
    ],
)
def test_overrides_of_the_training(
    overrides: list[str],
    is_trained: bool,
    weights: str,
    speeds: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without evaluations, all layers can't be compared. Averaged weights are the result if there are any."""
    monkeypatch.setattr("ppxcls.fitting.stage_results.is_better_score", lambda *_: True)
    run = ppxcls.fit("photos", weights, **OPTIONS, overrides=[*overrides, "Global.epochs=1"])
    expected = {stages.LINEAR: True} | ({stages.ALL_LAYERS: True} if is_trained else {})
    assert chosen(run) == expected
    figure = "CohenKappa" if "CohenKappa" in overrides[-1] else "top1"
    best = read_manifest(run / "best_model")["progress"]["best"]
    evaluation = json.loads((run / "eval.json").read_text())
    assert (best["metric"], best["value"]) == (figure, evaluation[figure])
    assert ppxcls.load(run).predict(["photos/ant/0.png"])


@pytest.mark.parametrize("is_clear", [True, False])
def test_without_time_to_train_again_a_stage_must_be_clearly_better(
    is_clear: bool, weights: str, speeds: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Clock, "has_time", lambda *_: False)
    monkeypatch.setattr("ppxcls.fitting.stage_results.is_clearly_better_score", lambda *_: is_clear)
    run = ppxcls.fit("photos", weights, **OPTIONS, overrides=["Global.epochs=1"])
    assert chosen(run) == {stages.LINEAR: True, stages.ALL_LAYERS: is_clear}
    assert [TOO_LITTLE_TIME in stage.choice for stage in records(run)] == [False, is_clear]
    evaluation = json.loads((run / "eval.json").read_text())
    assert bool(evaluation["about"]) == (not is_clear), "best_model did not learn these photographs"


def test_a_continued_fit_selects_the_device_first(
    weights: str, speeds: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    only_linear(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(classifiers, "compute_features", interrupted(classifiers.compute_features))
        with pytest.raises(KeyboardInterrupt):
            ppxcls.fit("photos", weights, **OPTIONS)
    calls: list[str] = []
    for module, name in ((stages, "start_processes"), (classifiers, "network_with_weights")):
        original = getattr(module, name)

        def called(*arguments: Any, name: str = name, original: Any = original) -> Any:
            device = arguments[0].Global.device
            calls.append(f"{name} {device}")
            return original(*arguments)

        monkeypatch.setattr(module, name, called)
    ppxcls.fit("photos", weights, **OPTIONS)
    assert calls[:2] == ["start_processes cpu", "network_with_weights cpu"]


def test_a_stage_keeps_its_decision_after_a_kill(
    weights: str, speeds: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On some devices, the same training gives other numbers. Then the files and the record still agree."""
    options = {**OPTIONS, "overrides": ["Global.epochs=1", "DataLoader.Train.sampler.batch_size=16"]}
    monkeypatch.setattr("ppxcls.fitting.stage_results.is_better_score", lambda *_: True)
    with monkeypatch.context() as patch:
        write_stages = interrupted(lambda *_: None)
        original = all_layers.AllLayers._train_again

        def train_again(*arguments: Any) -> Any:
            patch.setattr("ppxcls.fitting.stage_results.write_stages", write_stages)
            return original(*arguments)

        patch.setattr(all_layers.AllLayers, "_train_again", train_again)
        with pytest.raises(KeyboardInterrupt):
            ppxcls.fit("photos", weights, **options)
    monkeypatch.setattr("ppxcls.fitting.stage_results.is_better_score", lambda *_: False)
    run = ppxcls.fit("photos", weights, **options)
    assert chosen(run) == {stages.LINEAR: True, stages.ALL_LAYERS: True}
    state, start = read_state(run / "best_model.pdparams"), read_state("weights.pdparams")
    assert not np.array_equal(state["conv2.weight"], start["conv2.weight"])
