"""Pillow's operations on uint8 images [H, W, 3] as numba kernels: the same pixels, without Pillow's four bytes a
pixel.

The arithmetic is Pillow's to the last bit: float32 where it blends, float64 where it interpolates, 16.16
fixed point where it takes the nearest pixel. ``pixel_operations`` calls them; tests compare each with Pillow.
Importing this module takes half a second.
"""

from __future__ import annotations

from math import floor
from typing import Any

import numpy as np

from ppxcls.system.kernels import compiled

Array = np.ndarray[Any, Any]


@compiled
def byte(value: float) -> Any:
    """A value from 0 to 255 without its fraction.

    By int32, because most processors convert vectors to no other integers.
    """
    return np.uint8(np.int32(value))


@compiled
def luminance(red: int, green: int, blue: int) -> Any:
    """ITU-R 601-2, rounded to an integer."""
    weighted = (
        np.uint32(19595) * np.uint32(red)
        + np.uint32(38470) * np.uint32(green)
        + np.uint32(7471) * np.uint32(blue)
    )
    return (weighted + np.uint32(0x8000)) >> np.uint32(16)


@compiled
def grey(red: Array, green: Array, blue: Array) -> Any:
    """The sum of the luminance of all pixels, of which there is a flat array for each colour."""
    total = np.int64(0)
    for i in range(red.shape[0]):
        total += np.int64(luminance(red[i], green[i], blue[i]))
    return total


@compiled
def histograms(image: Array, out: Array) -> None:
    """Counts of the values of each channel, int64 [3, 256]."""
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            for c in range(3):
                out[c, image[y, x, c]] += 1


@compiled
def blended(base: np.float32, value: int, factor: np.float32) -> Any:
    """From the base (0) over the value (1) beyond it, cut off."""
    return byte(min(max(base + factor * (np.float32(value) - base), np.float32(0)), np.float32(255)))


@compiled
def blend(image: Array, base: Array, factor: np.float32, out: Array) -> None:
    """``blended`` of flat arrays of one length."""
    for i in range(image.shape[0]):
        out[i] = blended(np.float32(base[i]), image[i], factor)


@compiled
def saturate(red: Array, green: Array, blue: Array, factor: np.float32) -> None:
    """From grey (0) over the image (1) beyond it, in place; a flat array for each colour."""
    for i in range(red.shape[0]):
        start = np.float32(np.int32(luminance(red[i], green[i], blue[i])))
        red[i] = blended(start, red[i], factor)
        green[i] = blended(start, green[i], factor)
        blue[i] = blended(start, blue[i], factor)


@compiled
def smooth_row(above: Array, own: Array, below: Array, out: Array) -> None:
    """Slices in place of shifted indices, which might be negative as far as the compiler knows: with them it uses vectors."""
    a, b, c = above[:-6], above[3:-3], above[6:]
    d, e, f = own[:-6], own[3:-3], own[6:]
    g, h, j = below[:-6], below[3:-3], below[6:]
    for i in range(out.shape[0]):
        total = (
            np.uint32(a[i])
            + np.uint32(b[i])
            + np.uint32(c[i])
            + np.uint32(d[i])
            + np.uint32(5) * np.uint32(e[i])
        )
        total += np.uint32(f[i]) + np.uint32(g[i]) + np.uint32(h[i]) + np.uint32(j[i])
        out[i] = np.uint8((np.uint32(2) * total + np.uint32(13)) // np.uint32(26))


@compiled
def smooth(rows: Array, out: Array) -> None:
    """Weights of 5 in the middle and 1 around, over 13; borders stay. Rows are [H, 3 W]."""
    height, width = rows.shape
    out[0] = rows[0]
    out[height - 1] = rows[height - 1]
    for y in range(1, height - 1):
        above, own, below = rows[y - 1], rows[y], rows[y + 1]
        for i in range(min(3, width)):
            out[y, i] = own[i]
            out[y, width - 1 - i] = own[width - 1 - i]
        if width > 6:
            smooth_row(above, own, below, out[y, 3 : width - 3])


@compiled
def nearest(image: Array, a: int, b: int, c: int, d: int, e: int, f: int, fill: Array, out: Array) -> None:
    """out(x, y) = image(a x + b y + c, d x + e y + f) in 16.16 fixed point."""
    height, width = image.shape[:2]
    for y in range(out.shape[0]):
        u, v = c, f
        for x in range(out.shape[1]):
            left, top = u >> 16, v >> 16
            if 0 <= left < width and 0 <= top < height:
                for k in range(3):
                    out[y, x, k] = image[top, left, k]
            else:
                for k in range(3):
                    out[y, x, k] = fill[k]
            u += a
            v += d
        c += b
        f += e


@compiled
def slide(
    rows: Array, slope: float, shift: float, is_cubic: bool, fill: Array, shares: Array, out: Array
) -> None:
    """Each row y moves by ``slope (y + 1/2) + shift`` pixels to the left.

    Rows are [H, 3 W], shares are room for [3 W] float64.
    """
    height, width = rows.shape[0], rows.shape[1] // 3
    for y in range(height):
        row, result = rows[y], out[y]
        move = slope * (y + 0.5)
        step = floor(0.5 + move + shift - 0.5)  # from a pixel to the one at its left in the source
        begin = min(max(1 - step, 0), width)  # of the pixels whose four neighbours are all inside
        end = max(min(width - 2 - step, width), begin)
        for x in range(begin):
            slide_edge(row, x, move, shift, is_cubic, fill, result)
        for x in range(end, width):
            slide_edge(row, x, move, shift, is_cubic, fill, result)
        if begin == end:
            continue
        some = shares[3 * begin : 3 * end]
        for k in range(end - begin):
            x = begin + k
            share = ((x + 0.5) + move + shift - 0.5) - (x + step)
            some[3 * k] = share
            some[3 * k + 1] = share
            some[3 * k + 2] = share
        first = 3 * (begin + step)
        slide_row(
            row[first - 3 :],
            row[first:],
            row[first + 3 :],
            row[first + 6 :],
            some,
            is_cubic,
            result[3 * begin : 3 * end],
        )


@compiled
def slide_edge(
    row: Array, x: int, move: float, shift: float, is_cubic: bool, fill: Array, result: Array
) -> None:
    """A pixel of which some neighbours are outside: the border's pixels stand in."""
    width = result.shape[0] // 3
    u = (x + 0.5) + move + shift
    left = floor(u - 0.5)
    share = (u - 0.5) - left
    x0, x1 = 3 * min(max(left - 1, 0), width - 1), 3 * min(max(left, 0), width - 1)
    x2, x3 = 3 * min(max(left + 1, 0), width - 1), 3 * min(max(left + 2, 0), width - 1)
    for k in range(3):
        if not 0 <= u < width:
            result[3 * x + k] = fill[k]
        elif is_cubic:
            value = cubic(1.0 * row[x0 + k], 1.0 * row[x1 + k], 1.0 * row[x2 + k], 1.0 * row[x3 + k], share)
            result[3 * x + k] = byte(min(max(value, 0.0), 255.0))
        else:
            result[3 * x + k] = byte(row[x1 + k] + (1.0 * row[x2 + k] - row[x1 + k]) * share)


@compiled
def slide_row(
    before: Array, own: Array, after: Array, last: Array, shares: Array, is_cubic: bool, out: Array
) -> None:
    """The pixels of a row whose neighbours are all inside: a value between four, or two, for each of ``out``."""
    if is_cubic:
        for i in range(out.shape[0]):
            value = cubic(1.0 * before[i], 1.0 * own[i], 1.0 * after[i], 1.0 * last[i], shares[i])
            out[i] = byte(min(max(value, 0.0), 255.0))
    else:
        for i in range(out.shape[0]):
            out[i] = byte(own[i] + (1.0 * after[i] - own[i]) * shares[i])


@compiled
def cubic(p: float, q: float, r: float, s: float, share: float) -> float:
    """The cubic through four values, between the second and the third (Catmull-Rom with a = -1)."""
    return q + share * ((-p + r) + share * ((2 * (p - q) + r - s) + share * (-p + q - r + s)))
