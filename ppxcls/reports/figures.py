"""Computes the figures of a report from predictions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ppxcls.calibration.reliability import Reliability, reliability
from ppxcls.reports.run_files import Samples
from ppxcls.system.arrays import Array
from ppxcls.train.proportions import Proportion, proportion


def topk_proportion(samples: Samples, k: int) -> Proportion:
    """Returns the proportion of samples with a label among the k best classes; k is at most 5."""
    hits = sum(
        label in best[:k] for label, best in zip(samples.labels.tolist(), samples.top_ids, strict=True)
    )
    return proportion(hits, len(samples))


def topk_proportions(samples: Samples, count: int) -> dict[int, Proportion]:
    """Returns the proportions for top-1 and, if there are more than 5 classes, top-5; keys are k."""
    return {k: topk_proportion(samples, k) for k in (1, 5) if k == 1 or count > k}


@dataclass(frozen=True)
class Confusions:
    """The non-zero entries of a confusion matrix.

    A full matrix of 21,841 classes would take 3.8 GB.

    Attributes:
        labels, predicted_ids, counts: label, predicted class, and number of samples of each entry, int64 [n]
            each.
    """

    labels: Array
    predicted_ids: Array
    counts: Array

    def matrix(self, count: int) -> Array:
        """Returns the number of samples by label (row) and predicted class (column), int64 [count, count]."""
        matrix = np.zeros((count, count), np.int64)
        matrix[self.labels, self.predicted_ids] = self.counts
        return matrix


def confusions(samples: Samples, count: int) -> Confusions:
    """Returns how often each label is predicted as each class."""
    pairs, counts = np.unique(samples.labels * count + samples.predicted_ids, return_counts=True)
    return Confusions(pairs // count, pairs % count, counts)


def by_class(samples: Samples, count: int) -> dict[str, Array]:
    """Returns precision, recall, F1, support and number of predictions of each class, [count] each.

    Undefined values are 0, as in scikit-learn.
    """
    hits = np.bincount(samples.labels[samples.labels == samples.predicted_ids], minlength=count).astype(float)
    support, predicted_counts = (
        np.bincount(ids, minlength=count) for ids in (samples.labels, samples.predicted_ids)
    )
    precision, recall = hits / np.maximum(predicted_counts, 1), hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(support + predicted_counts, 1)
    return {
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "support": support,
        "predicted": predicted_counts,
    }


def clustered_order(matrix: Array) -> Array:
    """Returns the classes in an order that places often confused classes side by side, int64 [count].

    SciPy's average linkage computes it from the distances ``1 - share of confusions``.
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


def most_confused(entries: Confusions, max_count: int = 30) -> list[tuple[int, int, int]]:
    """Returns label, predicted class and count of the most frequent mistakes."""
    mistakes = np.flatnonzero(entries.labels != entries.predicted_ids)
    mistakes = mistakes[np.argsort(-entries.counts[mistakes], kind="stable")][:max_count]
    rows = zip(
        entries.labels[mistakes].tolist(),
        entries.predicted_ids[mistakes].tolist(),
        entries.counts[mistakes].tolist(),
        strict=True,
    )
    return list(rows)


def sample_reliability(samples: Samples) -> Reliability:
    """Returns the agreement of the scores with the share of correct predictions, in 15 bins."""
    return reliability(samples.scores, samples.labels == samples.predicted_ids)


def worst_mistakes(samples: Samples, max_count: int) -> list[int]:
    """Returns the indices of the wrong predictions with the highest probabilities."""
    mistakes = np.flatnonzero(samples.labels != samples.predicted_ids)
    return mistakes[np.argsort(-samples.scores[mistakes], kind="stable")][:max_count].tolist()


def least_certain(samples: Samples, max_count: int) -> list[int]:
    """Returns the indices of the samples with the lowest probability of the predicted class."""
    return np.argsort(samples.scores, kind="stable")[:max_count].tolist()


def suspected_labels(samples: Samples, max_count: int) -> list[int]:
    """Returns the indices of the samples with a probably wrong label, the most suspect first.

    A sample is suspect if another class is predicted with at least the mean probability that the samples of
    that class give it (confident learning, Northcutt et al. 2021, arXiv:1911.00068, sec. 3.1). The samples
    must not have been used for training.
    """
    count = int(max(samples.labels.max(), samples.predicted_ids.max())) + 1
    class_sizes = np.bincount(samples.labels, minlength=count)
    thresholds = np.bincount(samples.labels, samples.label_scores, count) / np.maximum(class_sizes, 1)
    thresholds[class_sizes == 0] = 1.0
    suspects = np.flatnonzero(
        (samples.labels != samples.predicted_ids) & (samples.scores >= thresholds[samples.predicted_ids])
    )
    return suspects[np.argsort(samples.label_scores[suspects], kind="stable")][:max_count].tolist()
