"""Max pooling of float32 planes on the CPU, compiled by numba at first use."""

from __future__ import annotations

import numba
import numpy as np

from ppxcls.ops.cpu import compiled


def _max_pool(planes, out, size, stride, padding):  # type: ignore[no-untyped-def]
    """Largest value of each window.

    Args:
        planes: float32 [P, H, W].
        out: float32 [P, OH, OW], overwritten.
        size: pixels of the window's sides.
        stride: of the windows.
        padding: pixels beyond each side.
    """
    height, width = planes.shape[1:]
    out_h, out_w = out.shape[1:]
    for plane in numba.prange(planes.shape[0]):
        column_max = np.empty(width, np.float32)  # over the window's rows first, so that columns of two windows are visited once
        for oy in range(out_h):
            top = oy * stride - padding
            first = max(top, 0)
            column_max[:] = planes[plane, first]
            for y in range(first + 1, min(top + size, height)):
                for x in range(width):
                    column_max[x] = max(column_max[x], planes[plane, y, x])
            for ox in range(out_w):
                left = ox * stride - padding
                largest = column_max[max(left, 0)]
                for x in range(max(left, 0) + 1, min(left + size, width)):
                    largest = max(largest, column_max[x])
                out[plane, oy, ox] = largest


def _max_pool_gradient(planes, out, out_gradient, gradient, size, stride, padding):  # type: ignore[no-untyped-def]
    """Add the gradient of each output to the first pixel of its window, row by row, that has its value.

    Args:
        planes: float32 [P, H, W], the input.
        out: float32 [P, OH, OW], from the forward pass.
        out_gradient: float32 [P, OH, OW].
        gradient: float32 [P, H, W], overwritten.
        size: pixels of the window's sides.
        stride: of the windows.
        padding: pixels beyond each side.
    """
    height, width = planes.shape[1:]
    for plane in numba.prange(planes.shape[0]):
        gradient[plane] = 0
        for oy in range(out.shape[1]):
            top, bottom = max(oy * stride - padding, 0), min(oy * stride - padding + size, height)
            for ox in range(out.shape[2]):
                left, right = max(ox * stride - padding, 0), min(ox * stride - padding + size, width)
                largest = out[plane, oy, ox]
                found = False
                for y in range(top, bottom):
                    for x in range(left, right):
                        if planes[plane, y, x] == largest:
                            gradient[plane, y, x] += out_gradient[plane, oy, ox]
                            found = True
                            break
                    if found:
                        break


max_pool = compiled(_max_pool, "max_pool", set())
max_pool_gradient = compiled(_max_pool_gradient, "max_pool_gradient", set())
