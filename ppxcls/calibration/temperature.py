"""The temperature of a network's scores (Guo et al. 2017, arXiv:1706.04599)."""

from __future__ import annotations

import math

import numpy as np

from ppxcls.calibration.record import MAX_VALUES, Calibration
from ppxcls.system.arrays import Array

# A classifier that is not sure enough, such as one of smoothed labels, gets a temperature below 1.
SMALLEST_TEMPERATURE = 0.1
_LARGEST_TEMPERATURE = 10.0
_PRECISION = 1e-9  # of the temperature's logarithm
_BLOCK_VALUES = 1 << 21  # logits that are computed with at once, 16 MB


def best_temperature(logits: Array, labels: Array, *, smallest: float = 1.0) -> float:
    """Returns the divisor of logits, up to 10, that gives the smallest mean cross-entropy.

    The cross-entropy is convex in the inverse of the temperature. Its slope is the mean logit under the
    scores, less the logit of the true class.

    Args:
        logits: [N, class_num].
        labels: class of each image, int [N].
        smallest: smallest temperature. With 1, the scores never become surer than they are.
    """

    def is_too_sure(log_temperature: float) -> bool:
        return _slope(logits, labels, math.exp(-log_temperature)) > 0

    low, high = math.log(smallest), math.log(_LARGEST_TEMPERATURE)
    if not is_too_sure(low):
        return smallest
    if is_too_sure(high):
        return _LARGEST_TEMPERATURE
    while high - low > _PRECISION:
        middle = (low + high) / 2
        if is_too_sure(middle):
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def fitted_temperature(logits: Array, labels: Array) -> float:
    """Returns the best temperature of images that were not trained on.

    If no prediction is wrong, nothing tells how sure is too sure: the temperature is 1 or more.

    Args:
        logits: [N, class_num].
        labels: class of each image, int [N].
    """
    is_all_correct = bool((logits.argmax(1) == labels).all())
    smallest = 1.0 if is_all_correct else SMALLEST_TEMPERATURE
    return best_temperature(logits, labels, smallest=smallest)


def calibration_of(logits: Array, labels: Array, source: str) -> Calibration:
    """Returns the record of images that were not trained on.

    Args:
        logits: output of the network for each image, [N, class_num], N at least 1.
        labels: class of each image, int [N].
        source: name of the list, and whether its images have chosen the weights.
    """
    # As it is written: a reader of the file computes with the same number.
    temperature = _rounded(fitted_temperature(logits, labels))
    sums, true_logits = _sums_and_true_logits(logits, labels, temperature)
    return Calibration(
        temperature=temperature,
        source=source,
        images=len(labels),
        images_per_class=tuple(np.bincount(labels, minlength=logits.shape[1]).tolist()),
        energies=_order_statistics(-temperature * sums),
        true_scores=_order_statistics(np.minimum(np.exp(true_logits / temperature - sums), 1.0)),
    )


def calibrated(logits: Array, temperature: float = 1.0) -> Array:
    """Returns the scores: softmax(logits / temperature), float64 [..., class_num].

    They are NaN if a logit is not finite.
    """
    values = np.asarray(logits, np.float64)
    with np.errstate(invalid="ignore"):
        exponentials = np.exp((values - values.max(-1, keepdims=True)) / temperature)
        return np.asarray(exponentials / exponentials.sum(-1, keepdims=True))


def log_sums(logits: Array, temperature: float = 1.0) -> Array:
    """Returns log(sum(exp(logits / temperature))) of each image, float64 [N], for logits [N, class_num]."""
    values = np.asarray(logits, np.float64)
    largest = values.max(1)
    sums = np.exp((values - largest[:, np.newaxis]) / temperature).sum(1)
    return np.asarray(np.log(sums) + largest / temperature)


def mean_loss(logits: Array, labels: Array, temperature: float = 1.0) -> float:
    """Returns the mean cross-entropy of logits [N, class_num] that are divided by a temperature."""
    sums, true_logits = _sums_and_true_logits(logits, labels, temperature)
    return float((sums - true_logits / temperature).mean())


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _order_statistics(values: Array) -> tuple[float, ...]:
    """Returns the values in ascending order; of many, those at equal distances, with both ends."""
    values = np.sort(values)
    if len(values) > MAX_VALUES:
        values = values[np.linspace(0, len(values) - 1, MAX_VALUES).round().astype(int)]
    # 7 digits: more than float32 has.
    return tuple(float(f"{value:.7g}") for value in values.tolist())


def _blocks(logits: Array) -> list[slice]:
    rows = max(_BLOCK_VALUES // logits.shape[1], 1)
    return [slice(start, start + rows) for start in range(0, len(logits), rows)]


def _slope(logits: Array, labels: Array, inverse: float) -> float:
    """Returns the derivative of the mean cross-entropy by the inverse of the temperature."""
    total = 0.0
    for block in _blocks(logits):
        values = np.asarray(logits[block], np.float64)
        scores = calibrated(values, 1 / inverse)
        total += float((scores * values).sum() - values[np.arange(len(values)), labels[block]].sum())
    return total / len(labels)


def _sums_and_true_logits(logits: Array, labels: Array, temperature: float) -> tuple[Array, Array]:
    """Returns ``log_sums`` and the logit of the true class, of each image [N]."""
    sums, true_logits = np.zeros(len(labels)), np.zeros(len(labels))
    for block in _blocks(logits):
        values = np.asarray(logits[block], np.float64)
        sums[block] = log_sums(values, temperature)
        true_logits[block] = values[np.arange(len(values)), labels[block]]
    return sums, true_logits
