"""Numba kernels for the layers between two matrix products.

The steps are batch norm, ReLU, depthwise convolution, batch norm and ReLU. Each step is optional. A channel
of the batch stays in the processor's cache during all steps. One thread computes a channel, so the number of
threads does not change the result.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ppxcls.ops.depthwise_kernels import (
    FREE,
    ONE_ROUNDING,
    apply_stage,
    convolve,
    convolve_back,
    make_scratch,
)
from ppxcls.system.arrays import Array
from ppxcls.system.kernels import compile_kernel, kernel_helper

_BLOCK_VALUES = 512  # summed in float32; the sums of the blocks are summed in float64


class _Stage(NamedTuple):
    """Batch norm in training, ReLU, both, or none; see ``channelwise.Stage``."""

    numbers: Array
    momentum: np.float32
    epsilon: float
    is_norm: bool
    is_rectified: bool
    is_frozen: bool


@kernel_helper(set())
def _stage_of(numbers, settings):  # type: ignore[no-untyped-def]
    return _Stage(
        numbers, np.float32(settings[0]), settings[1], settings[2] > 0, settings[3] > 0, settings[4] > 0
    )


@kernel_helper(set())
def _pairs(geometry):  # type: ignore[no-untyped-def]
    """Padding, stride and dilation, each (y, x)."""
    return (
        (geometry[0, 0], geometry[0, 1]),
        (geometry[1, 0], geometry[1, 1]),
        (geometry[2, 0], geometry[2, 1]),
    )


@kernel_helper(set())
def _row_scratch(images, is_channel_major):  # type: ignore[no-untyped-def]
    """Scratch memory for a channel's pixels of all images; empty if they are in one row already."""
    channels = images.shape[0] if is_channel_major else images.shape[1]
    return np.empty(0 if is_channel_major else images.size // channels, np.float32)


@kernel_helper(set())
def _row(images, channel, is_channel_major, scratch):  # type: ignore[no-untyped-def]
    """A row for a channel's pixels of all images: part of ``images`` if possible, else ``scratch``."""
    return (
        images[channel].reshape(images.shape[1] * images.shape[2] * images.shape[3])
        if is_channel_major
        else scratch
    )


@kernel_helper(set())
def _copy(values, out):  # type: ignore[no-untyped-def]
    for i in range(values.size):
        out[i] = values[i]


@kernel_helper(set())
def _gather(images, channel, is_channel_major, scratch):  # type: ignore[no-untyped-def]
    """Returns a channel's pixels of all images in one row, which must not be changed."""
    if not is_channel_major:
        size = images.shape[2] * images.shape[3]
        for image in range(images.shape[0]):
            _copy(images[image, channel].reshape(size), scratch[image * size : (image + 1) * size])
    return _row(images, channel, is_channel_major, scratch)


@kernel_helper(set())
def _scatter(images, channel, is_channel_major, scratch):  # type: ignore[no-untyped-def]
    """Copies a channel's row from ``scratch`` to all images, unless it is part of ``images`` already."""
    if not is_channel_major:
        size = images.shape[2] * images.shape[3]
        for image in range(images.shape[0]):
            _copy(scratch[image * size : (image + 1) * size], images[image, channel].reshape(size))


@kernel_helper(FREE)
def _moments(values):  # type: ignore[no-untyped-def]
    """Mean and variance. A second pass computes the variance, so that rounding does not lose small ones."""
    total: Any = 0.0
    for begin in range(0, values.size, _BLOCK_VALUES):
        row, part = values[begin : begin + _BLOCK_VALUES], np.float32(0)
        for i in range(row.size):
            part += row[i]
        total += part
    mean = np.float32(total / values.size)
    squares: Any = 0.0
    for begin in range(0, values.size, _BLOCK_VALUES):
        row, part = values[begin : begin + _BLOCK_VALUES], np.float32(0)
        for i in range(row.size):
            part += (row[i] - mean) * (row[i] - mean)
        squares += part
    return mean, squares / values.size


@kernel_helper(set())
def _measure(values, stage, channel):  # type: ignore[no-untyped-def]
    """Computes the statistics of a channel, writes them, and updates the running statistics.

    A frozen batch norm uses its running statistics and does not change them.
    """
    numbers, momentum = stage.numbers, stage.momentum
    if stage.is_frozen:
        numbers[4, channel] = numbers[2, channel]
        numbers[5, channel] = np.float32(1.0 / np.sqrt(numbers[3, channel] + stage.epsilon))
    elif stage.is_norm:
        mean, variance = _moments(values)
        numbers[4, channel], numbers[5, channel] = mean, np.float32(1.0 / np.sqrt(variance + stage.epsilon))
        numbers[2, channel] = numbers[2, channel] * momentum + mean * (np.float32(1) - momentum)
        numbers[3, channel] = numbers[3, channel] * momentum + np.float32(variance) * (
            np.float32(1) - momentum
        )


@kernel_helper(set())
def _line(stage, channel):  # type: ignore[no-untyped-def]
    """Slope, shift and floor of a stage, which computes ``max(slope * x + shift, floor)``."""
    floor = np.float32(0) if stage.is_rectified else np.float32(-np.inf)
    if not stage.is_norm:
        return np.float32(1), np.float32(0), floor
    numbers = stage.numbers
    slope = numbers[5, channel] * numbers[0, channel]
    return slope, numbers[1, channel] - numbers[4, channel] * slope, floor


@kernel_helper(ONE_ROUNDING)
def _mask(values, line, gradient, out):  # type: ignore[no-untyped-def]
    """Copies the gradient to ``out``, with zeros for the values that the stage raises to its floor."""
    slope, shift, floor = line
    if floor == 0:
        for i in range(values.size):
            out[i] = gradient[i] if values[i] * slope + shift > 0 else np.float32(0)
    else:
        _copy(gradient, out)


@kernel_helper(FREE)
def _products(values, mean, gradient):  # type: ignore[no-untyped-def]
    """Sum of the gradient, and sum of its products with the centred values."""
    total: Any = 0.0
    product: Any = 0.0
    for begin in range(0, values.size, _BLOCK_VALUES):
        row, gradient_row = values[begin : begin + _BLOCK_VALUES], gradient[begin : begin + _BLOCK_VALUES]
        part = part_product = np.float32(0)
        for i in range(row.size):
            part += gradient_row[i]
            part_product += gradient_row[i] * (row[i] - mean)
        total += part
        product += part_product
    return total, product


@kernel_helper(FREE)
def _stage_gradient(values, stage, channel, gradient, parameter_gradients, out):  # type: ignore[no-untyped-def]
    """Computes the gradient of a stage's input from that of its output (arXiv:1502.03167, section 3).

    ``out`` may be ``gradient`` itself.
    """
    _mask(values, _line(stage, channel), gradient, out)
    if stage.is_norm:
        weight, mean, scale = stage.numbers[0, channel], stage.numbers[4, channel], stage.numbers[5, channel]
        total, product = _products(values, mean, out)
        product *= scale
        parameter_gradients[0, channel], parameter_gradients[1, channel] = (
            np.float32(product),
            np.float32(total),
        )
        slope = scale * weight
        if stage.is_frozen:  # the input does not change the statistics
            for i in range(values.size):
                out[i] *= slope
            return
        input_slope = np.float32(product / values.size) * scale * slope
        constant = np.float32(total / values.size) * slope - mean * input_slope
        for i in range(values.size):
            out[i] = slope * out[i] - input_slope * values[i] - constant


@compile_kernel
def forward(  # type: ignore[no-untyped-def]
    x, first_numbers, first_settings, kernels, geometry, last_numbers, last_settings, out, layouts, begin, end
):
    """Computes a stage, a depthwise convolution and another stage, or the first stage alone.

    Args:
        x: input, float32 [N, C, H, W] or [C, N, H, W].
        first_numbers: numbers of the first ``Stage``, float32 [6, C].
        first_settings: settings of the first ``Stage``, float64 [5]: momentum, epsilon, 1 or 0 for batch
            norm, 1 or 0 for ReLU, 1 or 0 for a frozen batch norm.
        kernels: kernels of the convolution, float32 [C, KH, KW]; [C, 0, 0] for no convolution and no second
            stage.
        geometry: padding, stride and dilation of the convolution, int64 [3, 2], each (y, x).
        last_numbers: numbers of the second stage, like ``first_numbers``.
        last_settings: settings of the second stage, like ``first_settings``.
        out: output, float32 [N, C, H', W'] or [C, N, H', W']; written.
        layouts: memory layouts of ``x`` and ``out``, bool [2]: True for [C, N, H, W].
        begin: first channel to compute.
        end: channel after the last one.
    """
    first, last = _stage_of(first_numbers, first_settings), _stage_of(last_numbers, last_settings)
    images = x.shape[1] if layouts[0] else x.shape[0]
    sizes, pairs = ((x.shape[2], x.shape[3]), (out.shape[2], out.shape[3])), _pairs(geometry)
    is_convolved = kernels.shape[1] > 0
    x_scratch, out_scratch = _row_scratch(x, layouts[0]), _row_scratch(out, layouts[1])
    results = np.empty(images * sizes[1][0] * sizes[1][1] if is_convolved else 0, np.float32)
    scratch = make_scratch(images, sizes, kernels.shape[1:], pairs, False)
    for channel in range(begin, end):
        values = _gather(x, channel, layouts[0], x_scratch)
        _measure(values, first, channel)
        line, stage_input = _line(first, channel), values
        if is_convolved:
            convolve(values, line, kernels[channel], pairs, sizes, scratch, results)
            _measure(results, last, channel)
            line, stage_input = _line(last, channel), results
        apply_stage(stage_input, line, _row(out, channel, layouts[1], out_scratch))
        _scatter(out, channel, layouts[1], out_scratch)


@compile_kernel
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
    x_gradient,
    first_gradient,
    kernel_gradients,
    last_gradient,
    needs_gradient,
    begin,
    end,
):
    """Computes the gradients of ``forward``. It repeats the steps of ``forward`` that it needs.

    Arguments that are not listed here are those of ``forward``, with the statistics that ``forward`` wrote.
    The others are:

        upstream: gradient of the output.
        x_gradient: gradient of the input; written, like the next three gradients.
        first_gradient: gradient of the first stage's weight and bias, [2, C].
        kernel_gradients: gradient of the kernels, [C, KH, KW].
        last_gradient: gradient of the last stage's weight and bias, [2, C].
        needs_gradient: bool [2], True if the gradient of the input, and of the kernels, is needed.
    """
    first, last = _stage_of(first_numbers, first_settings), _stage_of(last_numbers, last_settings)
    images = x.shape[1] if layouts[0] else x.shape[0]
    sizes, pairs = ((x.shape[2], x.shape[3]), (upstream.shape[2], upstream.shape[3])), _pairs(geometry)
    is_convolved, needs_values = kernels.shape[1] > 0, needs_gradient[0] or first.is_norm
    x_scratch, upstream_scratch, gradient_scratch = (
        _row_scratch(x, layouts[0]),
        _row_scratch(upstream, layouts[1]),
        _row_scratch(x_gradient, layouts[0]),
    )
    has_last = is_convolved and (last.is_norm or last.is_rectified)
    results = np.empty(images * sizes[1][0] * sizes[1][1] if has_last else 0, np.float32)
    result_gradient, empty = np.empty(results.size, np.float32), np.empty(0, np.float32)
    taps = kernels.shape[1:]
    scratches = (
        make_scratch(images, sizes, taps, pairs, False),
        make_scratch(images, sizes, taps, pairs, True),
    )
    for channel in range(begin, end):
        values, upstream_row = (
            _gather(x, channel, layouts[0], x_scratch),
            _gather(upstream, channel, layouts[1], upstream_scratch),
        )
        line, gradient_row = _line(first, channel), _row(x_gradient, channel, layouts[0], gradient_scratch)
        if is_convolved:
            kernel, kernel_gradient, value_gradient = (
                kernels[channel],
                kernel_gradients[channel],
                gradient_row if needs_values else empty,
            )
            if has_last:
                convolve(values, line, kernel, pairs, sizes, scratches[0], results)
                _stage_gradient(results, last, channel, upstream_row, last_gradient, result_gradient)
                upstream_row = result_gradient
            convolve_back(
                values,
                line,
                kernel,
                pairs,
                sizes,
                scratches,
                upstream_row,
                needs_gradient[1],
                kernel_gradient,
                value_gradient,
            )
            upstream_row = value_gradient
        if needs_values or not is_convolved:
            _stage_gradient(values, first, channel, upstream_row, first_gradient, gradient_row)
            _scatter(x_gradient, channel, layouts[0], gradient_scratch)
