"""The figures of a report, against scikit-learn on the same predictions."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from ppxcls.calibration.reliability import reliability
from ppxcls.reports import figures
from ppxcls.reports.curves import epoch_rates, intervals, smoothed, throughput
from ppxcls.reports.run_files import Samples

CLASSES = 7


def drawn(seed: int, count: int = 400, classes: int = CLASSES) -> tuple[Samples, np.ndarray]:
    """Returns random, mostly correct predictions, and all probabilities, [count, classes]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes - 1, count)  # the last class has no sample
    logits = rng.normal(size=(count, classes))
    logits[np.arange(count), labels] += 1.5
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    order = np.argsort(-scores, axis=1)
    best, own = scores.max(axis=1), scores[np.arange(count), labels]
    samples = Samples(
        files=[f"{i}.jpg" for i in range(count)],
        labels=labels,
        predicted_ids=order[:, 0],
        scores=best,
        label_scores=own,
        top_ids=order[:, :5].tolist(),
    )
    return samples, scores


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_scikit_learns(seed: int) -> None:
    samples, scores = drawn(seed)
    ids = list(range(CLASSES))
    assert_array_equal(
        figures.confusions(samples, CLASSES).matrix(CLASSES),
        confusion_matrix(samples.labels, samples.predicted_ids, labels=ids),
    )
    assert figures.topk_proportion(samples, 1).value == pytest.approx(
        accuracy_score(samples.labels, samples.predicted_ids)
    )
    for k in (1, 3, 5):
        expected = top_k_accuracy_score(samples.labels, scores, k=k, labels=ids)
        assert figures.topk_proportion(samples, k).value == pytest.approx(expected)
    own = figures.by_class(samples, CLASSES)
    theirs = precision_recall_fscore_support(
        samples.labels, samples.predicted_ids, labels=ids, zero_division=0
    )
    for key, values in zip(("precision", "recall", "f1", "support"), theirs, strict=True):
        assert_allclose(own[key], values)
    found = reliability(samples.scores, samples.labels == samples.predicted_ids, bins=10)
    accuracy, confidence = calibration_curve(
        samples.labels == samples.predicted_ids, samples.scores, n_bins=10
    )
    assert_allclose(found.accuracy, accuracy)
    assert_allclose(found.confidence, confidence)
    assert found.error == pytest.approx((found.counts * abs(accuracy - confidence)).sum() / len(samples))


def test_the_interval_is_wilsons() -> None:
    """Newcombe 1998 (Statistics in Medicine 17, table I): 81 of 263, and 0 of 20."""
    found = figures.proportion(81, 263)
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)
    found = figures.proportion(0, 20)
    assert (found.low, round(found.high, 4)) == (0.0, 0.1611)


def test_confused_pairs_and_neighbours() -> None:
    matrix = np.diag([10, 10, 10, 10])
    matrix[0, 3], matrix[3, 0], matrix[1, 2] = 5, 4, 1
    labels, predicted = np.nonzero(matrix)
    found = figures.Confusions(labels, predicted, matrix[labels, predicted])
    assert_array_equal(found.matrix(4), matrix)
    assert figures.most_confused(found) == [(0, 3, 5), (3, 0, 4), (1, 2, 1)]
    order = figures.clustered_order(matrix).tolist()
    assert sorted(order) == [0, 1, 2, 3]
    assert abs(order.index(0) - order.index(3)) == 1


def test_a_wrong_label_is_suspected() -> None:
    """Two classes are well separated, and one sample has the label of the other class."""
    labels = np.array([0] * 20 + [1] * 20)
    predicted = labels.copy()
    labels[3] = 1
    scores = np.full(40, 0.9)
    scores[3] = 0.97
    own = np.where(labels == predicted, scores, 1 - scores)
    samples = Samples(
        files=["x"] * 40,
        labels=labels,
        predicted_ids=predicted,
        scores=scores,
        label_scores=own,
        top_ids=[[int(p), 1 - int(p)] for p in predicted],
    )
    assert figures.suspected_labels(samples, 5) == [3]
    assert figures.worst_mistakes(samples, 5) == [3]


def test_intervals_undo_the_means_of_the_epoch() -> None:
    """Losses 1 to 6 of one sample each, three per epoch.

    A log line contains the mean of the epoch so far.
    """
    losses = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    rows = []
    for i in range(6):
        epoch, done = divmod(i, 3)
        mean = float(np.mean(losses[3 * epoch : i + 1]))
        rows.append(
            {
                "kind": "train",
                "epoch": epoch + 1,
                "iter": done,
                "step": i + 1,
                "lr": 0.1,
                "loss": mean,
                "samples": done + 1,
            }
        )
    found = intervals([*rows, {"kind": "train", "epoch": 3, "step": 7}, {"broken": True}])
    assert_allclose(found["loss"], losses)
    assert_allclose(smoothed(np.array(losses)), [1.5, 2, 3, 4, 5, 5.5])


def test_images_per_second_are_those_of_long_windows() -> None:
    """The first line of an epoch stands for one batch, and the last for a few: neither is drawn alone."""
    rows = [
        # 8 samples in 4 s, 80 in 8 s, 80 in 10 s, and 24 in a tenth of a second
        {"epoch": 1, "step": 1, "samples": 8, "ips_total": 2.0},
        {"epoch": 1, "step": 11, "samples": 88, "ips_total": 10.0},
        {"epoch": 1, "step": 21, "samples": 168, "ips_total": 8.0},
        {"epoch": 1, "step": 24, "samples": 192, "ips_total": 240.0},
        {"epoch": 2, "step": 25, "samples": 8, "ips_total": 4.0},
        {"epoch": 2, "step": 35, "samples": 88, "ips_total": 20.0},
        {"broken": True},
        {"epoch": 2, "step": 38, "samples": 112},
    ]
    steps, rates = throughput(rows)
    assert_array_equal(steps, [11, 24, 35])
    assert_allclose(rates, [88 / 12, 104 / 10.1, 88 / 6])
    assert_allclose(epoch_rates(rows), [192 / 22.1, 88 / 6])
    assert throughput([])[0].size == 0


def test_an_epoch_of_one_line_and_a_resumed_epoch() -> None:
    rows = [
        {"epoch": 1, "step": 1, "samples": 5, "ips_total": 5.0},
        {"epoch": 2, "step": 40, "samples": 400, "ips_total": 10.0},
        {"epoch": 2, "step": 45, "samples": 450, "ips_total": 5.0},
    ]
    assert epoch_rates(rows) == [5.0, 450 / 50]
