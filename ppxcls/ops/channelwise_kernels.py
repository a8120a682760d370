"""Batch norm, ReLU, depthwise convolution, batch norm, ReLU: all that a channel needs between two products, as
numba kernels.

A channel of the batch stays in the processor's cache while a kernel takes it through these steps, each of
which may be left out. One thread computes a channel, so the number of threads changes no result.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ppxcls.ops.depthwise_kernels import FREE, ONE_ROUNDING, apply_stage, convolve, convolve_back, room
from ppxcls.system.kernels import compiled, helper

_BLOCK = 512  # numbers that are summed in float32; the sums of blocks are summed in float64


class _Stage(NamedTuple):
    """Batch norm in training, ReLU, both, or none; see ``channelwise.Stage``."""

    numbers: np.ndarray[Any, Any]
    momentum: np.float32
    epsilon: float
    is_norm: bool
    is_rectified: bool


@helper(set())
def _stage_of(numbers, settings):  # type: ignore[no-untyped-def]
    return _Stage(numbers, np.float32(settings[0]), settings[1], settings[2] > 0, settings[3] > 0)


@helper(set())
def _pairs(geometry):  # type: ignore[no-untyped-def]
    """Padding, stride and dilation, each (y, x)."""
    return (
        (geometry[0, 0], geometry[0, 1]),
        (geometry[1, 0], geometry[1, 1]),
        (geometry[2, 0], geometry[2, 1]),
    )


@helper(set())
def _memory(images, is_by_channel):  # type: ignore[no-untyped-def]
    """For a channel's pixels of all images, if they do not lie in one row."""
    channels = images.shape[0] if is_by_channel else images.shape[1]
    return np.empty(0 if is_by_channel else images.size // channels, np.float32)


@helper(set())
def _row(images, channel, is_by_channel, memory):  # type: ignore[no-untyped-def]
    """Where a channel's pixels of all images lie in one row: here, or in a memory."""
    return (
        images[channel].reshape(images.shape[1] * images.shape[2] * images.shape[3])
        if is_by_channel
        else memory
    )


@helper(set())
def _copy(values, out):  # type: ignore[no-untyped-def]
    for i in range(values.size):
        out[i] = values[i]


@helper(set())
def _gather(images, channel, is_by_channel, memory):  # type: ignore[no-untyped-def]
    """A channel's pixels of all images, in one row; not to be changed."""
    if not is_by_channel:
        size = images.shape[2] * images.shape[3]
        for image in range(images.shape[0]):
            _copy(images[image, channel].reshape(size), memory[image * size : (image + 1) * size])
    return _row(images, channel, is_by_channel, memory)


@helper(set())
def _scatter(images, channel, is_by_channel, memory):  # type: ignore[no-untyped-def]
    """Write a channel's pixels of all images, unless they are there."""
    if not is_by_channel:
        size = images.shape[2] * images.shape[3]
        for image in range(images.shape[0]):
            _copy(memory[image * size : (image + 1) * size], images[image, channel].reshape(size))


@helper(FREE)
def _moments(values):  # type: ignore[no-untyped-def]
    """Mean and variance. The variance takes a second pass, so that small ones are not lost in rounding."""
    total: Any = 0.0
    for begin in range(0, values.size, _BLOCK):
        row, part = values[begin : begin + _BLOCK], np.float32(0)
        for i in range(row.size):
            part += row[i]
        total += part
    mean = np.float32(total / values.size)
    squares: Any = 0.0
    for begin in range(0, values.size, _BLOCK):
        row, part = values[begin : begin + _BLOCK], np.float32(0)
        for i in range(row.size):
            part += (row[i] - mean) * (row[i] - mean)
        squares += part
    return mean, squares / values.size


@helper(set())
def _measure(values, stage, channel):  # type: ignore[no-untyped-def]
    """Find the statistics of a channel, write them, and update the running ones."""
    if stage.is_norm:
        own, keep = stage.numbers, stage.momentum
        mean, variance = _moments(values)
        own[4, channel], own[5, channel] = mean, np.float32(1.0 / np.sqrt(variance + stage.epsilon))
        own[2, channel] = own[2, channel] * keep + mean * (np.float32(1) - keep)
        own[3, channel] = own[3, channel] * keep + np.float32(variance) * (np.float32(1) - keep)


@helper(set())
def _line(stage, channel):  # type: ignore[no-untyped-def]
    """What a stage computes: ``max(slope * x + shift, floor)``."""
    floor = np.float32(0) if stage.is_rectified else np.float32(-np.inf)
    if not stage.is_norm:
        return np.float32(1), np.float32(0), floor
    own = stage.numbers
    slope = own[5, channel] * own[0, channel]
    return slope, own[1, channel] - own[4, channel] * slope, floor


@helper(ONE_ROUNDING)
def _mask(values, line, gradient, out):  # type: ignore[no-untyped-def]
    """The gradient, with zeros where the stage gives its floor."""
    slope, shift, floor = line
    if floor == 0:
        for i in range(values.size):
            out[i] = gradient[i] if values[i] * slope + shift > 0 else np.float32(0)
    else:
        _copy(gradient, out)


@helper(FREE)
def _products(values, mean, gradient):  # type: ignore[no-untyped-def]
    """Sums of the gradient, and of its products with the centred values."""
    total: Any = 0.0
    product: Any = 0.0
    for begin in range(0, values.size, _BLOCK):
        row, up = values[begin : begin + _BLOCK], gradient[begin : begin + _BLOCK]
        part = part_product = np.float32(0)
        for i in range(row.size):
            part += up[i]
            part_product += up[i] * (row[i] - mean)
        total += part
        product += part_product
    return total, product


@helper(FREE)
def _through(values, stage, channel, gradient, of_parameters, out):  # type: ignore[no-untyped-def]
    """Take the gradient from a stage's output to its input (arXiv:1502.03167, section 3); ``out`` may be the gradient itself."""
    _mask(values, _line(stage, channel), gradient, out)
    if stage.is_norm:
        weight, mean, scale = stage.numbers[0, channel], stage.numbers[4, channel], stage.numbers[5, channel]
        total, product = _products(values, mean, out)
        product *= scale
        of_parameters[0, channel], of_parameters[1, channel] = np.float32(product), np.float32(total)
        slope = scale * weight
        by_input = np.float32(product / values.size) * scale * slope
        constant = np.float32(total / values.size) * slope - mean * by_input
        for i in range(values.size):
            out[i] = slope * out[i] - by_input * values[i] - constant


@compiled
def forward(  # type: ignore[no-untyped-def]
    x, first_numbers, first_settings, kernels, geometry, last_numbers, last_settings, out, layouts, begin, end
):
    """A stage, a depthwise convolution and another stage; or the first stage alone.

    Args:
        x: float32 [N, C, H, W], or [C, N, H, W].
        first_numbers: float32 [6, C], of a ``Stage``.
        first_settings: float64 [4], its momentum, its epsilon, and 1 or 0 for batch norm and for ReLU.
        kernels: float32 [C, KH, KW]; [C, 0, 0] for no convolution and no second stage.
        geometry: int64 [3, 2], padding, stride and dilation of the convolution, each (y, x).
        last_numbers: as ``first_numbers``.
        last_settings: as ``first_settings``.
        out: float32 [N, C, H', W'], or [C, N, H', W']; written.
        layouts: bool [2], whether ``x`` and ``out`` have the channels first.
        begin: first of the channels to compute.
        end: the one after the last.
    """
    first, last = _stage_of(first_numbers, first_settings), _stage_of(last_numbers, last_settings)
    images = x.shape[1] if layouts[0] else x.shape[0]
    sizes, pairs = ((x.shape[2], x.shape[3]), (out.shape[2], out.shape[3])), _pairs(geometry)
    is_convolved = kernels.shape[1] > 0
    memory, out_memory = _memory(x, layouts[0]), _memory(out, layouts[1])
    results = np.empty(images * sizes[1][0] * sizes[1][1] if is_convolved else 0, np.float32)
    own = room(images, sizes, kernels.shape[1:], pairs, False)
    for channel in range(begin, end):
        values = _gather(x, channel, layouts[0], memory)
        _measure(values, first, channel)
        line, found = _line(first, channel), values
        if is_convolved:
            convolve(values, line, kernels[channel], pairs, sizes, own, results)
            _measure(results, last, channel)
            line, found = _line(last, channel), results
        apply_stage(found, line, _row(out, channel, layouts[1], out_memory))
        _scatter(out, channel, layouts[1], out_memory)


@compiled
def backward(  # type: ignore[no-untyped-def]
    x,
    first_numbers,
    first_settings,
    kernels,
    geometry,
    last_numbers,
    last_settings,
    upstream,
    layouts,
    of_x,
    of_first,
    of_kernels,
    of_last,
    needed,
    begin,
    end,
):
    """Gradients of ``forward``, which is computed again as far as needed.

    The arguments that are not here are those of ``forward``, with the statistics that it wrote. The others:

        upstream: the gradient of its output.
        of_x: the gradient of the input; written, and the next too.
        of_first: of the first stage's weight and bias, [2, C].
        of_kernels: of the kernels.
        of_last: of the last stage's weight and bias, [2, C].
        needed: bool [2], whether the gradients of the input and of the kernels are needed.
    """
    first, last = _stage_of(first_numbers, first_settings), _stage_of(last_numbers, last_settings)
    images = x.shape[1] if layouts[0] else x.shape[0]
    sizes, pairs = ((x.shape[2], x.shape[3]), (upstream.shape[2], upstream.shape[3])), _pairs(geometry)
    is_convolved, needs_values = kernels.shape[1] > 0, needed[0] or first.is_norm
    memory, up_memory, of_memory = (
        _memory(x, layouts[0]),
        _memory(upstream, layouts[1]),
        _memory(of_x, layouts[0]),
    )
    has_last = is_convolved and (last.is_norm or last.is_rectified)
    results = np.empty(images * sizes[1][0] * sizes[1][1] if has_last else 0, np.float32)
    of_results, nothing = np.empty(results.size, np.float32), np.empty(0, np.float32)
    taps = kernels.shape[1:]
    both = room(images, sizes, taps, pairs, False), room(images, sizes, taps, pairs, True)
    for channel in range(begin, end):
        values, ups = (
            _gather(x, channel, layouts[0], memory),
            _gather(upstream, channel, layouts[1], up_memory),
        )
        line, found = _line(first, channel), _row(of_x, channel, layouts[0], of_memory)
        if is_convolved:
            kernel, of_kernel, of_values = (
                kernels[channel],
                of_kernels[channel],
                found if needs_values else nothing,
            )
            if has_last:
                convolve(values, line, kernel, pairs, sizes, both[0], results)
                _through(results, last, channel, ups, of_last, of_results)
                ups = of_results
            convolve_back(values, line, kernel, pairs, sizes, both, ups, needed[1], of_kernel, of_values)
            ups = of_values
        if needs_values or not is_convolved:
            _through(values, first, channel, ups, of_first, found)
            _scatter(of_x, channel, layouts[0], of_memory)
