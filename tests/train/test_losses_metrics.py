"""Losses and metrics against numpy."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

import ppxcls
from ppxcls.train.losses import build_loss
from ppxcls.train.metrics import Scorer, Totals, build_metrics

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (6, 10)).astype(np.float32)
LABELS = RNG.integers(0, 10, 6)
LOG_SOFTMAX = LOGITS - np.log(np.exp(LOGITS).sum(1, keepdims=True))


def value(specs: list, labels: np.ndarray, name: str = "loss") -> float:
    return float(build_loss(specs)(paddle.to_tensor(LOGITS), paddle.to_tensor(labels))[name])


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_cross_entropy_hard_and_soft(epsilon: float) -> None:
    one_hot = np.eye(10)[LABELS]
    soft = 0.3 * one_hot + 0.7 * np.eye(10)[::-1][LABELS]
    for labels, targets in ((LABELS, one_hot), (soft.astype(np.float32), soft)):
        smoothed = (1 - epsilon) * targets + epsilon / 10
        expected = -(smoothed * LOG_SOFTMAX).sum(1).mean()
        assert value([{"CELoss": {"epsilon": epsilon}}], labels) == pytest.approx(expected, rel=1e-5)


def test_weighted_sum_of_two() -> None:
    single = value([{"CELoss": {}}], LABELS)
    smoothed = value([{"CELoss": {"epsilon": 0.2}}], LABELS)
    specs = [{"CELoss": {"weight": 0.5}}, {"CELoss": {"weight": 2.0, "epsilon": 0.2}}]
    assert value(specs, LABELS) == pytest.approx(0.5 * single + 2 * smoothed, rel=1e-5)
    assert value(specs, LABELS, "CELoss") == pytest.approx(0.5 * single, rel=1e-5)
    assert build_loss(specs).names == ["CELoss", "CELoss_1", "loss"]


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([], "at least one loss"),
        (
            [{"CELoss": {"epsilon": 1.0}}],
            r"Loss.0.CELoss.epsilon: expected a number at least 0 and below 1, received 1.0",
        ),
        ([{"CEloss": {}}], "did you mean 'CELoss'"),
        ([{"CELoss": {"weight": "heavy"}}], "weight: expected a number at least 0, received 'heavy'"),
        ([{"CELoss": {"weight": -1}}], "Loss.0.CELoss.weight: expected a number at least 0, received -1"),
        ([{"CELoss": {"weight": 0}}], "Loss: expected at least one loss with a weight above 0"),
    ],
)
def test_rejected(specs: list, message: str) -> None:
    with pytest.raises(ppxcls.ConfigError, match=message):
        build_loss(specs)


def test_one_loss_may_be_turned_off() -> None:
    specs = [{"CELoss": {"weight": 0}}, {"CELoss": {"epsilon": 0.2}}]
    assert value(specs, LABELS) == pytest.approx(value(specs[1:], LABELS), rel=1e-6)


def test_topk_counts() -> None:
    order = np.argsort(-LOGITS, axis=1)
    (metric,) = build_metrics([{"TopkAcc": {"topk": [1, 3, 5]}}])
    counts = metric(paddle.to_tensor(LOGITS), paddle.to_tensor(LABELS))
    for k in (1, 3, 5):
        assert float(counts[f"top{k}"]) == sum(
            label in row[:k] for label, row in zip(LABELS, order, strict=True)
        )


def test_fewer_classes_than_k() -> None:
    (metric,) = build_metrics([{"TopkAcc": {"topk": [1, 5]}}])
    counts = metric(paddle.to_tensor(LOGITS[:, :3]), paddle.to_tensor(LABELS % 3))
    assert float(counts["top5"]) == 6
    assert float(counts["top1"]) == (LOGITS[:, :3].argmax(1) == LABELS % 3).sum()


def test_any_split_into_batches_adds_up_to_the_same() -> None:
    loss_fn = build_loss([{"CELoss": {}}])
    scorer = Scorer(loss_fn.names, build_metrics([{"TopkAcc": {"topk": [1, 5]}}]))
    results = []
    for cuts in ([0, 6], [0, 1, 4, 6], [0, 5, 6]):
        totals = Totals(scorer.names)
        for a, b in zip(cuts, cuts[1:], strict=False):
            logits, labels = paddle.to_tensor(LOGITS[a:b]), paddle.to_tensor(LABELS[a:b])
            totals.add(b - a, scorer(loss_fn(logits, labels), logits, labels).numpy())
        results.append(totals.reduced())
    assert [r[0] for r in results] == [6, 6, 6]
    assert results[0].values["top1"] == results[1].values["top1"] == results[2].values["top1"]
    assert results[1].values == pytest.approx(results[0].values, rel=1e-6)
    assert results[0].values["loss"] == pytest.approx(-LOG_SOFTMAX[np.arange(6), LABELS].mean(), rel=1e-5)
