"""Figures of a ranking: how well scores put the samples of one class before all others.

Each distinct score is a threshold, so samples with equal scores are on the same side of it. Counts are whole
numbers, so a figure is exact up to the rounding of its last division.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ppxcls.system.arrays import Array


@dataclass(frozen=True)
class Ranking:
    """Numbers of samples with a score of at least each threshold, from the highest threshold to the lowest.

    The first threshold is above all scores.

    Attributes:
        hits: samples of the positive class, int64 [thresholds + 1]; 0 at the start.
        false_alarms: other samples, int64 [thresholds + 1]; 0 at the start.
    """

    hits: Array
    false_alarms: Array

    @property
    def positive_count(self) -> int:
        """Number of samples of the positive class."""
        return int(self.hits[-1])

    @property
    def negative_count(self) -> int:
        """Number of other samples."""
        return int(self.false_alarms[-1])

    @property
    def has_both_classes(self) -> bool:
        """True if there are samples of the positive class and other samples."""
        return bool(self.positive_count and self.negative_count)


def ranked(scores: Array, is_positive: Array) -> Ranking:
    """Returns the ranking of samples by their scores.

    Args:
        scores: scores of the samples, without NaN, [n]. A higher score speaks for the positive class.
        is_positive: True for samples of the positive class, bool [n].
    """
    order = np.argsort(-scores, kind="stable")
    sorted_scores = scores[order]
    ends = np.append(np.flatnonzero(sorted_scores[1:] != sorted_scores[:-1]), len(scores) - 1)
    ends = ends[ends >= 0]  # without samples, there is no end
    hits = np.cumsum(is_positive[order], dtype=np.int64)[ends]
    return Ranking(np.append(0, hits), np.append(0, ends + 1 - hits))


def roc_area(ranking: Ranking) -> float:
    """Returns the area under the ROC curve: the probability that a positive sample has the higher score.

    A tie counts half. It is NaN if a class is missing.
    """
    if not ranking.has_both_classes:
        return math.nan
    hits, false_alarms = ranking.hits, ranking.false_alarms
    double_area = int((np.diff(false_alarms) * (hits[1:] + hits[:-1])).sum())
    return double_area / (2 * ranking.positive_count * ranking.negative_count)


def average_precision(ranking: Ranking) -> float:
    """Returns the sum of the precisions at all thresholds, weighted by the increase of the recall.

    It is NaN if the positive class is missing.
    """
    if not ranking.positive_count:
        return math.nan
    hits = ranking.hits[1:]
    precisions = hits / (hits + ranking.false_alarms[1:])
    return float((np.diff(ranking.hits) * precisions).sum() / ranking.positive_count)


def equal_error_rate(ranking: Ranking) -> float:
    """Returns the rate at which the false alarms and the misses are equal, on the lines of the ROC curve.

    It is NaN if a class is missing.
    """
    if not ranking.has_both_classes:
        return math.nan
    false_alarm_rates = ranking.false_alarms / ranking.negative_count
    miss_rates = 1 - ranking.hits / ranking.positive_count
    # The difference grows with each threshold, from -1 to 1.
    return float(np.interp(0.0, false_alarm_rates - miss_rates, false_alarm_rates))


def hit_rate_at(ranking: Ranking, max_false_alarm_rate: float) -> float:
    """Returns the largest share of hits at a threshold that gives few enough false alarms.

    It is NaN if a class is missing.

    Args:
        ranking: ranking of the samples.
        max_false_alarm_rate: largest share of the other samples with a score of at least the threshold.
    """
    if not ranking.has_both_classes:
        return math.nan
    is_allowed = ranking.false_alarms / ranking.negative_count <= max_false_alarm_rate
    return float(ranking.hits[is_allowed][-1] / ranking.positive_count)
