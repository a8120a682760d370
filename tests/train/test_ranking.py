"""Figures of rankings against scikit-learn, exact fractions and exhaustive search, on scores with many ties."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from ppxcls.train.ranking import average_precision, equal_error_rate, hit_rate_at, ranked, roc_area


def sample(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores with few or many distinct values, and labels of which both are there."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 300))
    scores = rng.integers(0, int(rng.choice([1, 2, 5, 50, 10**6])), count) / 7 - 3
    labels = rng.random(count) < rng.choice([0.05, 0.5, 0.9])
    labels[:2] = [True, False]
    return scores, labels


def exact_equal_error_rate(scores: np.ndarray, labels: np.ndarray) -> Fraction:
    """Goes along the ROC curve, in fractions, until the false alarms are as frequent as the misses."""
    last_alarms, last_misses = Fraction(0), Fraction(1)
    for threshold in sorted(set(scores.tolist()), reverse=True):
        alarms = Fraction(int((scores[~labels] >= threshold).sum()), int((~labels).sum()))
        misses = Fraction(int((scores[labels] < threshold).sum()), int(labels.sum()))
        if alarms >= misses:
            share = (last_misses - last_alarms) / (last_misses - last_alarms + alarms - misses)
            return last_alarms + share * (alarms - last_alarms)
        last_alarms, last_misses = alarms, misses
    raise AssertionError("below all scores, there are no misses")


@pytest.mark.parametrize("seed", range(40))
def test_figures_of_random_scores(seed: int) -> None:
    scores, labels = sample(seed)
    ranking = ranked(scores, labels)
    assert roc_area(ranking) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores), abs=1e-12)
    assert average_precision(ranking) == pytest.approx(
        sklearn_metrics.average_precision_score(labels, scores), abs=1e-12
    )
    assert equal_error_rate(ranking) == pytest.approx(
        float(exact_equal_error_rate(scores, labels)), abs=1e-12
    )
    for max_fpr in (0.0, 0.01, 0.1, 0.5, 1.0):
        best = max(
            (scores[labels] >= threshold).mean()
            for threshold in [*np.unique(scores), math.inf]
            if (scores[~labels] >= threshold).mean() <= max_fpr
        )
        assert hit_rate_at(ranking, max_fpr) == best


def test_equal_scores_are_chance() -> None:
    ranking = ranked(np.zeros(10), np.arange(10) < 3)
    assert (roc_area(ranking), equal_error_rate(ranking)) == (0.5, 0.5)
    assert average_precision(ranking) == 0.3  # the share of positives
    assert (hit_rate_at(ranking, 0.999), hit_rate_at(ranking, 1.0)) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("labels", "precision"), [([], math.nan), ([False], math.nan), ([True], 1.0), ([True, True], 1.0)]
)
def test_figures_that_need_both_classes(labels: list[bool], precision: float) -> None:
    ranking = ranked(np.arange(len(labels), dtype=float), np.array(labels, bool))
    assert math.isnan(roc_area(ranking))
    assert math.isnan(equal_error_rate(ranking))
    assert math.isnan(hit_rate_at(ranking, 0.5))
    assert average_precision(ranking) == pytest.approx(precision, nan_ok=True)


def test_infinite_scores_are_the_first_and_the_last() -> None:
    ranking = ranked(np.array([-math.inf, 1.0, math.inf]), np.array([False, False, True]))
    assert roc_area(ranking) == 1
