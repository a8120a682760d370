"""Depthwise convolution of a channel's planes, and its gradients, as functions for ``channelwise_kernels``.

Paddle's CPU kernel runs im2col and a tiny product for every channel of every image. Looping over the planes
directly is 2 to 10 times faster. Planes have a margin of zeros, so that no tap needs a bounds check and the
innermost loops vectorize. With stride 1, the planes of several images are one long row, in which a tap has a
fixed distance.

Taps are summed in Paddle's order and rounded like Paddle's, so that outputs and input gradients agree to the
last bit if its matrix product does the same. Deep networks in training amplify a rounding difference a
thousand times and more.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from ppxcls.system.kernels import helper

_PIXELS = 8192  # of the padded planes that are convolved in one loop
_WIDE = 32  # rows from here on are copied by loops; a table of places is faster for shorter ones

# The order of sums is free, so that they vectorize. NaN and infinity are respected.
FREE = {"contract", "reassoc", "nsz"}
# In the forward pass, Paddle multiplies and adds with one rounding, like a matrix product. In the backward
# pass it rounds twice.
ONE_ROUNDING: set[str] = {"contract"}


class _Room(NamedTuple):
    """Memory of a correlation with stride 1, for a group of images.

    Attributes:
        planes: [images, H, W], zeros. The margins stay zero, because each image fills the same places.
        sums: [images * H * W].
        inputs: uint32, places of the input's pixels in ``planes``; empty if their rows are wide.
        outputs: uint32, places of the output's pixels in ``sums``; empty if their rows are wide.
    """

    planes: np.ndarray[Any, Any]
    sums: np.ndarray[Any, Any]
    inputs: np.ndarray[Any, Any]
    outputs: np.ndarray[Any, Any]


@helper(set())
def _places(shape, origin, spacing, size):  # type: ignore[no-untyped-def]
    """Places of the pixels of several images in planes of a shape; none if the rows are wide."""
    if size[1] >= _WIDE:
        return np.empty(0, np.uint32)
    places = np.empty(shape[0] * size[0] * size[1], np.uint32)
    i = 0
    for image in range(shape[0]):
        for y in range(size[0]):
            for x in range(size[1]):
                places[i] = (
                    (image * shape[1] + origin[0] + y * spacing[0]) * shape[2] + origin[1] + x * spacing[1]
                )
                i += 1
    return places


@helper(set())
def room(images, sizes, taps, geometry, is_back):  # type: ignore[no-untyped-def]
    """Memory of a convolution, or of the gradient of its input; the planes of both have the same shape.

    Args:
        images: their number.
        sizes: height and width of the convolution's input and of its output.
        taps: of the kernel, (y, x); (0, 0) for no memory.
        geometry: padding, stride and dilation, each (y, x).
        is_back: whether it is for the gradient, which takes the output's and gives the input's.
    """
    padding, stride, dilation = geometry
    reach = (taps[0] - 1) * dilation[0], (taps[1] - 1) * dilation[1]
    height = _padded_size(sizes[0][0], sizes[1][0], reach[0], padding[0], stride[0]) if taps[0] else 0
    width = _padded_size(sizes[0][1], sizes[1][1], reach[1], padding[1], stride[1]) if taps[0] else 0
    shape = min(images, max(1, _PIXELS // max(1, height * width))), height, width
    planes, sums = np.zeros(shape, np.float32), np.empty(shape[0] * height * width, np.float32)
    if is_back:
        margin = reach[0] - padding[0], reach[1] - padding[1]
        return _Room(
            planes, sums, _places(shape, margin, stride, sizes[1]), _places(shape, (0, 0), (1, 1), sizes[0])
        )
    return _Room(
        planes, sums, _places(shape, padding, (1, 1), sizes[0]), _places(shape, (0, 0), (1, 1), sizes[1])
    )


@helper(set())
def _padded_size(size, out_size, reach, padding, stride):  # type: ignore[no-untyped-def]
    """Side of a plane that has room for the input with its margin, and for the gradient of the output with its own."""
    return max(
        padding + size,
        (out_size - 1) * stride + reach + 1,
        reach - padding + (out_size - 1) * stride + 1,
        size + reach,
    )


@helper(ONE_ROUNDING)
def apply_stage(values, line, out):  # type: ignore[no-untyped-def]
    """Compute a stage, ``max(slope * x + shift, floor)``. NaN stays NaN."""
    slope, shift, floor = line
    for i in range(values.size):
        value = values[i] * slope + shift
        out[i] = floor if value < floor else value


@helper(ONE_ROUNDING)
def _pad(values, line, origin, spacing, width, planes, places):  # type: ignore[no-untyped-def]
    """Compute a stage and put its output into planes with a margin.

    Args:
        values: several images' pixels, in one row.
        line: slope, shift and floor of the stage.
        origin: place of the first pixel, (y, x).
        spacing: distance of the pixels, (y, x); there are zeros between them.
        width: pixels of a row of ``values``.
        planes: [images, H, W].
        places: of the pixels; empty if the rows are wide.
    """
    slope, shift, floor = line
    if places.size:
        flat = planes.reshape(planes.size)
        for i in range(values.size):
            value = values[i] * slope + shift
            flat[places[i]] = floor if value < floor else value
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


def _correlate(planes, kernel, origin, dilation, size, room, out):  # type: ignore[no-untyped-def]
    """Correlate padded planes with a kernel, with stride 1.

    Args:
        planes: [images, H, W].
        kernel: [KH, KW].
        origin: of the first tap, (y, x).
        dilation: distance of the taps, (y, x); negative to turn the kernel.
        size: of the output, (H', W').
        room: memory.
        out: [images * H' * W'], written.
    """
    images, height, width = planes.shape
    used = ((images - 1) * height + size[0] - 1) * width + size[1]
    first, sums, places = origin[0] * width + origin[1], room.sums, room.outputs
    _slide(planes.reshape(planes.size), kernel, first, dilation[0] * width, dilation[1], sums[:used])
    if places.size:
        for i in range(out.size):
            out[i] = sums[places[i]]
        return
    for image in range(images):
        for y in range(size[0]):
            row = sums[(image * height + y) * width :]
            target = out[(image * size[0] + y) * size[1] : (image * size[0] + y + 1) * size[1]]
            for x in range(size[1]):
                target[x] = row[x]


@helper(ONE_ROUNDING)
def _correlate_strided(planes, kernel, stride, dilation, size, out):  # type: ignore[no-untyped-def]
    """As ``_correlate``, with a stride of the output's pixels."""
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
def _slide(flat, kernel, first, down, right, out):  # type: ignore[no-untyped-def]
    """Correlate in one long loop, in which each tap has a fixed distance.

    The nine taps of 3 x 3 kernels are written out.
    """
    if kernel.shape[0] == 3 and kernel.shape[1] == 3:
        w00, w01, w02 = kernel[0, 0], kernel[0, 1], kernel[0, 2]
        w10, w11, w12 = kernel[1, 0], kernel[1, 1], kernel[1, 2]
        w20, w21, w22 = kernel[2, 0], kernel[2, 1], kernel[2, 2]
        # Views that begin at the tap, because the loop vectorizes only if its index can't be negative.
        p00, p01, p02 = flat[first:], flat[first + right :], flat[first + 2 * right :]
        p10, p11, p12 = flat[first + down :], flat[first + down + right :], flat[first + down + 2 * right :]
        p20, p21, p22 = (
            flat[first + 2 * down :],
            flat[first + 2 * down + right :],
            flat[first + 2 * down + 2 * right :],
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
                weight, taps = kernel[ky, kx], flat[first + ky * down + kx * right :]
                for x in range(out.size):
                    out[x] += weight * taps[x]


_correlate_once_rounded = helper(ONE_ROUNDING)(_correlate)
_correlate_rounded = helper(set())(_correlate)


@helper(FREE)
def _add_dot_products(flat, upstream, down, right, gradient):  # type: ignore[no-untyped-def]
    """Add to each tap's gradient the product of the planes at the tap with the upstream gradient."""
    if (
        gradient.shape[0] == 3 and gradient.shape[1] == 3
    ):  # nine sums at once, so that the planes are read once
        p01, p02 = flat[right:], flat[2 * right :]
        p10, p11, p12 = flat[down:], flat[down + right :], flat[down + 2 * right :]
        p20, p21, p22 = flat[2 * down :], flat[2 * down + right :], flat[2 * down + 2 * right :]
        zero = np.float32(0)
        s00, s01, s02, s10, s11, s12, s20, s21, s22 = zero, zero, zero, zero, zero, zero, zero, zero, zero
        for x in range(upstream.size):
            g = upstream[x]
            s00 += g * flat[x]
            s01 += g * p01[x]
            s02 += g * p02[x]
            s10 += g * p10[x]
            s11 += g * p11[x]
            s12 += g * p12[x]
            s20 += g * p20[x]
            s21 += g * p21[x]
            s22 += g * p22[x]
        for ky, sums in enumerate(((s00, s01, s02), (s10, s11, s12), (s20, s21, s22))):
            for kx, value in enumerate(sums):
                gradient[ky, kx] += value
    else:
        for ky in range(gradient.shape[0]):
            for kx in range(gradient.shape[1]):
                taps = flat[ky * down + kx * right :]
                total = np.float32(0)
                for x in range(upstream.size):
                    total += upstream[x] * taps[x]
                gradient[ky, kx] += total


@helper(set())
def convolve(values, line, kernel, geometry, sizes, room, results):  # type: ignore[no-untyped-def]
    """Stage and convolution of a channel, a group of images at a time."""
    padding, stride, dilation = geometry
    size, out_size = sizes[0][0] * sizes[0][1], sizes[1][0] * sizes[1][1]
    images = values.size // size
    for begin in range(0, images, room.planes.shape[0]):
        end = min(begin + room.planes.shape[0], images)
        group, part = room.planes[: end - begin], results[begin * out_size : end * out_size]
        _pad(values[begin * size : end * size], line, padding, (1, 1), sizes[0][1], group, room.inputs)
        if stride[0] == 1 and stride[1] == 1:
            _correlate_once_rounded(group, kernel, (0, 0), dilation, sizes[1], room, part)
        else:
            _correlate_strided(group, kernel, stride, dilation, sizes[1], part)


@helper(set())
def convolve_back(values, line, kernel, geometry, sizes, both, upstream, with_kernel, of_kernel, of_values):  # type: ignore[no-untyped-def]
    """Gradients of ``convolve``: of the kernel if it is needed, and of the stage's output unless ``of_values``
    is empty.

    The gradient of the input is the correlation with the turned kernel, with the stride as spacing.
    """
    padding, stride, dilation = geometry
    there, back = both
    size, out_size = sizes[0][0] * sizes[0][1], sizes[1][0] * sizes[1][1]
    images = values.size // size
    reach = (kernel.shape[0] - 1) * dilation[0], (kernel.shape[1] - 1) * dilation[1]
    margin = reach[0] - padding[0], reach[1] - padding[1]
    height, width = there.planes.shape[1:]
    plain = np.float32(1), np.float32(0), np.float32(-np.inf)
    of_kernel[:] = 0
    for begin in range(0, images, there.planes.shape[0]):
        end = min(begin + there.planes.shape[0], images)
        group, ups = there.planes[: end - begin], back.planes[: end - begin]
        _pad(
            upstream[begin * out_size : end * out_size], plain, margin, stride, sizes[1][1], ups, back.inputs
        )
        if with_kernel:
            _pad(values[begin * size : end * size], line, padding, (1, 1), sizes[0][1], group, there.inputs)
            first = margin[0] * width + margin[1]
            used = (
                ((end - begin - 1) * height + (sizes[1][0] - 1) * stride[0]) * width
                + (sizes[1][1] - 1) * stride[1]
                + 1
            )
            row = ups.reshape(ups.size)[first : first + used]
            _add_dot_products(group.reshape(group.size), row, dilation[0] * width, dilation[1], of_kernel)
        if of_values.size:
            turned, part = (-dilation[0], -dilation[1]), of_values[begin * size : end * size]
            _correlate_rounded(ups, kernel, reach, turned, sizes[0], back, part)
