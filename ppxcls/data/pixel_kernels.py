"""Numba kernels for Pillow's operations on uint8 images [H, W, 3].

The pixels are the same as Pillow's, without Pillow's four bytes per pixel. The arithmetic matches Pillow's to
the last bit: float32 for blending, float64 for interpolation, and 16.16 fixed point for the nearest pixel.
``pixel_operations`` calls the kernels, and tests compare each with Pillow. Importing this module takes half a
second.
"""

from __future__ import annotations

from math import floor
from typing import Any

import numpy as np

from ppxcls.system.arrays import Array
from ppxcls.system.kernels import compile_kernel


@compile_kernel
def byte(value: float) -> Any:
    """Returns a value from 0 to 255 as uint8, without its fraction.

    It converts to int32 first, because most processors convert vectors only to this integer type.
    """
    return np.uint8(np.int32(value))


@compile_kernel
def luminance(red: int, green: int, blue: int) -> Any:
    """Returns the luminance of a pixel (ITU-R 601-2), rounded to an integer."""
    weighted_sum = (
        np.uint32(19595) * np.uint32(red)
        + np.uint32(38470) * np.uint32(green)
        + np.uint32(7471) * np.uint32(blue)
    )
    return (weighted_sum + np.uint32(0x8000)) >> np.uint32(16)


@compile_kernel
def grey(red: Array, green: Array, blue: Array) -> Any:
    """Returns the sum of the luminance of all pixels.

    Each colour has its own flat array.
    """
    total = np.int64(0)
    for i in range(red.shape[0]):
        total += np.int64(luminance(red[i], green[i], blue[i]))
    return total


@compile_kernel
def histograms(image: Array, out: Array) -> None:
    """Adds the number of pixels with each value in each channel to ``out``, int64 [3, 256]."""
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            for channel in range(3):
                out[channel, image[y, x, channel]] += 1


@compile_kernel
def blended(base: np.float32, value: int, factor: np.float32) -> Any:
    """Returns ``base + factor (value - base)`` as a byte, clipped to 0 to 255.

    Factor 0 gives the base, and factor 1 the value. Larger factors extrapolate.
    """
    return byte(min(max(base + factor * (np.float32(value) - base), np.float32(0)), np.float32(255)))


@compile_kernel
def blend(image: Array, base: Array, factor: np.float32, out: Array) -> None:
    """Applies ``blended`` to each element of flat arrays of the same length."""
    for i in range(image.shape[0]):
        out[i] = blended(np.float32(base[i]), image[i], factor)


@compile_kernel
def saturate(red: Array, green: Array, blue: Array, factor: np.float32) -> None:
    """Changes the saturation in place.

    Factor 0 gives grey, and factor 1 the image. Larger factors extrapolate. Each colour has its own flat
    array.
    """
    for i in range(red.shape[0]):
        grey_value = np.float32(np.int32(luminance(red[i], green[i], blue[i])))
        red[i] = blended(grey_value, red[i], factor)
        green[i] = blended(grey_value, green[i], factor)
        blue[i] = blended(grey_value, blue[i], factor)


@compile_kernel
def smooth_row(upper_row: Array, middle_row: Array, lower_row: Array, out: Array) -> None:
    """Smooths the inner pixels of one row.

    It uses slices instead of shifted indices. The compiler can't exclude that shifted indices are negative,
    and then it uses no vector instructions.
    """
    upper_left, upper_centre, upper_right = upper_row[:-6], upper_row[3:-3], upper_row[6:]
    middle_left, centre, middle_right = middle_row[:-6], middle_row[3:-3], middle_row[6:]
    lower_left, lower_centre, lower_right = lower_row[:-6], lower_row[3:-3], lower_row[6:]
    for i in range(out.shape[0]):
        total = (
            np.uint32(upper_left[i])
            + np.uint32(upper_centre[i])
            + np.uint32(upper_right[i])
            + np.uint32(middle_left[i])
            + np.uint32(5) * np.uint32(centre[i])
        )
        total += (
            np.uint32(middle_right[i])
            + np.uint32(lower_left[i])
            + np.uint32(lower_centre[i])
            + np.uint32(lower_right[i])
        )
        out[i] = np.uint8((np.uint32(2) * total + np.uint32(13)) // np.uint32(26))


@compile_kernel
def smooth(rows: Array, out: Array) -> None:
    """Smooths an image: weight 5/13 for the pixel itself and 1/13 for each of its 8 neighbours.

    Pixels at the borders stay as they are.

    Args:
        rows: image, uint8 [H, 3 W].
        out: result, uint8 [H, 3 W].
    """
    height, row_length = rows.shape
    out[0] = rows[0]
    out[height - 1] = rows[height - 1]
    for y in range(1, height - 1):
        upper_row, middle_row, lower_row = rows[y - 1], rows[y], rows[y + 1]
        for i in range(min(3, row_length)):
            out[y, i] = middle_row[i]
            out[y, row_length - 1 - i] = middle_row[row_length - 1 - i]
        if row_length > 6:
            smooth_row(upper_row, middle_row, lower_row, out[y, 3 : row_length - 3])


@compile_kernel
def nearest(image: Array, a: int, b: int, c: int, d: int, e: int, f: int, fill: Array, out: Array) -> None:
    """Transforms an image with ``out(x, y) = image(a x + b y + c, d x + e y + f)`` in 16.16 fixed point.

    Each pixel is the nearest one. Pixels from outside the image get the colour ``fill``.
    """
    height, width = image.shape[:2]
    for y in range(out.shape[0]):
        source_x, source_y = c, f
        for x in range(out.shape[1]):
            left, top = source_x >> 16, source_y >> 16
            if 0 <= left < width and 0 <= top < height:
                for channel in range(3):
                    out[y, x, channel] = image[top, left, channel]
            else:
                for channel in range(3):
                    out[y, x, channel] = fill[channel]
            source_x += a
            source_y += d
        c += b
        f += e


@compile_kernel
def slide(
    rows: Array, slope: float, shift: float, is_cubic: bool, fill: Array, shares: Array, out: Array
) -> None:
    """Moves each row y to the left by ``slope (y + 1/2) + shift`` pixels, with interpolation.

    Args:
        rows: image, uint8 [H, 3 W].
        slope: shift per row, in pixels.
        shift: shift of all rows, in pixels.
        is_cubic: True for bicubic interpolation, False for bilinear.
        fill: colour of uncovered pixels, uint8 [3].
        shares: scratch memory, float64 [3 W].
        out: result, uint8 [H, 3 W].
    """
    height, width = rows.shape[0], rows.shape[1] // 3
    for y in range(height):
        row, result = rows[y], out[y]
        row_shift = slope * (y + 0.5)
        source_offset = floor(0.5 + row_shift + shift - 0.5)  # distance to the left neighbour in the source
        begin = min(max(1 - source_offset, 0), width)  # first pixel with all four neighbours inside the image
        end = max(min(width - 2 - source_offset, width), begin)
        for x in range(begin):
            slide_edge(row, x, row_shift, shift, is_cubic, fill, result)
        for x in range(end, width):
            slide_edge(row, x, row_shift, shift, is_cubic, fill, result)
        if begin == end:
            continue
        inner_shares = shares[3 * begin : 3 * end]
        for position in range(end - begin):
            x = begin + position
            share = ((x + 0.5) + row_shift + shift - 0.5) - (x + source_offset)
            inner_shares[3 * position] = share
            inner_shares[3 * position + 1] = share
            inner_shares[3 * position + 2] = share
        first = 3 * (begin + source_offset)
        slide_row(
            row[first - 3 :],
            row[first:],
            row[first + 3 :],
            row[first + 6 :],
            inner_shares,
            is_cubic,
            result[3 * begin : 3 * end],
        )


@compile_kernel
def slide_edge(
    row: Array, x: int, row_shift: float, shift: float, is_cubic: bool, fill: Array, result: Array
) -> None:
    """Computes a pixel with neighbours outside the image; the border's pixels replace them."""
    width = result.shape[0] // 3
    source_x = (x + 0.5) + row_shift + shift
    left = floor(source_x - 0.5)
    share = (source_x - 0.5) - left
    x0, x1 = 3 * min(max(left - 1, 0), width - 1), 3 * min(max(left, 0), width - 1)
    x2, x3 = 3 * min(max(left + 1, 0), width - 1), 3 * min(max(left + 2, 0), width - 1)
    for channel in range(3):
        if not 0 <= source_x < width:
            result[3 * x + channel] = fill[channel]
        elif is_cubic:
            value = cubic(
                1.0 * row[x0 + channel],
                1.0 * row[x1 + channel],
                1.0 * row[x2 + channel],
                1.0 * row[x3 + channel],
                share,
            )
            result[3 * x + channel] = byte(min(max(value, 0.0), 255.0))
        else:
            result[3 * x + channel] = byte(
                row[x1 + channel] + (1.0 * row[x2 + channel] - row[x1 + channel]) * share
            )


@compile_kernel
def slide_row(
    outer_left: Array,
    left: Array,
    right: Array,
    outer_right: Array,
    shares: Array,
    is_cubic: bool,
    out: Array,
) -> None:
    """Computes the pixels of a row that have all neighbours inside the image.

    Each value of ``out`` is interpolated between four values (cubic) or two (linear).
    """
    if is_cubic:
        for i in range(out.shape[0]):
            value = cubic(1.0 * outer_left[i], 1.0 * left[i], 1.0 * right[i], 1.0 * outer_right[i], shares[i])
            out[i] = byte(min(max(value, 0.0), 255.0))
    else:
        for i in range(out.shape[0]):
            out[i] = byte(left[i] + (1.0 * right[i] - left[i]) * shares[i])


@compile_kernel
def cubic(p: float, q: float, r: float, s: float, share: float) -> float:
    """Returns the cubic through four values, between the second and the third (Catmull-Rom with a = -1)."""
    return q + share * ((-p + r) + share * ((2 * (p - q) + r - s) + share * (-p + q - r + s)))
