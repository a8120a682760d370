"""The figures of a report, from predictions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ppxcls.reports.record import Samples

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Share:
    """A share of samples, with its 95 % confidence interval.

    Attributes:
        value: the share.
        low, high: ends of the interval.
    """

    value: float
    low: float
    high: float


def share(hits: int, count: int) -> Share:
    """A share and Wilson's score interval (Wilson 1927, doi:10.1080/01621459.1927.10502953) at 95 %."""
    z, p = 1.959963984540054, hits / count
    center = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return Share(p, max(center - half, 0.0), min(center + half, 1.0))


def topk_share(samples: Samples, k: int) -> Share:
    """The share of samples whose label is among the k best classes; k is at most 5."""
    hits = sum(
        label in best[:k] for label, best in zip(samples.labels.tolist(), samples.top_ids, strict=True)
    )
    return share(hits, len(samples))


def topk_shares(samples: Samples, count: int) -> dict[int, Share]:
    """Top-1, and top-5 if there are more classes; by k."""
    return {k: topk_share(samples, k) for k in (1, 5) if k == 1 or count > k}


@dataclass(frozen=True)
class Confusions:
    """The entries of a confusion matrix that are not zero.

    A whole matrix of 21,841 classes would have 3.8 GB.

    Attributes:
        labels, predicted, counts: class of the samples, predicted class, and number of samples, int64 [n]
            each.
    """

    labels: Array
    predicted: Array
    counts: Array

    def matrix(self, count: int) -> Array:
        """Number of samples by label (row) and predicted class (column), int64 [count, count]."""
        matrix = np.zeros((count, count), np.int64)
        matrix[self.labels, self.predicted] = self.counts
        return matrix


def confusions(samples: Samples, count: int) -> Confusions:
    """Which labels are predicted as which classes, and how often."""
    pairs, counts = np.unique(samples.labels * count + samples.predicted, return_counts=True)
    return Confusions(pairs // count, pairs % count, counts)


def by_class(samples: Samples, count: int) -> dict[str, Array]:
    """Precision, recall, F1 and support of each class, [count] each.

    What is not defined is 0, as in scikit-learn.
    """
    hits = np.bincount(samples.labels[samples.labels == samples.predicted], minlength=count).astype(float)
    support, predicted = (np.bincount(ids, minlength=count) for ids in (samples.labels, samples.predicted))
    precision, recall = hits / np.maximum(predicted, 1), hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(support + predicted, 1)
    return {"precision": precision, "recall": recall, "f1": f1, "support": support, "predicted": predicted}


def clustered_order(matrix: Array) -> Array:
    """The classes in an order that puts those side by side that are often taken for each other, int64 [count].

    Average linkage of ``1 - share of confusions``, by SciPy.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(matrix) < 3:
        return np.arange(len(matrix))
    rates = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    likeness = (rates + rates.T) / 2
    distances = 1 - np.clip(likeness, 0, 1)
    np.fill_diagonal(distances, 0)
    return np.asarray(leaves_list(linkage(squareform(distances, checks=False), "average")))


def most_confused(found: Confusions, most: int = 30) -> list[tuple[int, int, int]]:
    """Label, predicted class and count of the most frequent mistakes."""
    wrong = np.flatnonzero(found.labels != found.predicted)
    wrong = wrong[np.argsort(-found.counts[wrong], kind="stable")][:most]
    rows = zip(
        found.labels[wrong].tolist(),
        found.predicted[wrong].tolist(),
        found.counts[wrong].tolist(),
        strict=True,
    )
    return list(rows)


@dataclass(frozen=True)
class Calibration:
    """How far the probability of the predicted class is the share of correct predictions.

    Attributes:
        error: expected calibration error over bins of equal width (Guo et al. 2017, arXiv:1706.04599, eq. 3).
        confidence, accuracy, counts: means and number of samples of each bin that has some.
    """

    error: float
    confidence: Array
    accuracy: Array
    counts: Array


def calibration(samples: Samples, bins: int = 15) -> Calibration:
    """The calibration of the predictions in bins of equal width."""
    correct = samples.labels == samples.predicted
    which = np.clip(np.ceil(samples.scores * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(which, minlength=bins)
    kept = counts > 0
    confidence = np.bincount(which, samples.scores, bins)[kept] / counts[kept]
    accuracy = np.bincount(which, correct, bins)[kept] / counts[kept]
    error = float((counts[kept] * abs(confidence - accuracy)).sum() / len(samples))
    return Calibration(error, confidence, accuracy, counts[kept])


def worst_mistakes(samples: Samples, most: int) -> list[int]:
    """Numbers of the wrong samples with the highest probabilities."""
    wrong = np.flatnonzero(samples.labels != samples.predicted)
    return wrong[np.argsort(-samples.scores[wrong], kind="stable")][:most].tolist()


def least_certain(samples: Samples, most: int) -> list[int]:
    """Numbers of the samples whose predicted class has the lowest probability."""
    return np.argsort(samples.scores, kind="stable")[:most].tolist()


def suspected_labels(samples: Samples, most: int) -> list[int]:
    """Numbers of the samples whose label is probably wrong, the most suspect first.

    A sample is suspect if another class is predicted with at least the mean probability that the samples of
    that class give it (confident learning, Northcutt et al. 2021, arXiv:1911.00068, sec. 3.1). The samples
    must not have been trained on.
    """
    count = int(max(samples.labels.max(), samples.predicted.max())) + 1
    sizes = np.bincount(samples.labels, minlength=count)
    thresholds = np.bincount(samples.labels, samples.label_scores, count) / np.maximum(sizes, 1)
    thresholds[sizes == 0] = 1.0
    suspect = np.flatnonzero(
        (samples.labels != samples.predicted) & (samples.scores >= thresholds[samples.predicted])
    )
    return suspect[np.argsort(samples.label_scores[suspect], kind="stable")][:most].tolist()
