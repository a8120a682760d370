"""Compares the scores of predictions with the share of correct predictions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ppxcls.system.arrays import Array


@dataclass(frozen=True)
class Reliability:
    """Agreement between the score of the predicted class and the share of correct predictions.

    Attributes:
        error: expected calibration error over bins of equal width (Guo et al. 2017, arXiv:1706.04599, eq. 3).
        confidence, accuracy, counts: mean score, share of correct predictions, and number of samples of each
            bin that is not empty.
    """

    error: float
    confidence: Array
    accuracy: Array
    counts: Array


def reliability(scores: Array, is_correct: Array, bins: int = 15) -> Reliability:
    """Returns the agreement in bins of equal width.

    Args:
        scores: score of the predicted class of each sample, from 0 to 1, [n], n at least 1.
        is_correct: True for each correct prediction, [n].
        bins: number of bins.
    """
    bin_ids = np.clip(np.ceil(scores * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(bin_ids, minlength=bins)
    is_filled = counts > 0
    confidence = np.bincount(bin_ids, scores, bins)[is_filled] / counts[is_filled]
    accuracy = np.bincount(bin_ids, is_correct, bins)[is_filled] / counts[is_filled]
    error = float((counts[is_filled] * abs(confidence - accuracy)).sum() / len(scores))
    return Reliability(error, confidence, accuracy, counts[is_filled])
