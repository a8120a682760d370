"""The temperature of scores, against scipy and closed forms."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp, softmax

from ppxcls.calibration import temperature as module
from ppxcls.calibration.record import MAX_VALUES, Calibration
from ppxcls.calibration.temperature import best_temperature, calibrated, calibration_of, mean_loss
from ppxcls.system.arrays import Array
from ppxcls.system.json_text import json_text, read_json


def drawn(count: int, class_num: int = 4) -> tuple[Array, Array]:
    """Logits, and labels that are drawn from their softmax."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(count, class_num))
    return logits.astype(np.float32), (logits + rng.gumbel(size=logits.shape)).argmax(1)


def test_the_temperature_of_logits_that_are_three_times_too_large() -> None:
    logits, labels = drawn(20_000)
    assert abs(best_temperature(3 * logits, labels) - 3) < 0.1
    assert best_temperature(0.2 * logits, labels) == 1.0, "never surer than they are"
    assert abs(calibration_of(0.2 * logits, labels, "x").temperature - 0.2) < 0.01
    assert best_temperature(1e3 * logits, labels) == 10.0


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_the_temperature_is_that_of_scipy(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_VALUES", 400)  # several blocks
    logits, labels = drawn(1_000)
    logits = logits * np.float32(scale)
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(logits / math.exp(log_temperature), axis=1)[rows, labels].mean())

    expected = minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-7})
    temperature = best_temperature(logits, labels, smallest=0.1)
    np.testing.assert_allclose(temperature, math.exp(expected.x), rtol=1e-3)
    np.testing.assert_allclose(mean_loss(logits, labels, temperature), expected.fun, rtol=1e-6)
    np.testing.assert_allclose(
        calibrated(logits, temperature), softmax(logits / temperature, axis=1), rtol=1e-6
    )


def test_the_temperature_needs_no_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package without extras has none."""
    for name in ("scipy", "scipy.optimize"):
        monkeypatch.setitem(sys.modules, name, None)
    logits = np.tile(np.array([2.0, 0.0], np.float32), (100, 1))
    temperature = best_temperature(logits, (np.arange(100) >= 60).astype(int))
    assert temperature == pytest.approx(2 / math.log(1.5), rel=2e-9)


@pytest.mark.parametrize(("gap", "correct_count"), [(5.0, 90), (2.0, 60), (0.5, 99)])
def test_the_temperature_of_two_classes_has_a_closed_form(gap: float, correct_count: int) -> None:
    """If all images have the same gap, the score must be the share of correct predictions."""
    logits = np.tile(np.array([gap, 0.0], np.float32), (100, 1))
    labels = (np.arange(100) >= correct_count).astype(int)
    expected = gap / math.log(correct_count / (100 - correct_count))
    record = calibration_of(logits, labels, "x")
    np.testing.assert_allclose(record.temperature, expected, rtol=1e-5)
    share = correct_count / 100
    np.testing.assert_allclose(
        record.true_scores, [1 - share] * (100 - correct_count) + [share] * correct_count, 1e-4
    )


def test_images_without_a_wrong_prediction_make_no_score_surer() -> None:
    labels = np.arange(60) % 3
    logits = 2 * np.eye(3, dtype=np.float32)[labels]
    assert calibration_of(logits, labels, "x").temperature == 1.0


@pytest.mark.parametrize("count", [50, MAX_VALUES + 1_001])
def test_the_record_has_the_energies_and_scores_of_scipy(count: int) -> None:
    logits, labels = drawn(count)
    logits = 3 * logits.astype(np.float64)
    record = calibration_of(logits, labels, "val.txt")
    temperature = record.temperature
    energies = np.sort(-temperature * logsumexp(logits / temperature, axis=1))
    scores = np.sort(softmax(logits / temperature, axis=1)[np.arange(count), labels])
    assert len(record.energies) == len(record.true_scores) == min(count, MAX_VALUES)
    assert record.images == count
    assert list(record.images_per_class) == np.bincount(labels).tolist()
    places = np.linspace(0, 1, len(record.energies))
    for values, expected in ((record.energies, energies), (record.true_scores, scores)):
        np.testing.assert_allclose([values[0], values[-1]], [expected[0], expected[-1]], rtol=1e-5)
        ranks = np.searchsorted(expected, np.array(values) * (1 - 1e-6)) / (count - 1)
        assert np.abs(ranks - places).max() < 2 / count
    assert Calibration.from_json(read_json(json_text(record.to_json()).encode())) == record


def record_values() -> dict[str, object]:
    logits, labels = drawn(20)
    return dict(json.loads(json.dumps(calibration_of(logits, labels, "val.txt").to_json())))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", 0),
        ("temperature", -1.0),
        ("temperature", True),
        ("temperature", "1"),
        ("temperature", 1e300),
        ("temperature", 1e-320),
        ("temperature", None),
        ("source", 5),
        ("source", "x" * 5_000),
        ("images", 21),
        ("images", 0),
        ("images", 20.0),
        ("images_per_class", {}),
        ("images_per_class", [30, -10]),
        ("images_per_class", [1.5]),
        ("energies", [1.0] * 19),
        ("energies", [2.0] + [1.0] * 19),
        ("energies", [1e30] * 20),
        ("energies", "x" * 20),
        ("energies", [[]] * 20),
        ("true_scores", [0.5] * 19 + [1.5]),
        ("true_scores", [-0.5] + [0.5] * 19),
        ("true_scores", [None] * 20),
    ],
)
def test_a_hostile_record_is_refused_by_key(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key) as error:
        Calibration.from_json({**record_values(), key: value})
    assert len(str(error.value)) < 200


def test_a_source_can_forge_no_line() -> None:
    source = "x\nINFO: forged\x1b[2J\u202e"
    assert Calibration.from_json({**record_values(), "source": source}).source.isprintable()


def test_a_record_of_other_classes_is_refused() -> None:
    record = Calibration.from_json(record_values())
    record.check_classes(len(record.images_per_class))
    with pytest.raises(ValueError, match="expected 2 numbers as 'images_per_class', received 4"):
        record.check_classes(2)


@pytest.mark.parametrize("values", [None, [], 3, {}])
def test_a_value_that_is_no_record_is_refused(values: object) -> None:
    with pytest.raises(ValueError, match="expected"):
        Calibration.from_json(values)
