"""Max pooling of float32 planes on the CPU, compiled by numba at first use."""

from __future__ import annotations

import numpy as np

from ppxcls.system.kernels import compiled, helper


@helper(set())
def _take_larger(taps, number, largest, chosen):  # type: ignore[no-untyped-def]
    """Take over the values that are larger than the largest so far. NaN counts as larger."""
    for i in range(largest.size):
        tap, old, other = taps[i], largest[i], chosen[i]
        is_larger = (tap > old) | (tap != tap)  # noqa: PLR0124
        largest[i] = tap if is_larger else old
        chosen[i] = number if is_larger else other


@helper(set())
def _phase_places(sides, phase_sides, stride, padding):  # type: ignore[no-untyped-def]
    """Where a plane's pixels lie in its phases: those of every ``stride``-th row and column form a plane, [S * S, H', W']."""
    places = np.empty(sides[0] * sides[1], np.uint32)
    for y in range(sides[0]):
        for x in range(sides[1]):
            row, column = y + padding, x + padding
            phase = (row % stride) * stride + column % stride
            place = (phase * phase_sides[0] + row // stride) * phase_sides[1] + column // stride
            places[y * sides[1] + x] = place
    return places


@helper(set())
def _first_pixels(sides, row, stride, padding, size):  # type: ignore[no-untyped-def]
    """Numbers of the first pixels of the windows that lie in the plane; windows have the places of the first phase."""
    numbers = np.zeros(sides[0] * row, np.int32)
    for y in range(sides[0]):
        for x in range(sides[1]):
            numbers[y * row + x] = max(0, padding - y * stride) * size + max(0, padding - x * stride)
    return numbers


@compiled
def max_pool(planes, out, chosen, size, stride, padding, begin, end):  # type: ignore[no-untyped-def]
    """Largest value of each window.

    Args:
        planes: float32 [P, H, W].
        out: float32 [P, OH, OW], overwritten.
        chosen: uint8 [P, OH, OW], overwritten: number of the first pixel of the window, row by row, that has
            this value.
        size: pixels of the window's sides, at most 16.
        stride: of the windows.
        padding: pixels beyond each side.
        begin: first of the planes to compute.
        end: the one after the last.
    """
    sides, out_sides = planes.shape[1:], out.shape[1:]
    reach = (size - 1) // stride
    phase_sides = (
        max(out_sides[0] + reach, (sides[0] + padding - 1) // stride + 1),
        max(out_sides[1] + reach, (sides[1] + padding - 1) // stride + 1),
    )
    used = (out_sides[0] - 1) * phase_sides[1] + out_sides[1]
    places = _phase_places(sides, phase_sides, stride, padding)
    first = _first_pixels(out_sides, phase_sides[1], stride, padding, size)
    # The padding stays, because each plane fills the same places.
    phases = np.full(stride * stride * phase_sides[0] * phase_sides[1], -np.inf, np.float32)
    largest, numbers = np.empty(first.size, np.float32), np.empty(first.size, np.int32)
    for plane in range(begin, end):
        row = planes[plane].reshape(sides[0] * sides[1])
        for i in range(row.size):
            phases[places[i]] = row[i]
        for i in range(first.size):
            largest[i], numbers[i] = -np.inf, first[i]
        for ky in range(size):
            for kx in range(size):  # one pixel of all windows at a time
                phase = (ky % stride) * stride + kx % stride
                offset = (phase * phase_sides[0] + ky // stride) * phase_sides[1] + kx // stride
                _take_larger(phases[offset:], np.int32(ky * size + kx), largest[:used], numbers[:used])
        for y in range(out_sides[0]):
            row_start = y * phase_sides[1]
            for x in range(out_sides[1]):
                out[plane, y, x] = largest[row_start + x]
                chosen[plane, y, x] = numbers[row_start + x]


@compiled
def max_pool_gradient(chosen, out_gradient, gradient, size, stride, padding, begin, end):  # type: ignore[no-untyped-def]
    """Add the gradient of each output to the pixel that was chosen.

    Args:
        chosen: uint8 [P, OH, OW], from the forward pass.
        out_gradient: float32 [P, OH, OW].
        gradient: float32 [P, H, W], overwritten.
        size: pixels of the window's sides.
        stride: of the windows.
        padding: pixels beyond each side.
        begin: first of the planes to compute.
        end: the one after the last.
    """
    width = gradient.shape[2]
    places = np.empty(size * size, np.int64)
    for number in range(size * size):
        places[number] = (number // size) * width + number % size
    for plane in range(begin, end):
        flat = gradient[plane].reshape(gradient.shape[1] * width)
        flat[:] = 0
        for oy in range(chosen.shape[1]):
            for ox in range(chosen.shape[2]):
                first = (oy * stride - padding) * width + ox * stride - padding
                flat[first + places[chosen[plane, oy, ox]]] += out_gradient[plane, oy, ox]
