"""A numba kernel that resizes uint8 images along one side, with Pillow's pixels.

It uses vector instructions. Each pixel is a weighted sum of the source's pixels around its position. If the
image gets smaller, the filter gets wider, so that no pixel is skipped. Weights have 22 fractional bits, and
sums are rounded to bytes, as in Pillow.
"""

from __future__ import annotations

from math import ceil

import numpy as np

from ppxcls.system.arrays import Array
from ppxcls.system.kernels import compile_kernel

_FRACTION_BITS = 22
_CUBIC_A = -0.5  # parameter a of the cubic: Keys, "Cubic convolution interpolation" (1981), eq. 4
_CUBIC_REACH_PIXELS, _LINEAR_REACH_PIXELS = 2.0, 1.0  # pixels on each side


@compile_kernel
def weight_at(distance: float, is_cubic: bool) -> float:
    """Returns the weight of the filter at a distance in pixels."""
    x = abs(distance)
    if not is_cubic:
        return 1.0 - x if x < 1.0 else 0.0
    if x < 1.0:
        return ((_CUBIC_A + 2.0) * x - (_CUBIC_A + 3.0)) * x * x + 1
    if x < 2.0:
        return (((x - 5) * x + 8) * x - 4) * _CUBIC_A
    return 0.0


@compile_kernel
def weigh(
    source_length: int, index: int, scale: float, is_cubic: bool, shares: Array, weights: Array
) -> tuple[int, int]:
    """Computes the weights of one pixel of the result.

    Args:
        source_length: number of pixels in the source.
        index: index of the pixel in the result.
        scale: pixels of the source per pixel of the result.
        is_cubic: True for bicubic interpolation, False for bilinear.
        shares: scratch memory, float64.
        weights: output array for the weights, int64.

    Returns:
        The first pixel of the source, and the number of pixels that have a weight.
    """
    filter_scale = max(scale, 1.0)
    reach = (_CUBIC_REACH_PIXELS if is_cubic else _LINEAR_REACH_PIXELS) * filter_scale
    centre = (index + 0.5) * scale
    first = max(int(centre - reach + 0.5), 0)
    count = min(int(centre + reach + 0.5), source_length) - first
    total = 0.0
    for k in range(count):
        shares[k] = weight_at((k + first - centre + 0.5) * (1.0 / filter_scale), is_cubic)
        total += shares[k]
    for k in range(count):
        share = shares[k] / total if total != 0.0 else shares[k]
        weights[k] = int(share * (1 << _FRACTION_BITS) + (0.5 if share >= 0 else -0.5))
    return first, count


@compile_kernel
def resample(rows: Array, is_cubic: bool, out: Array) -> None:
    """Resizes the first side of [H, N] to that of [h, N].

    The sums fit into 32 bits, because the weights add up to 1, and their absolute values to less than 1.5.

    Args:
        rows: image, uint8 [H, N].
        is_cubic: True for bicubic interpolation, False for bilinear.
        out: result, uint8 [h, N].
    """
    scale = rows.shape[0] / out.shape[0]
    max_count = 2 * ceil(_CUBIC_REACH_PIXELS * max(scale, 1.0)) + 1
    shares, weights, sums = (
        np.zeros(max_count, np.float64),
        np.zeros(max_count, np.int64),
        np.zeros(rows.shape[1], np.int32),
    )
    for y in range(out.shape[0]):
        first, count = weigh(rows.shape[0], y, scale, is_cubic, shares, weights)
        sums[:] = 1 << (_FRACTION_BITS - 1)
        for k in range(count):
            row, weight = rows[first + k], np.int32(weights[k])
            for i in range(sums.shape[0]):
                sums[i] += np.int32(row[i]) * weight
        result = out[y]
        for i in range(sums.shape[0]):
            result[i] = np.uint8(min(max(sums[i] >> _FRACTION_BITS, 0), 255))
