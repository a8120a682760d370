"""Risk over coverage against closed forms and a loop."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ppxcls.calibration.reliability import reliability
from ppxcls.calibration.risk import risk_curve
from ppxcls.calibration.temperature import best_temperature, calibrated


def test_the_curve_is_that_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    scores, is_correct = rng.random(50), rng.random(50) < 0.7
    pairs = sorted(zip(scores.tolist(), is_correct.tolist(), strict=True), reverse=True)
    expected = [np.mean([not is_right for _, is_right in pairs[:k]]) for k in range(1, 51)]
    curve = risk_curve(scores, is_correct)
    np.testing.assert_allclose(curve.risks, expected)
    assert curve.area == pytest.approx(np.mean(expected))
    assert curve.at(1.0) == (pytest.approx(1 - is_correct.mean()), min(scores))
    assert curve.at(0.5) == (pytest.approx(expected[24]), pairs[24][0])


def test_equal_scores_are_answered_in_any_order() -> None:
    """The risk is the mean over all orders."""
    is_correct = np.array([True, False, True, False])
    scores = np.array([0.5, 0.9, 0.5, 0.5])
    orders = [(1, *order) for order in itertools.permutations((0, 2, 3))]
    expected = np.mean(
        [[1 - is_correct[list(order[:k])].mean() for k in range(1, 5)] for order in orders], axis=0
    )
    np.testing.assert_allclose(risk_curve(scores, is_correct).risks, expected)
    assert risk_curve(np.full(4, 0.3), is_correct).area == 0.5


def test_the_smallest_area_has_all_mistakes_last() -> None:
    """Of n images and m mistakes, the risks are 0, and then i / (n - m + i)."""
    is_correct = np.arange(20) < 15
    curve = risk_curve(np.linspace(1, 0.1, 20), is_correct)
    assert curve.area == pytest.approx(sum(i / (15 + i) for i in range(1, 6)) / 20)


def test_the_temperature_lowers_the_calibration_error_of_sure_logits() -> None:
    rng = np.random.default_rng(1)
    logits = 2 * rng.normal(size=(20_000, 5))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(1)
    is_correct = logits.argmax(1) == labels
    temperature = best_temperature(4 * logits[:10_000], labels[:10_000])
    before, after = (
        reliability(calibrated(4 * logits[10_000:], divisor).max(1), is_correct[10_000:]).error
        for divisor in (1.0, temperature)
    )
    assert before > 0.1
    assert after < 0.03, "of images that the temperature was not fitted to"
