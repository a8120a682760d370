"""Unbalanced classes in ``fit``: the warning, and a linear classifier with class weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ppxcls
from ppxcls.fitting.imbalance import ClassCorrection, correction_of, stage_loss, warn_if_unbalanced
from ppxcls.fitting.linear import LinearProblem, _loss_and_gradient, accuracy_and_loss
from ppxcls.fitting.photographs import Photographs
from ppxcls.system.arrays import Array
from tests.fitting.small_fits import OPTIONS, only_linear

pytest.importorskip("scipy")
COUNTS = np.array([60, 20, 5])


def clouds(distance: float = 0.5) -> tuple[Array, Array]:
    """Returns features [1, N, 6] of overlapping clouds with different numbers of points, and their labels."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), COUNTS)
    centres = rng.normal(size=(3, 6)) * distance
    return (centres[labels] + rng.normal(size=(len(labels), 6))).astype(np.float32)[None], labels


def test_weights_are_scikit_learns() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, labels = clouds()
    correction = ClassCorrection(COUNTS.sum() / (3 * COUNTS), np.zeros(3))
    problem = LinearProblem(features, labels, 3, correction)
    logits = problem.classifier(problem.train(0.03)).logits(features[0])
    centred = features[0] - features[0].mean(0)
    centred /= np.sqrt(np.square(centred).mean())
    reference = linear_model.LogisticRegression(
        C=30 / len(labels), tol=1e-8, max_iter=10_000, class_weight="balanced"
    )
    expected = reference.fit(centred.astype(np.float64), labels).predict_proba(centred)
    received = np.exp(logits - np.log(np.exp(logits).sum(1, keepdims=True)))
    np.testing.assert_allclose(received, expected, atol=5e-3)


def test_the_gradient_with_a_correction() -> None:
    features, labels = clouds()
    correction = ClassCorrection(np.array([0.5, 1.0, 4.0]), np.log(COUNTS / COUNTS.sum()))
    function = partial(_loss_and_gradient, rows=features[0], labels=labels, correction=correction, decay=0.1)
    start = np.random.default_rng(1).normal(size=21)
    _, gradient = function(start)
    steps = 1e-2 * np.eye(21)  # the products are in float32
    differences = [(function(start + step)[0] - function(start - step)[0]) / 2e-2 for step in steps]
    np.testing.assert_allclose(gradient, differences, atol=1e-3)


@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_an_adjustment_finds_more_of_the_small_classes(tau: float) -> None:
    features, labels = clouds()
    problem = LinearProblem(
        features, labels, 3, ClassCorrection(np.ones(3), tau * np.log(COUNTS / COUNTS.sum()))
    )
    predicted_ids = problem.classifier(problem.train(0.03)).logits(features[0]).argmax(1)
    recall = (predicted_ids == labels)[labels == 2].mean()
    assert (recall > 0.5) == bool(tau)


def test_the_loss_of_a_choice_is_the_corrected_one() -> None:
    logits, labels = np.array([[1.0, 0.0], [0.5, 0.0]]), np.array([0, 1])
    losses = np.array([np.log(1 + np.exp(-3.0)), np.log(1 + np.exp(2.5))])
    correction = ClassCorrection(np.array([0.5, 3.0]), np.array([2.0, 0.0]))
    accuracy, loss = accuracy_and_loss(logits, labels, correction)
    assert accuracy == 0.5, "predictions are not corrected"
    assert loss == pytest.approx((0.5 * losses[0] + 3 * losses[1]) / 2)


@pytest.mark.parametrize(
    ("loss", "weights", "has_offsets"),
    [
        ({"CELoss": {"epsilon": 0.1}}, [1, 1, 1], False),
        ({"CELoss": {"class_weight": "balanced", "epsilon": 0.1}}, [12 / 24, 12 / 9, 12 / 3], False),
        ({"FocalLoss": {"class_weight": {"bee": 2.0}}}, [1, 2, 1], False),
        ({"CELoss": {"logit_adjustment": 1.0}}, [1, 1, 1], True),
    ],
)
def test_the_loss_of_the_stages(
    loss: dict[str, Any], weights: list[float], has_offsets: bool, small: Callable[..., Path], tmp_path: Path
) -> None:
    labels = [0] * 8 + [1] * 3 + [2]
    (tmp_path / "train_list.txt").write_text("".join(f"{i}.png {label}\n" for i, label in enumerate(labels)))
    (tmp_path / "class_names.txt").write_text("0 ant\n1 bee\n2 cow\n")
    lists = {
        f"DataLoader.{mode}.dataset.cls_label_path": str(tmp_path / "train_list.txt")
        for mode in ("Train", "Eval")
    }
    config = ppxcls.load_config(small(**{"Loss.Train": [loss], **lists}))
    correction = correction_of(stage_loss(config, tmp_path), 3)
    assert correction.weights.tolist() == pytest.approx(weights)
    expected = np.log(np.array([8, 3, 1]) / 12) if has_offsets else np.zeros(3)
    np.testing.assert_allclose(correction.offsets, expected)


@pytest.mark.parametrize(
    ("counts", "overrides", "expected"),
    [
        ([30, 3], [], "ant has 30 training images, 10 times as many as bee (3); "),
        ([29, 3], [], None),
        ([30, 3], ["Loss.Train.0.CELoss.class_weight=effective"], None),
        ([30, 3], ["DataLoader.Train.sampler.name=ClassBalancedSampler"], None),
    ],
)
def test_a_warning_names_the_key(
    counts: list[int],
    overrides: list[str],
    expected: str | None,
    new_warnings: Callable[[], list[str]],
    tmp_path: Path,
) -> None:
    labels = np.repeat(np.arange(2), counts)
    (tmp_path / "train_list.txt").write_text("".join(f"{i}.png {label}\n" for i, label in enumerate(labels)))
    warn_if_unbalanced(Photographs(tmp_path, tmp_path, ["ant", "bee"], ""), overrides)
    warnings = new_warnings()
    assert [line.startswith(str(expected)) for line in warnings] == ([True] if expected else [])
    for line in warnings:
        assert line.endswith(" -o Loss.Train.0.CELoss.class_weight=balanced")


def test_fit_takes_the_weights_of_an_override(
    weights: str, speeds: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight of 0 takes a class out of the linear classifier."""
    only_linear(monkeypatch)
    options = {**OPTIONS, "overrides": ["Loss.Train.0.CELoss.class_weight={bee: 0}"]}
    run = ppxcls.fit("photos", weights, **options)
    files = [str(file) for file in sorted(Path("photos/bee").iterdir())]
    assert "bee" not in {prediction.label_names[0] for prediction in ppxcls.load(run).predict(files)}
    assert "bee: 0" in (run / "config.yaml").read_text()
