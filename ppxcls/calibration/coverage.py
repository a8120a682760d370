"""Sets of classes that contain the true class with a stated probability (LAC, arXiv:1609.00451)."""

from __future__ import annotations

from ppxcls.calibration.ranks import ROUNDING, check_share, upper_limit
from ppxcls.calibration.record import Calibration
from ppxcls.system.arrays import Array


def score_limit(calibration: Calibration, coverage: float) -> float:
    """Returns the smallest score of a class in a set.

    Of images like those of the calibration, at least the share ``coverage`` has its true class in its set.
    This is a mean over all classes: a single class may have less.

    Args:
        calibration: record of the calibration.
        coverage: smallest share of images whose set contains the true class, between 0 and 1.

    Raises:
        CalibrationError: there are too few calibration images for such a large coverage.
    """
    check_share("coverage", coverage)
    doubts = [-score for score in reversed(calibration.true_scores)]
    limit = -upper_limit(
        doubts, calibration.images, round(1 - coverage, 12), wish=f"a coverage of {coverage:g}"
    )
    return limit * (1 - ROUNDING)


def class_sets(scores: Array, limit: float) -> Array:
    """Returns the classes of each set, bool [N, class_num]: those whose score is not below the limit.

    A set is empty if no class has such a score. Then the image is unlike the known ones, or its class is.

    Args:
        scores: scores of the classes, [N, class_num].
        limit: result of ``score_limit``.
    """
    is_in_set: Array = scores >= limit
    return is_in_set
