"""Depthwise convolution of float32 planes on the CPU, compiled by numba at first use.

Paddle's CPU kernel runs im2col and a tiny matrix product for every channel of every image. Looping over the planes directly is 2 to
10 times faster. Every plane is first copied into a zero-padded scratch plane, so that no tap needs a bounds check and the innermost
loops vectorize. The nine taps of 3 x 3 kernels, which Xception uses, are written out; others take the general loop.

Taps are summed in Paddle's order and rounded like Paddle's, so that outputs and input gradients agree to the last bit if its matrix
product does the same. Deep networks in training amplify a rounding difference a thousand times and more.
"""

from __future__ import annotations

import numba
import numpy as np

from ppxcls.ops.cpu import compiled


def _correlate(planes, kernels, out, padding, spacing, stride, dilation):  # type: ignore[no-untyped-def]
    """Correlate every plane with its channel's kernel; all pairs are (y, x).

    The gradient of the input is the same operation with the stride as spacing, stride 1, and a negative dilation, which reverses
    the kernel and keeps the order of the taps.

    Args:
        planes: float32 [N, C, H, W].
        kernels: float32 [C, KH, KW].
        out: float32 [N, C, OH, OW], overwritten.
        padding: zeros above and to the left.
        spacing: distance of the samples in the padded plane, with zeros between them.
        stride: of the output's pixels.
        dilation: distance of the taps.
    """
    n_images, n_channels, height, width = planes.shape
    kernel_h, kernel_w = kernels.shape[1:]
    out_h, out_w = out.shape[2:]
    reach_y, reach_x = (kernel_h - 1) * dilation[0], (kernel_w - 1) * dilation[1]
    scratch_h = max((out_h - 1) * stride[0] + abs(reach_y) + 1, padding[0] + (height - 1) * spacing[0] + 1)
    scratch_w = max((out_w - 1) * stride[1] + abs(reach_x) + 1, padding[1] + (width - 1) * spacing[1] + 1)
    origin = max(-reach_y, 0), max(-reach_x, 0)
    for channel in numba.prange(n_channels):
        scratch = np.zeros((scratch_h, scratch_w), np.float32)  # the zeros stay, because every image writes the same places
        row_sums = np.empty((out_h - 1) * scratch_w + out_w, np.float32)
        for image in range(n_images):
            for y in range(height):
                row = scratch[padding[0] + y * spacing[0]]
                for x in range(width):
                    row[padding[1] + x * spacing[1]] = planes[image, channel, y, x]
            if stride[0] == 1 and stride[1] == 1:
                _correlate_flat(scratch, kernels[channel], row_sums, origin, dilation)
                for y in range(out_h):
                    for x in range(out_w):
                        out[image, channel, y, x] = row_sums[y * scratch_w + x]
            else:
                _correlate_strided(scratch, kernels[channel], out[image, channel], origin, stride, dilation)


@numba.njit(inline="always")
def _correlate_flat(plane, kernel, out, origin, dilation):  # type: ignore[no-untyped-def]
    """Correlate with stride 1 in one long loop over the padded plane as one row, in which each tap has a fixed distance.

    Args:
        plane: float32 [H, W], padded.
        kernel: float32 [KH, KW].
        out: float32 [(OH - 1) * W + OW], overwritten; the values between two rows of the output are not used.
        origin: of the first tap, (y, x).
        dilation: distance of the taps, (y, x).
    """
    flat, width = plane.reshape(plane.size), plane.shape[1]
    first = origin[0] * width + origin[1]
    down, right = dilation[0] * width, dilation[1]
    if kernel.shape[0] == 3 and kernel.shape[1] == 3:
        w00, w01, w02 = kernel[0, 0], kernel[0, 1], kernel[0, 2]
        w10, w11, w12 = kernel[1, 0], kernel[1, 1], kernel[1, 2]
        w20, w21, w22 = kernel[2, 0], kernel[2, 1], kernel[2, 2]
        # Views that begin at the tap, because the loop vectorizes only if its index can't be negative.
        p00, p01, p02 = flat[first:], flat[first + right :], flat[first + 2 * right :]
        p10, p11, p12 = flat[first + down :], flat[first + down + right :], flat[first + down + 2 * right :]
        p20, p21, p22 = flat[first + 2 * down :], flat[first + 2 * down + right :], flat[first + 2 * down + 2 * right :]
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


@numba.njit(inline="always")
def _correlate_strided(plane, kernel, out, origin, stride, dilation):  # type: ignore[no-untyped-def]
    for y in range(out.shape[0]):
        target = out[y]
        target[:] = 0
        for ky in range(kernel.shape[0]):
            row = plane[origin[0] + y * stride[0] + ky * dilation[0]]
            for kx in range(kernel.shape[1]):
                weight, taps = kernel[ky, kx], row[origin[1] + kx * dilation[1] :]
                for x in range(target.size):
                    target[x] += weight * taps[x * stride[1]]


def _kernel_gradient(planes, out_gradient, gradient, padding, stride, dilation):  # type: ignore[no-untyped-def]
    """Gradient of the kernels: correlate each channel's planes with the gradient of its output, in the same flat layout.

    Args:
        planes: float32 [N, C, H, W], the input.
        out_gradient: float32 [N, C, OH, OW].
        gradient: float32 [C, KH, KW], overwritten.
        padding: zeros above and to the left.
        stride: of the output's pixels.
        dilation: distance of the taps.
    """
    n_images, n_channels, height, width = planes.shape
    kernel_h, kernel_w = gradient.shape[1:]
    out_h, out_w = out_gradient.shape[2:]
    scratch_h = max((out_h - 1) * stride[0] + (kernel_h - 1) * dilation[0] + 1, padding[0] + height)
    scratch_w = max((out_w - 1) * stride[1] + (kernel_w - 1) * dilation[1] + 1, padding[1] + width)
    for channel in numba.prange(n_channels):
        gradient[channel] = 0
        scratch = np.zeros((scratch_h, scratch_w), np.float32)
        # The output's gradient at the places where its taps begin; zeros between them if there is a stride, and after each row.
        upstream = np.zeros((out_h - 1) * stride[0] * scratch_w + (out_w - 1) * stride[1] + 1, np.float32)
        for image in range(n_images):
            for y in range(height):
                row = scratch[padding[0] + y]
                for x in range(width):
                    row[padding[1] + x] = planes[image, channel, y, x]
            for y in range(out_h):
                row = upstream[y * stride[0] * scratch_w :]
                for x in range(out_w):
                    row[x * stride[1]] = out_gradient[image, channel, y, x]
            _add_dot_products(scratch, upstream, gradient[channel], dilation)


@numba.njit(inline="always")
def _add_dot_products(plane, upstream, gradient, dilation):  # type: ignore[no-untyped-def]
    flat, width = plane.reshape(plane.size), plane.shape[1]
    down, right = dilation[0] * width, dilation[1]
    if gradient.shape[0] == 3 and gradient.shape[1] == 3:  # nine sums at once, so that the plane is read once
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


# In the forward pass, Paddle multiplies and adds with one rounding, like a matrix product. In the backward pass it rounds twice.
correlate = compiled(_correlate, "correlate", {"contract"})
correlate_rounded = compiled(_correlate, "correlate_rounded", set())
# The sums over whole planes vectorize only if their order is free. NaN and infinity are respected.
kernel_gradient = compiled(_kernel_gradient, "kernel_gradient", {"contract", "reassoc", "nsz"})
