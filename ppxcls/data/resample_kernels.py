"""Pillow's resizing of uint8 images along one side as a numba kernel: the same pixels, by vectors.

Each pixel is a weighted sum of the pixels around its place in the source. If the image gets smaller, the
filter gets wider, so that no pixel is skipped. Weights have 22 bits behind the point, and sums are rounded to
bytes, as in Pillow.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np

from ppxcls.system.kernels import compiled

Array = np.ndarray[Any, Any]

_BITS = 22
_A = -0.5  # of the cubic: Keys, "Cubic convolution interpolation" (1981), eq. 4
_CUBIC_REACH, _LINEAR_REACH = 2.0, 1.0  # pixels to each side


@compiled
def weight_at(distance: float, is_cubic: bool) -> float:
    """The filter at a distance in pixels."""
    x = abs(distance)
    if not is_cubic:
        return 1.0 - x if x < 1.0 else 0.0
    if x < 1.0:
        return ((_A + 2.0) * x - (_A + 3.0)) * x * x + 1
    if x < 2.0:
        return (((x - 5) * x + 8) * x - 4) * _A
    return 0.0


@compiled
def weigh(
    source: int, place: int, scale: float, is_cubic: bool, shares: Array, weights: Array
) -> tuple[int, int]:
    """The weights of one pixel of the result.

    Args:
        source: pixels of the source.
        place: number of the pixel.
        scale: pixels of the source for one of the result.
        is_cubic: bicubic, or else bilinear.
        shares: float64, room.
        weights: int64, filled.

    Returns:
        First pixel of the source, and how many there are.
    """
    wider = max(scale, 1.0)
    reach = (_CUBIC_REACH if is_cubic else _LINEAR_REACH) * wider
    centre = (place + 0.5) * scale
    first = max(int(centre - reach + 0.5), 0)
    count = min(int(centre + reach + 0.5), source) - first
    total = 0.0
    for k in range(count):
        shares[k] = weight_at((k + first - centre + 0.5) * (1.0 / wider), is_cubic)
        total += shares[k]
    for k in range(count):
        share = shares[k] / total if total != 0.0 else shares[k]
        weights[k] = int(share * (1 << _BITS) + (0.5 if share >= 0 else -0.5))
    return first, count


@compiled
def resample(rows: Array, is_cubic: bool, out: Array) -> None:
    """Resize the first side of [H, N] to that of [h, N].

    The sums fit into 32 bits, because weights add up to 1, and to less than 1.5 without their signs.

    Args:
        rows: uint8.
        is_cubic: bicubic, or else bilinear.
        out: uint8, filled.
    """
    scale = rows.shape[0] / out.shape[0]
    most = 2 * ceil(_CUBIC_REACH * max(scale, 1.0)) + 1
    shares, weights, sums = (
        np.zeros(most, np.float64),
        np.zeros(most, np.int64),
        np.zeros(rows.shape[1], np.int32),
    )
    for y in range(out.shape[0]):
        first, count = weigh(rows.shape[0], y, scale, is_cubic, shares, weights)
        sums[:] = 1 << (_BITS - 1)
        for k in range(count):
            row, weight = rows[first + k], np.int32(weights[k])
            for i in range(sums.shape[0]):
                sums[i] += np.int32(row[i]) * weight
        result = out[y]
        for i in range(sums.shape[0]):
            result[i] = np.uint8(min(max(sums[i] >> _BITS, 0), 255))
