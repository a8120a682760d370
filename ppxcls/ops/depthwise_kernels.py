"""Depthwise convolution of a channel's planes, and its gradients, as functions for ``channelwise_kernels``.

Paddle's CPU kernel runs im2col and a tiny product for every channel of every image. Looping over the planes
directly is 2 to 10 times faster. Planes have a margin of zeros, so that no tap needs a bounds check and the
innermost loops vectorize. With stride 1, the planes of several images form one long row, in which each tap
has a fixed offset.

The order of the sums and their rounding match Paddle's. So outputs and input gradients equal Paddle's to the
last bit if its matrix product uses the same order and rounding. In training, deep networks amplify a rounding
difference a thousand times or more.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ppxcls.system.arrays import Array
from ppxcls.system.kernels import kernel_helper, numba_module

numba = numba_module()
_MAX_GROUP_PIXELS = 8192  # maximum for the padded planes of one loop; a larger plane has its own loop
_MIN_WIDE_PIXELS = (
    32  # rows of this width or more are copied by loops; a table of indices is faster for others
)

# Sums may have any order, so that they vectorize. NaN and infinity are respected.
FREE = {"contract", "reassoc", "nsz"}
# In the forward pass, Paddle multiplies and adds with one rounding, like a matrix product. In the backward
# pass it rounds twice.
ONE_ROUNDING: set[str] = {"contract"}


class _Scratch(NamedTuple):
    """Scratch memory of a correlation with stride 1, for a group of images.

    Attributes:
        planes: padded planes, [images, H, W], filled with zeros at first. The margins stay zero, because each
            image fills the same pixels.
        sums: sums for all pixels of the planes, [images * H * W].
        inputs: indices of the input's pixels in ``planes``, uint32; empty if the input's rows are wide.
        outputs: indices of the output's pixels in ``sums``, uint32; empty if the output's rows are wide.
    """

    planes: Array
    sums: Array
    inputs: Array
    outputs: Array


@kernel_helper(set())
def _pixel_indices(shape, origin, spacing, size):  # type: ignore[no-untyped-def]
    """Indices of the pixels of several images in planes of a shape; empty if the rows are wide."""
    if size[1] >= _MIN_WIDE_PIXELS:
        return np.empty(0, np.uint32)
    indices = np.empty(shape[0] * size[0] * size[1], np.uint32)
    i = 0
    for image in range(shape[0]):
        for y in range(size[0]):
            for x in range(size[1]):
                indices[i] = (
                    (image * shape[1] + origin[0] + y * spacing[0]) * shape[2] + origin[1] + x * spacing[1]
                )
                i += 1
    return indices


@kernel_helper(set())
def make_scratch(images, sizes, taps, geometry, is_backward):  # type: ignore[no-untyped-def]
    """Allocates scratch memory for a convolution, or for the gradient of its input.

    The planes of both have the same shape.

    Args:
        images: number of images.
        sizes: height and width of the convolution's input and of its output.
        taps: number of the kernel's taps, (y, x); (0, 0) for empty scratch memory.
        geometry: padding, stride and dilation, each (y, x).
        is_backward: True for the gradient. It reads planes of the output's size, and writes planes of the
            input's size.
    """
    padding, stride, dilation = geometry
    reach = (taps[0] - 1) * dilation[0], (taps[1] - 1) * dilation[1]
    height = _padded_size(sizes[0][0], sizes[1][0], reach[0], padding[0], stride[0]) if taps[0] else 0
    width = _padded_size(sizes[0][1], sizes[1][1], reach[1], padding[1], stride[1]) if taps[0] else 0
    shape = min(images, max(1, _MAX_GROUP_PIXELS // max(1, height * width))), height, width
    planes, sums = np.zeros(shape, np.float32), np.empty(shape[0] * height * width, np.float32)
    if is_backward:
        margin = reach[0] - padding[0], reach[1] - padding[1]
        return _Scratch(
            planes,
            sums,
            _pixel_indices(shape, margin, stride, sizes[1]),
            _pixel_indices(shape, (0, 0), (1, 1), sizes[0]),
        )
    return _Scratch(
        planes,
        sums,
        _pixel_indices(shape, padding, (1, 1), sizes[0]),
        _pixel_indices(shape, (0, 0), (1, 1), sizes[1]),
    )


@kernel_helper(set())
def _padded_size(size, out_size, reach, padding, stride):  # type: ignore[no-untyped-def]
    """Side of a plane in pixels, large enough for two images with their margins.

    One is the input, the other the gradient of the output.
    """
    return max(
        padding + size,
        (out_size - 1) * stride + reach + 1,
        reach - padding + (out_size - 1) * stride + 1,
        size + reach,
    )


@kernel_helper(ONE_ROUNDING)
def apply_stage(values, line, out):  # type: ignore[no-untyped-def]
    """Computes a stage, ``max(slope * x + shift, floor)``. NaN stays NaN."""
    slope, shift, floor = line
    for i in range(values.size):
        value = values[i] * slope + shift
        out[i] = floor if value < floor else value


@kernel_helper(ONE_ROUNDING)
def _pad(values, line, origin, spacing, width, planes, indices):  # type: ignore[no-untyped-def]
    """Computes a stage and writes its output to planes with a margin.

    Args:
        values: pixels of several images, in one row.
        line: slope, shift and floor of the stage.
        origin: position of the first pixel, (y, x).
        spacing: distance between pixels, (y, x). There are zeros between them.
        width: pixels of a row of ``values``.
        planes: planes of the images, [images, H, W]; written.
        indices: indices of the pixels in ``planes``; empty if the rows are wide.
    """
    slope, shift, floor = line
    if indices.size:
        flat = planes.reshape(planes.size)
        for i in range(values.size):
            value = values[i] * slope + shift
            flat[indices[i]] = floor if value < floor else value
        return
    height = values.size // (planes.shape[0] * width)
    for image in range(planes.shape[0]):
        for y in range(height):
            row = planes[image, origin[0] + y * spacing[0], origin[1] :]
            source = values[(image * height + y) * width : (image * height + y + 1) * width]
            if spacing[1] == 1:
                apply_stage(source, line, row)
            else:
                for x in range(width):
                    value = source[x] * slope + shift
                    row[x * spacing[1]] = floor if value < floor else value


def _correlate(planes, kernel, origin, dilation, size, scratch, out):  # type: ignore[no-untyped-def]
    """Correlates padded planes with a kernel, with stride 1.

    Args:
        planes: padded planes, [images, H, W].
        kernel: kernel, [KH, KW].
        origin: position of the first tap, (y, x).
        dilation: distance between taps, (y, x); negative to rotate the kernel by 180 degrees.
        size: height and width of the output, (H', W').
        scratch: scratch memory.
        out: output, [images * H' * W']; written.
    """
    images, height, width = planes.shape
    sum_count = ((images - 1) * height + size[0] - 1) * width + size[1]
    first, sums, indices = origin[0] * width + origin[1], scratch.sums, scratch.outputs
    _slide(planes.reshape(planes.size), kernel, first, dilation[0] * width, dilation[1], sums[:sum_count])
    if indices.size:
        for i in range(out.size):
            out[i] = sums[indices[i]]
        return
    for image in range(images):
        for y in range(size[0]):
            row = sums[(image * height + y) * width :]
            target = out[(image * size[0] + y) * size[1] : (image * size[0] + y + 1) * size[1]]
            for x in range(size[1]):
                target[x] = row[x]


@kernel_helper(ONE_ROUNDING)
def _correlate_strided(planes, kernel, stride, dilation, size, out):  # type: ignore[no-untyped-def]
    """Like ``_correlate`` from the first pixel, with a stride and without scratch memory."""
    images, height, width = planes.shape
    flat = planes.reshape(planes.size)
    for image in range(images):
        for y in range(size[0]):
            begin = (image * height + y * stride[0]) * width
            target = out[(image * size[0] + y) * size[1] : (image * size[0] + y + 1) * size[1]]
            target[:] = 0
            for ky in range(kernel.shape[0]):
                for kx in range(kernel.shape[1]):
                    weight, taps = kernel[ky, kx], flat[begin + ky * dilation[0] * width + kx * dilation[1] :]
                    for x in range(target.size):
                        target[x] += weight * taps[x * stride[1]]


@numba.njit(inline="always")
def _slide(flat, kernel, first, y_step, x_step, out):  # type: ignore[no-untyped-def]
    """Correlates in one long loop, in which each tap has a fixed offset.

    The nine taps of 3 x 3 kernels are written out.
    """
    if kernel.shape[0] == 3 and kernel.shape[1] == 3:
        w00, w01, w02 = kernel[0, 0], kernel[0, 1], kernel[0, 2]
        w10, w11, w12 = kernel[1, 0], kernel[1, 1], kernel[1, 2]
        w20, w21, w22 = kernel[2, 0], kernel[2, 1], kernel[2, 2]
        # Each view begins at its tap, because the loop vectorizes only if its index can't be negative.
        p00, p01, p02 = flat[first:], flat[first + x_step :], flat[first + 2 * x_step :]
        p10, p11, p12 = (
            flat[first + y_step :],
            flat[first + y_step + x_step :],
            flat[first + y_step + 2 * x_step :],
        )
        p20, p21, p22 = (
            flat[first + 2 * y_step :],
            flat[first + 2 * y_step + x_step :],
            flat[first + 2 * y_step + 2 * x_step :],
        )
        for x in range(out.size):
            total = np.float32(0) + w00 * p00[x]
            total += w01 * p01[x]
            total += w02 * p02[x]
            total += w10 * p10[x]
            total += w11 * p11[x]
            total += w12 * p12[x]
            total += w20 * p20[x]
            total += w21 * p21[x]
            out[x] = total + w22 * p22[x]
    else:
        out[:] = 0
        for ky in range(kernel.shape[0]):
            for kx in range(kernel.shape[1]):
                weight, taps = kernel[ky, kx], flat[first + ky * y_step + kx * x_step :]
                for x in range(out.size):
                    out[x] += weight * taps[x]


_correlate_once_rounded = kernel_helper(ONE_ROUNDING)(_correlate)
_correlate_rounded = kernel_helper(set())(_correlate)


@kernel_helper(FREE)
def _add_dot_products(flat, upstream, y_step, x_step, gradient):  # type: ignore[no-untyped-def]
    """Adds to each tap's gradient the product of the planes, shifted to the tap, and ``upstream``."""
    # Nine sums together, so that the planes are read once.
    if gradient.shape[0] == 3 and gradient.shape[1] == 3:
        p01, p02 = flat[x_step:], flat[2 * x_step :]
        p10, p11, p12 = flat[y_step:], flat[y_step + x_step :], flat[y_step + 2 * x_step :]
        p20, p21, p22 = flat[2 * y_step :], flat[2 * y_step + x_step :], flat[2 * y_step + 2 * x_step :]
        zero = np.float32(0)
        s00, s01, s02, s10, s11, s12, s20, s21, s22 = zero, zero, zero, zero, zero, zero, zero, zero, zero
        for x in range(upstream.size):
            upstream_value = upstream[x]
            s00 += upstream_value * flat[x]
            s01 += upstream_value * p01[x]
            s02 += upstream_value * p02[x]
            s10 += upstream_value * p10[x]
            s11 += upstream_value * p11[x]
            s12 += upstream_value * p12[x]
            s20 += upstream_value * p20[x]
            s21 += upstream_value * p21[x]
            s22 += upstream_value * p22[x]
        for ky, sums in enumerate(((s00, s01, s02), (s10, s11, s12), (s20, s21, s22))):
            for kx, value in enumerate(sums):
                gradient[ky, kx] += value
    else:
        for ky in range(gradient.shape[0]):
            for kx in range(gradient.shape[1]):
                taps = flat[ky * y_step + kx * x_step :]
                total = np.float32(0)
                for x in range(upstream.size):
                    total += upstream[x] * taps[x]
                gradient[ky, kx] += total


@kernel_helper(set())
def convolve(values, line, kernel, geometry, sizes, scratch, results):  # type: ignore[no-untyped-def]
    """Computes the stage and the convolution of a channel, a group of images at a time."""
    padding, stride, dilation = geometry
    size, out_size = sizes[0][0] * sizes[0][1], sizes[1][0] * sizes[1][1]
    images = values.size // size
    for begin in range(0, images, scratch.planes.shape[0]):
        end = min(begin + scratch.planes.shape[0], images)
        group, part = scratch.planes[: end - begin], results[begin * out_size : end * out_size]
        _pad(values[begin * size : end * size], line, padding, (1, 1), sizes[0][1], group, scratch.inputs)
        if stride[0] == 1 and stride[1] == 1:
            _correlate_once_rounded(group, kernel, (0, 0), dilation, sizes[1], scratch, part)
        else:
            _correlate_strided(group, kernel, stride, dilation, sizes[1], part)


@kernel_helper(set())
def convolve_back(  # type: ignore[no-untyped-def]
    values, line, kernel, geometry, sizes, scratches, upstream, needs_kernel, kernel_gradient, value_gradient
):
    """Computes the gradients of ``convolve``.

    The gradient of the kernel is computed if ``needs_kernel`` is True. The gradient of the stage's output is
    computed unless ``value_gradient`` is empty. It is the correlation of the upstream gradient with the
    kernel rotated by 180 degrees. The stride is the spacing of the upstream gradient's pixels.
    """
    padding, stride, dilation = geometry
    forward_scratch, backward_scratch = scratches
    size, out_size = sizes[0][0] * sizes[0][1], sizes[1][0] * sizes[1][1]
    images = values.size // size
    reach = (kernel.shape[0] - 1) * dilation[0], (kernel.shape[1] - 1) * dilation[1]
    margin = reach[0] - padding[0], reach[1] - padding[1]
    height, width = forward_scratch.planes.shape[1:]
    identity = np.float32(1), np.float32(0), np.float32(-np.inf)
    kernel_gradient[:] = 0
    for begin in range(0, images, forward_scratch.planes.shape[0]):
        end = min(begin + forward_scratch.planes.shape[0], images)
        group, upstream_group = forward_scratch.planes[: end - begin], backward_scratch.planes[: end - begin]
        _pad(
            upstream[begin * out_size : end * out_size],
            identity,
            margin,
            stride,
            sizes[1][1],
            upstream_group,
            backward_scratch.inputs,
        )
        if needs_kernel:
            _pad(
                values[begin * size : end * size],
                line,
                padding,
                (1, 1),
                sizes[0][1],
                group,
                forward_scratch.inputs,
            )
            first = margin[0] * width + margin[1]
            upstream_span = (
                ((end - begin - 1) * height + (sizes[1][0] - 1) * stride[0]) * width
                + (sizes[1][1] - 1) * stride[1]
                + 1
            )
            row = upstream_group.reshape(upstream_group.size)[first : first + upstream_span]
            _add_dot_products(
                group.reshape(group.size), row, dilation[0] * width, dilation[1], kernel_gradient
            )
        if value_gradient.size:
            negative_dilation, part = (-dilation[0], -dilation[1]), value_gradient[begin * size : end * size]
            _correlate_rounded(
                upstream_group, kernel, reach, negative_dilation, sizes[0], backward_scratch, part
            )
