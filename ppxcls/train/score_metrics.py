"""Metrics of the scores of all samples: AUC, average precision, equal error rate, TPR at a FPR.

They need the scores of the whole evaluation, so they are for evaluation only. Each process keeps the logits
of its samples: 4 bytes per sample and class, once for all metrics of an evaluation. At the end, the scores of
a few classes at a time are gathered from all processes. So the figures do not depend on the number of
processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import paddle

from ppxcls.config.checks import Share
from ppxcls.system import distributed
from ppxcls.system.arrays import Array
from ppxcls.train.class_choice import ClassChoice, ClassMean, chosen_class, class_text, figure_name
from ppxcls.train.metrics import METRICS, Metric
from ppxcls.train.ranking import Ranking, average_precision, equal_error_rate, hit_rate_at, ranked, roc_area

_CLASSES_AT_ONCE = 64  # classes with gathered scores; for 50,000 samples, they take 26 MB
_ROWS_AT_ONCE = 4096  # samples whose logits are converted to float64 at once


class ScoreMetric(Metric):
    """A figure of the ranking of all samples by the probability of a class.

    Two classes are compared by the difference of their logits, and more classes by the logarithm of the
    probability, in float64. Probabilities in float32 would be equal for all confident samples.

    Args:
        figure: name of the figure in the results.
        class_num: number of classes.
        class_names: names of the classes; empty if they have none; None if they are not known yet.
        positive: the class that is looked for; None for class 1 of two classes. With more classes, None gives
            the mean over the classes, each against all others.
        weighted: True to weight the classes of that mean by their numbers of samples.
        has_mean: False if the metric has no mean over classes.

    Raises:
        ValueError: there are fewer than two classes, the class is unknown, or the metric needs a choice.
    """

    def __init__(
        self,
        figure: str,
        *,
        class_num: int,
        class_names: Sequence[str] | None,
        positive: int | str | None,
        weighted: bool = False,
        has_mean: bool = True,
    ) -> None:
        self.figures = (figure_name(figure),)
        self._class_num = class_num
        self._names = class_names or ()
        self._mean = ClassMean(figure, self._names)
        self._positive = chosen_class(positive, class_num, class_names, is_required=not has_mean)
        self._is_weighted = weighted
        # Read at the end, because a read makes the host wait. Other metrics keep the same tensors.
        self._parts: list[tuple[paddle.Tensor, paddle.Tensor]] = []

    def measure(self, ranking: Ranking) -> float:
        """Returns the figure of one class; NaN if it is not defined."""
        raise NotImplementedError

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> dict[str, paddle.Tensor]:
        """Keeps the logits and labels of a batch, and returns no sums.

        Args:
            logits: [N, class_num].
            labels: int64 [N].
        """
        self._parts.append((logits, labels))
        return {}

    def reset(self) -> None:
        """Forgets the samples of this process."""
        self._parts = []

    def results(self) -> dict[str, float]:
        """Returns the figure of the samples of all processes, and resets the samples.

        It is NaN if it is not defined, or if an output is not finite. If classes are left out of a mean, the
        number of the others is ``<figure>_classes``. All processes must call it.
        """
        figure = self.figures[0]
        logits, labels = self._taken_samples()
        log_sums = _log_sums(logits)
        all_labels = distributed.gathered_rows(labels).astype(np.int64)
        if distributed.sum_over_processes(np.isnan(log_sums).sum(keepdims=True))[0]:
            return {figure: math.nan}
        counts = np.bincount(all_labels, minlength=self._class_num)
        classes = range(self._class_num) if self._positive is None else [self._positive]
        values = np.array(
            [
                self.measure(ranked(scores, all_labels == class_id))
                for class_id, scores in _gathered_scores(logits, log_sums, classes)
            ]
        )
        if self._positive is None:
            return self._mean(values, counts if self._is_weighted else np.ones(len(counts)))
        if math.isnan(values[0]):
            text = class_text(self._positive, self._names)
            amount = "only samples" if counts[self._positive] else "no sample"
            self._mean.warn(f"{figure} is not defined: the evaluation has {amount} of {text}")
        return {figure: float(values[0])}

    def _taken_samples(self) -> tuple[Array, Array]:
        """Returns the logits and labels of this process, and forgets them."""
        parts, self._parts = self._parts, []
        count = sum(len(labels) for _, labels in parts)
        all_logits, all_labels = np.zeros((count, self._class_num), np.float32), np.zeros(count, np.int64)
        start = 0
        for logits, labels in parts:  # filled in, because a concatenation would hold all logits once more
            end = start + len(labels)
            all_logits[start:end], all_labels[start:end] = logits.numpy(), labels.numpy()
            start = end
        return all_logits, all_labels


def _log_sums(logits: Array) -> Array:
    """Returns the logarithm of the sum of exponentials of each row, float64 [n]; NaN if it is not finite."""
    parts = [np.zeros(0)]
    for start in range(0, len(logits), _ROWS_AT_ONCE):
        rows = logits[start : start + _ROWS_AT_ONCE].astype(np.float64)
        largest = rows.max(axis=1)
        with np.errstate(invalid="ignore"):  # for infinity
            parts.append(largest + np.log(np.exp(rows - largest[:, None]).sum(axis=1)))
    return np.concatenate(parts)


def _gathered_scores(logits: Array, log_sums: Array, classes: Sequence[int]) -> Iterator[tuple[int, Array]]:
    """Yields each class with the scores of the samples of all processes, float64 [N].

    Args:
        logits: logits of this process's samples, float32 [n, class_num].
        log_sums: ``_log_sums`` of them.
        classes: ids of the classes.
    """
    for start in range(0, len(classes), _CLASSES_AT_ONCE):
        block = list(classes[start : start + _CLASSES_AT_ONCE])
        columns = logits[:, block].astype(np.float64)
        other_columns = logits[:, [1 - i for i in block]] if logits.shape[1] == 2 else log_sums[:, None]
        scores = distributed.gathered_rows(columns - other_columns)
        yield from zip(block, scores.T, strict=True)


@METRICS.register
class AUC(ScoreMetric):
    """Area under the ROC curve: the probability that a sample of a class has a higher score than another one.

    With more than two classes, it is the mean over the classes, each against all others. Classes without
    samples are left out of the mean.

    Args:
        average: ``macro`` for a mean in which all classes count the same; ``weighted`` for a mean weighted by
            the numbers of samples.
        positive: id or name of the class that is looked for; null for class 1 of two classes, and for the
            mean over more classes.
        figure: name of the figure in the results, for a list with several metrics of this kind.
    """

    def __init__(
        self,
        class_num: int,
        class_names: Sequence[str] | None = None,
        *,
        average: Literal["macro", "weighted"] = "macro",
        positive: ClassChoice = None,
        figure: str = "AUC",
    ) -> None:
        super().__init__(
            figure,
            class_num=class_num,
            class_names=class_names,
            positive=positive,
            weighted=average == "weighted",
        )

    def measure(self, ranking: Ranking) -> float:
        """Returns the area under the ROC curve of one class; NaN if it is not defined."""
        return roc_area(ranking)


@METRICS.register
class AveragePrecision(ScoreMetric):
    """Average precision: mean of the precisions at all thresholds, weighted by the increase of the recall.

    It tells more than the AUC if the positive class is rare. With more than two classes, it is the mean over
    the classes, each against all others. Classes without samples are left out of the mean.

    Args:
        average: ``macro`` for a mean in which all classes count the same; ``weighted`` for a mean weighted by
            the numbers of samples.
        positive: id or name of the class that is looked for; null for class 1 of two classes, and for the
            mean over more classes.
        figure: name of the figure in the results, for a list with several metrics of this kind.
    """

    def __init__(
        self,
        class_num: int,
        class_names: Sequence[str] | None = None,
        *,
        average: Literal["macro", "weighted"] = "macro",
        positive: ClassChoice = None,
        figure: str = "AveragePrecision",
    ) -> None:
        super().__init__(
            figure,
            class_num=class_num,
            class_names=class_names,
            positive=positive,
            weighted=average == "weighted",
        )

    def measure(self, ranking: Ranking) -> float:
        """Returns the average precision of one class; NaN if it is not defined."""
        return average_precision(ranking)


@METRICS.register
class EER(ScoreMetric):
    """Equal error rate: the rate of false alarms at the threshold at which as many positives are missed.

    Between two thresholds, it is on the line of the ROC curve. A smaller value is better.

    Args:
        positive: id or name of the class that is looked for; null for class 1 of two classes. With more
            classes, it is required.
        figure: name of the figure in the results, for a list with several metrics of this kind.
    """

    def __init__(
        self,
        class_num: int,
        class_names: Sequence[str] | None = None,
        *,
        positive: ClassChoice = None,
        figure: str = "EER",
    ) -> None:
        super().__init__(
            figure, class_num=class_num, class_names=class_names, positive=positive, has_mean=False
        )
        self.smaller_is_better = self.figures

    def measure(self, ranking: Ranking) -> float:
        """Returns the equal error rate of one class; NaN if it is not defined."""
        return equal_error_rate(ranking)


@METRICS.register
class TprAtFpr(ScoreMetric):
    """Largest share of positives that are recognised at a threshold with few enough false alarms.

    PaddleClas tries 10,000 thresholds between 0 and 1, and this metric tries every score.

    Args:
        max_fpr: largest share of the other samples that may be taken for positives.
        positive: id or name of the class that is looked for; null for class 1 of two classes. With more
            classes, it is required.
        figure: name of the figure in the results, for a list with several metrics of this kind.
    """

    def __init__(
        self,
        class_num: int,
        class_names: Sequence[str] | None = None,
        *,
        max_fpr: Share = 0.001,
        positive: ClassChoice = None,
        figure: str = "TprAtFpr",
    ) -> None:
        super().__init__(
            figure, class_num=class_num, class_names=class_names, positive=positive, has_mean=False
        )
        self._max_fpr = max_fpr

    def measure(self, ranking: Ranking) -> float:
        """Returns the true positive rate of one class; NaN if it is not defined."""
        return hit_rate_at(ranking, self._max_fpr)
