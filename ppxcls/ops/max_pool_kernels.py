"""Max pooling of float32 planes on the CPU, compiled by numba at first use."""

from __future__ import annotations

import numpy as np

from ppxcls.system.kernels import compile_kernel, kernel_helper


@kernel_helper(set())
def _take_larger(taps, number, largest, numbers):  # type: ignore[no-untyped-def]
    """Replaces the largest values so far, and their numbers, if a tap is larger. NaN counts as larger."""
    for i in range(largest.size):
        tap, previous_value, previous_number = taps[i], largest[i], numbers[i]
        is_larger = (tap > previous_value) | (tap != tap)  # noqa: PLR0124
        largest[i] = tap if is_larger else previous_value
        numbers[i] = number if is_larger else previous_number


@kernel_helper(set())
def _phase_indices(sides, phase_sides, stride, padding):  # type: ignore[no-untyped-def]
    """Indices of a plane's pixels in its phases.

    A phase is a plane of every ``stride``-th row and column: [S * S, H', W'] for all phases.
    """
    indices = np.empty(sides[0] * sides[1], np.uint32)
    for y in range(sides[0]):
        for x in range(sides[1]):
            row, column = y + padding[0], x + padding[1]
            phase = (row % stride) * stride + column % stride
            index = (phase * phase_sides[0] + row // stride) * phase_sides[1] + column // stride
            indices[y * sides[1] + x] = index
    return indices


@kernel_helper(set())
def _first_pixels(sides, width, stride, padding, size):  # type: ignore[no-untyped-def]
    """For each window, the number of its first pixel inside the plane.

    The windows are arranged like the first phase, in rows of ``width`` pixels.
    """
    numbers = np.zeros(sides[0] * width, np.int32)
    for y in range(sides[0]):
        for x in range(sides[1]):
            rows, columns = max(0, padding[0] - y * stride), max(0, padding[1] - x * stride)
            numbers[y * width + x] = rows * size + columns
    return numbers


@compile_kernel
def max_pool(planes, out, argmax, size, stride, padding, begin, end):  # type: ignore[no-untyped-def]
    """Finds the largest value of each window.

    Args:
        planes: input, float32 [P, H, W].
        out: largest values, float32 [P, OH, OW]; overwritten.
        argmax: numbers of the largest values' pixels, uint8 [P, OH, OW]; overwritten. The pixels of a window
            are counted row by row. If several pixels have the value, the first one is taken.
        size: side of the windows in pixels, at most 16.
        stride: distance between windows in pixels.
        padding: pixels above and to the left of the plane.
        begin: first plane to compute.
        end: plane after the last one.
    """
    sides, out_sides = planes.shape[1:], out.shape[1:]
    reach = (size - 1) // stride
    phase_sides = (
        max(out_sides[0] + reach, (sides[0] + padding[0] - 1) // stride + 1),
        max(out_sides[1] + reach, (sides[1] + padding[1] - 1) // stride + 1),
    )
    window_span = (out_sides[0] - 1) * phase_sides[1] + out_sides[1]
    indices = _phase_indices(sides, phase_sides, stride, padding)
    first_numbers = _first_pixels(out_sides, phase_sides[1], stride, padding, size)
    # The padding keeps its value, because each plane fills the same indices.
    phases = np.full(stride * stride * phase_sides[0] * phase_sides[1], -np.inf, np.float32)
    largest, numbers = np.empty(first_numbers.size, np.float32), np.empty(first_numbers.size, np.int32)
    for plane in range(begin, end):
        row = planes[plane].reshape(sides[0] * sides[1])
        for i in range(row.size):
            phases[indices[i]] = row[i]
        for i in range(first_numbers.size):
            largest[i], numbers[i] = -np.inf, first_numbers[i]
        for ky in range(size):
            for kx in range(size):  # one pixel of all windows at a time
                phase = (ky % stride) * stride + kx % stride
                offset = (phase * phase_sides[0] + ky // stride) * phase_sides[1] + kx // stride
                _take_larger(
                    phases[offset:], np.int32(ky * size + kx), largest[:window_span], numbers[:window_span]
                )
        for y in range(out_sides[0]):
            row_start = y * phase_sides[1]
            for x in range(out_sides[1]):
                out[plane, y, x] = largest[row_start + x]
                argmax[plane, y, x] = numbers[row_start + x]


@compile_kernel
def max_pool_gradient(argmax, out_gradient, gradient, size, stride, padding, begin, end):  # type: ignore[no-untyped-def]
    """Adds the gradient of each output to the pixel with the window's largest value.

    Args:
        argmax: numbers of the largest values' pixels, uint8 [P, OH, OW], from the forward pass.
        out_gradient: gradient of the output, float32 [P, OH, OW].
        gradient: gradient of the input, float32 [P, H, W]; overwritten.
        size: side of the windows in pixels.
        stride: distance between windows in pixels.
        padding: pixels above and to the left of the plane.
        begin: first plane to compute.
        end: plane after the last one.
    """
    width = gradient.shape[2]
    offsets = np.empty(size * size, np.int64)
    for number in range(size * size):
        offsets[number] = (number // size) * width + number % size
    for plane in range(begin, end):
        flat = gradient[plane].reshape(gradient.shape[1] * width)
        flat[:] = 0
        for oy in range(argmax.shape[1]):
            for ox in range(argmax.shape[2]):
                first = (oy * stride - padding[0]) * width + ox * stride - padding[1]
                flat[first + offsets[argmax[plane, oy, ox]]] += out_gradient[plane, oy, ox]
