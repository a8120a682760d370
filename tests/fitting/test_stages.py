"""The stages of ``fit`` with weights, with a small network: results, choices, and taking up after a kill."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ppxcls
from ppxcls.checkpoints.files import read_state
from ppxcls.data.errors import DataError
from ppxcls.fitting import all_layers, classifiers, stages
from ppxcls.fitting.early_layers import early_layer_patterns
from ppxcls.fitting.plan import AllLayersChoice
from ppxcls.fitting.result import is_better_score, is_clearly_better_score
from tests.fitting import networks
from tests.fitting.small_fits import OPTIONS, chosen, only_linear, photographs, records

pytest.importorskip("scipy")


def test_the_first_result_is_a_whole_run(
    weights: str, speeds: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    only_linear(monkeypatch)
    run = ppxcls.fit("photos", weights, **OPTIONS)
    names = {file.name for file in run.iterdir()}
    assert {"config.yaml", "best_model.pdparams", "best_model.json", "metrics.jsonl"} <= names
    assert {"class_names.txt", "eval.json", "predictions.csv", "stages.json"} <= names
    assert chosen(run) == {stages.LINEAR: True}
    content = json.loads((run / "stages.json").read_text())
    assert content["format"] == 1
    assert content["stages"][0]["size"] == networks.SIZE
    assert content["stages"][0]["epochs"] is None
    assert {"size", "minutes"} <= set(content["plan"][0])
    state, start = read_state(run / "best_model.pdparams"), read_state("weights.pdparams")
    changed = {key for key in start if key in state and not np.array_equal(state[key], start[key])}
    assert changed - {"StructuredToParameterName@@"} == {"fc.weight", "fc.bias"}
    evaluation = json.loads((run / "eval.json").read_text())
    assert evaluation["top1"] == content["stages"][0]["accuracy"]
    assert evaluation["num_samples"] == len(Path("out/lists/val_list.txt").read_text().splitlines())
    results = ppxcls.evaluate(ppxcls.load_config(run))
    assert results["top1"] > 0.7
    predictions = ppxcls.load(run).predict(["photos/ant/0.png"])
    assert set(predictions[0].label_names) == {"ant", "bee", "cow"}
    assert not (Path("out/stages") / "features.npz").exists()


def test_the_photographs_that_choose_are_trained_on_in_the_end(
    weights: str, speeds: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    only_linear(monkeypatch)
    run = ppxcls.fit("photos", weights, **OPTIONS)
    state = read_state(run / "best_model.pdparams")
    held_out = read_state("out/stages/held_out.pdparams")
    assert np.array_equal(state["conv2.weight"], held_out["conv2.weight"])
    assert not np.array_equal(state["fc.weight"], held_out["fc.weight"])
    test_lines = Path("out/lists/test_list.txt").read_text().splitlines()
    used_lines = Path("out/lists/features_list.txt").read_text().splitlines()
    assert test_lines
    assert not set(test_lines) & set(used_lines), "photographs that judge are never used"


@pytest.mark.parametrize("is_better", [True, False])
def test_all_layers_are_kept_only_if_they_are_better(
    is_better: bool, weights: str, speeds: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have a smaller size. The run is evaluated at that of the result that stays."""
    monkeypatch.setattr("ppxcls.fitting.stage_results.is_better_score", lambda *_: is_better)
    monkeypatch.setattr(all_layers, "all_layers_choice", lambda *_, **__: AllLayersChoice(24, 1))
    run = ppxcls.fit("photos", weights, **OPTIONS, overrides=["Global.epochs=1"])
    assert chosen(run) == {stages.LINEAR: True, stages.ALL_LAYERS: is_better}
    assert [stage.size for stage in records(run)] == [networks.SIZE, 24]
    assert records(run)[1].choice.startswith("epoch 1; temperature ")
    state, start = read_state(run / "best_model.pdparams"), read_state("weights.pdparams")
    assert is_better != np.array_equal(state["conv1.weight"], start["conv1.weight"])
    assert is_better != np.array_equal(state["norm._mean"], start["norm._mean"])
    config = ppxcls.load_config(run)
    transform = ppxcls.build_transforms(config.DataLoader.Eval.dataset.transform_ops)
    side = 24 if is_better else networks.SIZE
    assert transform(Path("photos/ant/0.png").read_bytes()).shape == (side, side, 3)
    assert ppxcls.evaluate(config)["top1"] > 0.6
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["eval"] * (1 + is_better)
    assert not list(run.glob("earlier_*"))


def test_all_layers_start_from_a_linear_classifier_at_their_size(
    weights: str,
    speeds: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(all_layers, "all_layers_choice", lambda *_, **__: AllLayersChoice(24, 1))
    rate = "Optimizer.lr.learning_rate=1e-30"
    run = ppxcls.fit("photos", weights, **OPTIONS, overrides=["Global.epochs=1", rate])
    linear, stage = records(run)
    start_line = f"starts from a linear classifier at 24 px, {stage.accuracy:.4f} of the photographs"
    assert start_line in capsys.readouterr().out
    assert stage.loss != linear.loss


@pytest.mark.parametrize("has_worse_copies", [True, False])
def test_training_has_no_mirror_images_if_they_make_the_linear_classifier_worse(
    has_worse_copies: bool, weights: str, speeds: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    only_linear(monkeypatch)
    original = classifiers.chosen_problem
    groups: list[list[int]] = []

    def chosen_problem(*arguments: Any, **options: Any) -> Any:
        problem, choice = original(*arguments, **options)
        groups.append(options["groups"].tolist())
        return problem, replace(choice, has_worse_copies=has_worse_copies)

    monkeypatch.setattr(classifiers, "chosen_problem", chosen_problem)
    run = ppxcls.fit("photos", weights, **OPTIONS, group=r"([0-9]+)\.png")
    numbers = re.findall(r"(\d+)\.png", Path("out/lists/features_list.txt").read_text())
    pairs = set(zip(numbers, groups[0], strict=True))
    assert len(pairs) == len(set(numbers)) == len(set(groups[0])), "groups in the order of the features"
    for file in (Path("out/train.yaml"), run):
        ops = [op.name for op in ppxcls.load_config(file).DataLoader.Train.dataset.transform_ops]
        assert ("RandFlipImage" in ops) == (not has_worse_copies)
        assert len(ops) == 5 - has_worse_copies
    assert ("without mirror images" in records(run)[0].choice) == has_worse_copies


@pytest.mark.parametrize("finds_small_class", [True, False])
def test_a_good_linear_classifier_stays(
    finds_small_class: bool,
    weights: str,
    speeds: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is not good if it finds the large class alone, however large that is."""
    monkeypatch.setattr(all_layers, "_HIGH_RECALL", 0.99)
    if not finds_small_class:
        monkeypatch.setattr(classifiers, "accuracy_and_loss", lambda *_: (0.995, 0.1))
        monkeypatch.setattr(classifiers, "mean_recall", lambda *_: 0.5)
        monkeypatch.setattr(
            all_layers, "all_layers_choice", lambda *_, **__: AllLayersChoice(networks.SIZE, 0)
        )
    run = ppxcls.fit("photos", weights, **OPTIONS)
    assert chosen(run) == {stages.LINEAR: True}
    assert records(run)[0].mean_recall == (1.0 if finds_small_class else 0.5)
    line = (
        "all layers: not trained, because 100.0% of those that choose are right, as a mean over the classes"
    )
    assert (line in capsys.readouterr().out) == finds_small_class


def test_little_time_gives_the_first_result_alone(weights: str, speeds: Callable[..., None]) -> None:
    speeds(feature=10.0, step=10.0)
    run = ppxcls.fit("photos", weights, **OPTIONS, minutes=0.01)
    assert chosen(run) == {stages.LINEAR: True}


@pytest.mark.parametrize("counts", [{"ant": 3, "bee": 3}, {"ant": 20, "bee": 1, "cow": 2}])
def test_few_photographs(
    counts: dict[str, int], weights: str, speeds: Callable[..., None], tmp_path: Path
) -> None:
    photographs(tmp_path / "few", counts)
    run = ppxcls.fit("few", weights, **OPTIONS, overrides=["Global.epochs=1"])
    assert chosen(run)[stages.LINEAR]
    assert ppxcls.load(run).predict(["few/ant/0.png"])


def test_weights_that_are_not_finite_are_not_taken(
    weights: str, speeds: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppxcls.fitting.all_layers.accuracy_and_loss", lambda *_: (1.0, float("nan")))
    run = ppxcls.fit("photos", weights, **OPTIONS, overrides=["Global.epochs=1"])
    assert chosen(run) == {stages.LINEAR: True, stages.ALL_LAYERS: False}


def test_a_network_without_parts_is_trained_as_before(
    weights: str, speeds: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppxcls.fitting.stage_settings.split_network", lambda _: None)
    monkeypatch.setattr("ppxcls.fitting.settings._seconds_per_step", lambda *_: 1.0)
    run = ppxcls.fit("photos", weights, **OPTIONS, overrides=["Global.epochs=1"], minutes=0.01)
    assert not (run / "stages.json").exists()
    assert Path("out/head").is_dir()


def test_cached_weights_are_used_unless_none_are_wanted(
    weights: str,
    speeds: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    only_linear(monkeypatch)
    path = Path(weights).resolve()
    monkeypatch.setattr(
        "ppxcls.fitting.request.cached_weights", lambda name: path if name == networks.NAME else None
    )
    run = ppxcls.fit("photos", None, **OPTIONS)
    assert chosen(run) == {stages.LINEAR: True}
    assert (
        f"weights.pdparams: these weights of {networks.NAME} are on this machine" in capsys.readouterr().out
    )
    monkeypatch.setattr("ppxcls.fitting.settings._seconds_per_step", lambda *_: 1.0)
    run = ppxcls.fit(
        "photos",
        "none",
        **{**OPTIONS, "output": "scratch"},
        minutes=0.01,
        overrides=["Global.epochs=1"],
    )
    assert not (run / "stages.json").exists()
    assert "from scratch: --weights imagenet fetches published weights" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("score", "is_taken"),
    [
        ((0.90, 0.30), True),
        ((0.91, 0.30), True),
        ((0.91, 0.50), False),
        ((0.89, 0.10), False),
        ((0.99, 0.50), True),
        ((0.90, 0.40), False),
        ((1.00, float("nan")), False),
    ],
)
def test_better_is_more_than_chance(score: tuple[float, float], is_taken: bool) -> None:
    assert is_better_score(score, (0.90, 0.40), count=100) == is_taken
    is_clear = score == (0.99, 0.50)  # the standard error is 0.03
    assert is_clearly_better_score(score, (0.90, 0.40), count=100) == is_clear


def test_a_missing_solver_is_named_before_anything_is_written(
    weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppxcls.fitting.request._SOLVER_PACKAGE", "no_such_package")
    with pytest.raises(DataError, match=r"with weights, fit needs no_such_package: pip install"):
        ppxcls.fit("photos", weights, **OPTIONS)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("network", "patterns"),
    [
        (
            "Xception",
            [r"^conv1\.", r"^bn1\.", r"^conv2\.", r"^bn2\.", *[rf"^block{i}\." for i in (1, 2, 3, 4)]],
        ),
        ("Xception41", [r"^_entry_flow\.", r"^_middle_flow\._conv_0\."]),
        ("xception41p", [r"^stem\.", r"^blocks\.0\.", r"^blocks\.1\.", r"^blocks\.2\."]),
    ],
)
def test_early_layers_are_those_with_less_than_a_tenth_of_the_rate(network: str, patterns: list[str]) -> None:
    assert early_layer_patterns(ppxcls.build_model(network, class_num=3)) == patterns
