"""Limits of energies and scores: closed forms, any ties, and the coverage of random draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import logsumexp, softmax
from scipy.stats import binom

from ppxcls.calibration.coverage import class_sets, score_limit
from ppxcls.calibration.ranks import CalibrationError
from ppxcls.calibration.record import MAX_VALUES, Calibration
from ppxcls.calibration.temperature import calibrated, calibration_of
from ppxcls.calibration.unknown import energies, energy_limit


def record(energy: list[float] | None = None, scores: list[float] | None = None) -> Calibration:
    values = energy or scores or []
    return Calibration(1.0, "list", len(values), (len(values),), tuple(energy or ()), tuple(scores or ()))


def draws(count: int, seed: int, spread: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Returns logits of five classes, and labels that are drawn from another softmax of them."""
    rng = np.random.default_rng(seed)
    logits = spread * rng.normal(size=(count, 5))
    labels = np.array([rng.choice(5, p=row) for row in softmax(logits / 1.5, axis=1)])
    return logits, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_energies_are_scipys(temperature: float) -> None:
    logits = np.random.default_rng(0).normal(size=(20, 7)) * 300  # exp of them would overflow
    expected = -temperature * logsumexp(logits / temperature, axis=1)
    np.testing.assert_allclose(energies(logits, temperature), expected, rtol=1e-12)
    assert energies(np.zeros((1, 8)), temperature)[0] == pytest.approx(-temperature * math.log(8))


@pytest.mark.parametrize(("share", "rank"), [(0.05, 19), (0.1, 18), (0.5, 10), (0.06, 19)])
def test_the_limit_is_the_order_statistic_of_the_paper(share: float, rank: int) -> None:
    """Of 19 images, the ceil(20 (1 - share))-th smallest energy, and the mirrored score."""
    values = [float(i) for i in range(1, 20)]
    assert energy_limit(record(energy=values), share) == pytest.approx(rank, rel=2e-5)
    scores = [value / 20 for value in values]
    assert score_limit(record(scores=scores), 1 - share) == pytest.approx((20 - rank) / 20, rel=2e-5)


def test_too_few_images_are_told() -> None:
    few = [float(i) for i in range(18)]
    expected = "to turn away at most 0.05 of known images needs at least 19 calibration images, and the record has 18"
    with pytest.raises(CalibrationError, match=f"^{expected}$"):
        energy_limit(record(energy=few), 0.05)
    with pytest.raises(
        CalibrationError, match=r"^a coverage of 0.999 needs at least 999 calibration images, and .* has 18$"
    ):
        score_limit(record(scores=[0.5] * 18), 0.999)


@pytest.mark.parametrize("share", [0, 1, -0.1, 5, True, "0.05", math.nan, None])
def test_a_share_is_between_0_and_1(share: float) -> None:
    with pytest.raises(
        CalibrationError, match=r"^unknown share: expected a number between 0 and 1, such as 0.05, re"
    ):
        energy_limit(record(energy=[0.0] * 50), share)
    with pytest.raises(CalibrationError, match=r"^coverage: expected a number between 0 and 1"):
        score_limit(record(scores=[0.5] * 50), share)


@pytest.mark.parametrize("seed", range(40))
def test_no_more_calibration_images_are_turned_away_than_stated(seed: int) -> None:
    """For energies with any ties, for few and many images, and after the rounding of the record."""
    rng = np.random.default_rng(seed)
    count = int(rng.choice([20, 57, 300, MAX_VALUES, MAX_VALUES + 1, 7001]))
    logits = np.repeat(rng.normal(size=(int(rng.integers(1, 40)), 4)), count, axis=0)
    logits = logits[rng.permutation(len(logits))[:count]] * 10.0 ** rng.integers(-3, 4)
    labels = rng.integers(0, 4, count)
    calibration = calibration_of(logits.astype(np.float32), labels, "list")
    share = float(rng.choice([0.05, 0.1, 0.333, 0.9]))
    values = energies(logits, calibration.temperature)
    assert (values > energy_limit(calibration, share)).mean() <= share
    scores = calibrated(logits, calibration.temperature)
    sets = class_sets(scores, score_limit(calibration, 1 - share))
    assert sets[np.arange(count), labels].mean() >= 1 - share - 1e-12


@pytest.mark.parametrize("coverage", [0.8, 0.95])
def test_coverage_of_2000_draws_is_in_its_interval(coverage: float) -> None:
    """Calibration and judged images are drawn alike, so the true class is in the sets as often as stated."""
    calibration = calibration_of(*draws(6000, seed=1), "list")
    logits, labels = draws(2000, seed=2)
    scores = calibrated(logits, calibration.temperature)
    sets = class_sets(scores, score_limit(calibration, coverage))
    low, high = binom.interval(0.999, 2000, coverage)
    assert low <= sets[np.arange(2000), labels].sum() <= high
    assert (sets.sum(1) > 1).any()
    is_turned_away = energies(logits, calibration.temperature) > energy_limit(calibration, 1 - coverage)
    low, high = binom.interval(0.999, 2000, 1 - coverage)
    assert low <= is_turned_away.sum() <= high


def test_unlike_images_are_turned_away() -> None:
    """A network has one large logit for a known image, and none for an image of a kind that it has not seen."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 5, 1000)
    calibration = calibration_of(8 * np.eye(5)[labels] + rng.normal(size=(1000, 5)), labels, "list")
    others = 2 * rng.normal(size=(500, 5))
    assert (energies(others, calibration.temperature) > energy_limit(calibration, 0.05)).mean() > 0.5
