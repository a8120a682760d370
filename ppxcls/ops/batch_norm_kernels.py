"""Batch norm in training and ReLU, as numba kernels. One thread computes a channel, so their number changes no result."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from ppxcls.ops.cpu import compiled

Array = np.ndarray[Any, Any]


def _normalize_batch(
    x: Array,
    weight: Array,
    bias: Array,
    running: Array,
    momentum: np.float32,
    epsilon: float,
    mean: Array,
    scale: Array,
    out: Array,
) -> None:
    """``(x - mean) / sqrt(variance + epsilon) * weight + bias`` by channel (arXiv:1502.03167, algorithm 1).

    The variance takes a second pass, so that small variances are not lost in rounding. Rows are summed in float32, and rows' sums
    in float64.

    Args:
        x: float32 [N, C, H * W].
        weight: float32 [C].
        bias: float32 [C].
        running: float32 [2, C]: mean and variance so far; updated.
        momentum: share of the running values that stays.
        epsilon: added to the variance.
        mean: float32 [C]; written.
        scale: float32 [C], one over the standard deviation; written.
        out: as ``x``; written.
    """
    count = x.shape[0] * x.shape[2]
    for c in numba.prange(x.shape[1]):
        total: Any = 0.0
        for n in range(x.shape[0]):
            row, part = x[n, c], np.float32(0)
            for i in range(row.size):
                part += row[i]
            total += part
        centre = np.float32(total / count)
        squares: Any = 0.0
        for n in range(x.shape[0]):
            row, part = x[n, c], np.float32(0)
            for i in range(row.size):
                part += (row[i] - centre) * (row[i] - centre)
            squares += part
        variance = squares / count
        factor = np.float32(1.0 / np.sqrt(variance + epsilon))
        mean[c], scale[c] = centre, factor
        running[0, c] = running[0, c] * momentum + centre * (np.float32(1) - momentum)
        running[1, c] = running[1, c] * momentum + np.float32(variance) * (np.float32(1) - momentum)
        slope = factor * weight[c]
        shift = bias[c] - centre * slope
        for n in range(x.shape[0]):
            row, target = x[n, c], out[n, c]
            for i in range(row.size):
                target[i] = row[i] * slope + shift


def _normalize_batch_gradient(
    x: Array, weight: Array, mean: Array, scale: Array, upstream: Array, gradient: Array, of_weight: Array, of_bias: Array
) -> None:
    """The gradients of ``normalize_batch``: of the input, as ``x``, of the weight and of the bias, [C]; written."""
    count = x.shape[0] * x.shape[2]
    for c in numba.prange(x.shape[1]):
        centre, factor = mean[c], scale[c]
        total: Any = 0.0
        product: Any = 0.0
        for n in range(x.shape[0]):
            row, up = x[n, c], upstream[n, c]
            part = part_product = np.float32(0)
            for i in range(row.size):
                part += up[i]
                part_product += up[i] * (row[i] - centre)
            total += part
            product += part_product
        product *= factor
        of_weight[c], of_bias[c] = np.float32(product), np.float32(total)
        slope = factor * weight[c]
        by_input = np.float32(product / count) * factor * slope
        constant = np.float32(total / count) * slope - centre * by_input
        for n in range(x.shape[0]):
            row, up, target = x[n, c], upstream[n, c], gradient[n, c]
            for i in range(row.size):
                target[i] = slope * up[i] - by_input * row[i] - constant


def _rectify(x: Array, out: Array) -> None:
    """Zero for what is negative; NaN stays. Rows [M, K]."""
    for m in numba.prange(x.shape[0]):
        row, target = x[m], out[m]
        for i in range(row.size):
            target[i] = np.float32(0) if row[i] < 0 else row[i]


def _rectify_gradient(out: Array, upstream: Array, gradient: Array) -> None:
    """The upstream gradient where the output is above zero; rows [M, K]."""
    for m in numba.prange(out.shape[0]):
        row, up, target = out[m], upstream[m], gradient[m]
        for i in range(row.size):
            target[i] = up[i] if row[i] > 0 else np.float32(0)


# The sums over rows vectorize only if their order is free. NaN and infinity are respected.
normalize_batch = compiled(_normalize_batch, "normalize_batch", {"contract", "reassoc", "nsz"})
normalize_batch_gradient = compiled(_normalize_batch_gradient, "normalize_batch_gradient", {"contract", "reassoc", "nsz"})
rectify = compiled(_rectify, "rectify", set())
rectify_gradient = compiled(_rectify_gradient, "rectify_gradient", set())
