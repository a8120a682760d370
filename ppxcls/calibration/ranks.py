"""Limits from the sorted values of calibration images, with the correction for their number.

If images that come later are like the ``n`` calibration images, the value of a new one is above the k-th
smallest value of those with a probability of at most 1 - k / (n + 1), for any distribution (split conformal
prediction; Vovk et al. 2005, Algorithmic Learning in a Random World).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ppxcls.system.errors import UserError

# Relative. The same image has slightly different numbers in another batch, in an exported file, and in the
# record. An image that is on a limit must not be on its wrong side for that reason.
ROUNDING = 1e-5
_RANK_ERROR = 1e-9  # of the product of two floating-point numbers


class CalibrationError(UserError):
    """A record of a calibration does not exist, or has too few images for a wish."""


def upper_limit(values: Sequence[float], images: int, share: float, *, wish: str) -> float:
    """Returns a value that at most a share of the images is above.

    Args:
        values: values of the calibration images, in ascending order. If there are fewer values than images,
            they are order statistics at equal distances, with both ends.
        images: number of calibration images.
        share: largest share of images above the value, between 0 and 1.
        wish: words for the share, for the message.

    Raises:
        CalibrationError: there are too few images for such a small share.
    """
    rank = math.ceil((images + 1) * (1 - share) - _RANK_ERROR)
    if rank > images:
        raise CalibrationError(
            f"{wish} needs at least {smallest_number(share):,} calibration images, "
            f"and the record has {images:,}"
        )
    index = rank - 1
    if len(values) < images:  # the next value of at least this rank, whichever way it was rounded
        index = min(math.ceil(rank * (len(values) - 1) / (images - 1)), len(values) - 1)
    return values[index]


def smallest_number(share: float) -> int:
    """Returns the smallest number of calibration images for a share; ``upper_limit`` explains it."""
    return math.ceil(1 / share - _RANK_ERROR) - 1


def check_share(name: str, share: float) -> None:
    """Checks that a share is a number between 0 and 1, without both.

    Args:
        name: name of the argument, for the message.
        share: share to check.

    Raises:
        CalibrationError: it is no such number.
    """
    is_number = isinstance(share, int | float) and not isinstance(share, bool)
    if not is_number or not 0 < share < 1:
        raise CalibrationError(f"{name}: expected a number between 0 and 1, such as 0.05, received {share!r}")
