"""Metrics of the predicted classes of all samples: precision, recall, F1, Cohen's kappa. For evaluation only.

They are counts, which add up exactly over all processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import paddle

from ppxcls.system import distributed
from ppxcls.system.arrays import Array
from ppxcls.train.class_choice import ClassChoice, ClassMean, chosen_class, figure_name
from ppxcls.train.metrics import METRICS, Metric


class LabelMetric(Metric):
    """A figure of the labels and predicted classes of all samples.

    Args:
        class_num: number of classes.
    """

    def __init__(self, class_num: int) -> None:
        self._class_num = class_num
        self._parts: list[paddle.Tensor] = []  # read at the end, because a read makes the host wait

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> dict[str, paddle.Tensor]:
        """Keeps the labels and predictions of a batch, and returns no sums.

        Args:
            logits: [N, class_num].
            labels: int64 [N].
        """
        self._parts.append(paddle.stack([labels, logits.argmax(axis=-1)]))
        return {}

    def reset(self) -> None:
        """Forgets the samples of this process."""
        self._parts = []

    def _taken_pairs(self) -> tuple[Array, Array]:
        """Returns labels and predicted classes of this process, int64 [n] each, and forgets them."""
        parts, self._parts = self._parts, []
        if not parts:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        labels, predicted_ids = paddle.concat(parts, axis=1).numpy()
        return labels, predicted_ids


@METRICS.register
class ClassReport(LabelMetric):
    """Precision, recall, F1 and balanced accuracy, from a confusion matrix. For evaluation only.

    The confusion matrices of all processes add up exactly. scikit-learn computes the measures.

    Args:
        class_num: number of classes.
    """

    figures = ("precision", "recall", "f1", "balanced_accuracy")

    def results(self) -> dict[str, float]:
        """Returns means over the classes that occur, from the samples of all processes.

        It also resets the counts. All processes must call it.
        """
        from sklearn.metrics import precision_recall_fscore_support

        matrix = np.zeros((self._class_num, self._class_num), np.int64)
        np.add.at(matrix, self._taken_pairs(), 1)
        total = distributed.sum_over_processes(matrix.reshape(-1)).reshape(matrix.shape)
        true_classes, predicted_classes = np.nonzero(total)
        weights = total[true_classes, predicted_classes]
        classes = np.arange(len(total))
        rows = precision_recall_fscore_support(
            true_classes, predicted_classes, labels=classes, sample_weight=weights, zero_division=0
        )
        self.by_class = {
            name: row.tolist()
            for name, row in zip(("precision", "recall", "f1", "support"), rows, strict=True)
        }
        self.by_class["confusion_matrix"] = total.astype(int).tolist()
        has_samples = rows[3] > 0
        means = {
            name: float(row[has_samples].mean())
            for name, row in zip(("precision", "recall", "f1"), rows, strict=False)
        }
        return {**means, "balanced_accuracy": means["recall"]}


@METRICS.register
class F1(LabelMetric):
    """F1 score: twice the correct predictions of a class, divided by its predictions plus its samples.

    Args:
        average: ``macro`` for the mean over the classes that have samples; ``weighted`` for this mean
            weighted by the numbers of samples; ``micro`` for the score of all samples together, which is the
            accuracy; ``binary`` for the score of one class.
        positive: id or name of that class, for ``binary`` only; null for class 1 of two classes.
        figure: name of the figure in the results, for a list with several metrics of this kind.
    """

    def __init__(
        self,
        class_num: int,
        class_names: Sequence[str] | None = None,
        *,
        average: Literal["macro", "weighted", "micro", "binary"] = "macro",
        positive: ClassChoice = None,
        figure: str = "F1",
    ) -> None:
        is_binary = average == "binary"
        if positive is not None and not is_binary:
            raise ValueError(f"positive: expected null with average {average!r}, received {positive!r}")
        super().__init__(class_num)
        self.figures = (figure_name(figure),)
        self._average = average
        self._positive = (
            chosen_class(positive, class_num, class_names, is_required=True) if is_binary else None
        )
        self._mean = ClassMean(figure, class_names or ())

    def results(self) -> dict[str, float]:
        """Returns the score of the samples of all processes, and resets the counts.

        If classes without samples are left out of a mean, the number of the others is ``<figure>_classes``.
        All processes must call it.
        """
        labels, predicted_ids = self._taken_pairs()
        counts = [
            np.bincount(ids, minlength=self._class_num)
            for ids in (labels[labels == predicted_ids], labels, predicted_ids)
        ]
        sums = distributed.sum_over_processes(np.concatenate(counts))
        hits, support, predicted_counts = sums.reshape(3, -1)
        if self._average == "micro":
            return {self.figures[0]: float(hits.sum() / max(support.sum(), 1))}
        scores = 2 * hits / np.maximum(support + predicted_counts, 1)
        if self._positive is not None:
            return {self.figures[0]: float(scores[self._positive])}
        is_weighted = self._average == "weighted"
        scores = np.where(support > 0, scores, math.nan)
        return self._mean(scores, support if is_weighted else np.ones(len(scores)))


@METRICS.register
class CohenKappa(LabelMetric):
    """Cohen's kappa: agreement of predictions and labels beyond chance; 1 is perfect, and 0 is chance.

    With weights, the classes must be in a meaningful order, such as the grades of a disease.

    Args:
        weights: weight of a mistake: null if all mistakes count the same; ``linear`` or ``quadratic`` for the
            distance between the ids of the classes, or its square.
        figure: name of the figure in the results, for a list with several metrics of this kind.
    """

    def __init__(
        self,
        class_num: int,
        weights: Literal["linear", "quadratic"] | None = None,
        figure: str = "CohenKappa",
    ) -> None:
        super().__init__(class_num)
        self.figures = (figure_name(figure),)
        self._weights = weights
        self._mean = ClassMean(figure, ())

    def results(self) -> dict[str, float]:
        """Returns kappa of the samples of all processes, and resets the counts.

        It is NaN if all labels and predictions are of one class. All processes must call it.
        """
        labels, predicted_ids = self._taken_pairs()
        parts = [
            np.array([self._cost(abs(labels - predicted_ids)).sum()]),
            np.bincount(labels, minlength=self._class_num),
            np.bincount(predicted_ids, minlength=self._class_num),
        ]
        sums = distributed.sum_over_processes(np.concatenate(parts))
        support, predicted_counts = sums[1:].reshape(2, -1)
        # The mean cost if predictions and labels were independent, without a matrix of all pairs of classes.
        differences = np.arange(1 - self._class_num, self._class_num)
        pair_counts = np.correlate(support, predicted_counts, "full")
        expected_cost = float((self._cost(abs(differences)) * pair_counts).sum())
        if not expected_cost:
            self._mean.warn(f"{self.figures[0]} is not defined: all labels and predictions are of one class")
            return {self.figures[0]: math.nan}
        return {self.figures[0]: 1 - float(sums[0]) * float(support.sum()) / expected_cost}

    def _cost(self, distances: Array) -> Array:
        """Returns the costs of mistakes by the distances between the ids of the classes."""
        if self._weights == "quadratic":
            return distances.astype(np.float64) ** 2
        if self._weights == "linear":
            return distances.astype(np.float64)
        return (distances > 0).astype(np.float64)
