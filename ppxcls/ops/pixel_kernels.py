"""Pillow's operations on uint8 images [H, W, 3] as numba kernels: the same pixels, without Pillow's four bytes a pixel.

The arithmetic is Pillow's to the last bit: float32 where it blends, float64 where it interpolates, 16.16 fixed point where it takes
the nearest pixel. ``pixel_operations`` calls them; tests compare each with Pillow. Importing this module takes half a second.
"""

from __future__ import annotations

from math import floor
from typing import Any

import numpy as np

from ppxcls.ops.cpu import compiled

Array = np.ndarray[Any, Any]


@compiled
def grey(image: Array) -> int:
    """The sum of the luminance (ITU-R 601-2, rounded to integers) of all pixels."""
    total = 0
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            red, green, blue = int(image[y, x, 0]), int(image[y, x, 1]), int(image[y, x, 2])
            total += (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
    return total


@compiled
def histograms(image: Array, out: Array) -> None:
    """Counts of the values of each channel, int64 [3, 256]."""
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            for c in range(3):
                out[c, image[y, x, c]] += 1


@compiled
def blend(image: Array, base: Array, factor: np.float32, out: Array) -> None:
    """From the base (0) over the image (1) beyond it; flat arrays of one length."""
    for i in range(image.shape[0]):
        start = np.float32(base[i])
        value = start + factor * (np.float32(image[i]) - start)
        out[i] = np.uint8(min(max(value, np.float32(0)), np.float32(255)))


@compiled
def saturate(image: Array, factor: np.float32, out: Array) -> None:
    """From grey (0) over the image (1) beyond it."""
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            red, green, blue = image[y, x, 0], image[y, x, 1], image[y, x, 2]
            start = np.float32((19595 * int(red) + 38470 * int(green) + 7471 * int(blue) + 0x8000) >> 16)
            out[y, x, 0] = np.uint8(min(max(start + factor * (np.float32(red) - start), np.float32(0)), np.float32(255)))
            out[y, x, 1] = np.uint8(min(max(start + factor * (np.float32(green) - start), np.float32(0)), np.float32(255)))
            out[y, x, 2] = np.uint8(min(max(start + factor * (np.float32(blue) - start), np.float32(0)), np.float32(255)))


@compiled
def smooth_row(above: Array, own: Array, below: Array, out: Array) -> None:
    """Slices in place of shifted indices, which might be negative as far as the compiler knows: with them it uses vectors."""
    a, b, c = above[:-6], above[3:-3], above[6:]
    d, e, f = own[:-6], own[3:-3], own[6:]
    g, h, j = below[:-6], below[3:-3], below[6:]
    for i in range(out.shape[0]):
        total = np.uint32(a[i]) + np.uint32(b[i]) + np.uint32(c[i]) + np.uint32(d[i]) + np.uint32(5) * np.uint32(e[i])
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
def slide(rows: Array, slope: float, shift: float, is_cubic: bool, fill: Array, shares: Array, out: Array) -> None:
    """Each row y moves by ``slope (y + 1/2) + shift`` pixels to the left. Rows are [H, 3 W], shares are room for [3 W] float64."""
    height, width = rows.shape[0], rows.shape[1] // 3
    for y in range(height):
        row, result = rows[y], out[y]
        move = slope * (y + 0.5)
        begin, end = width, 0  # of the pixels whose four neighbours are all inside
        step = floor(0.5 + move + shift - 0.5)  # from a pixel to the one at its left in the source
        for x in range(width):
            u = (x + 0.5) + move + shift
            inside = 0 <= u < width
            if inside and 1 <= x + step < width - 2:
                begin, end = min(begin, x), max(end, x + 1)
                for k in range(3):
                    shares[3 * x + k] = (u - 0.5) - (x + step)
                continue
            left = floor(u - 0.5)
            share = (u - 0.5) - left
            x0, x1 = 3 * min(max(left - 1, 0), width - 1), 3 * min(max(left, 0), width - 1)
            x2, x3 = 3 * min(max(left + 1, 0), width - 1), 3 * min(max(left + 2, 0), width - 1)
            for k in range(3):
                if not inside:
                    result[3 * x + k] = fill[k]
                elif is_cubic:
                    value = cubic(1.0 * row[x0 + k], 1.0 * row[x1 + k], 1.0 * row[x2 + k], 1.0 * row[x3 + k], share)
                    result[3 * x + k] = np.uint8(min(max(value, 0.0), 255.0))
                else:
                    result[3 * x + k] = np.uint8(row[x1 + k] + (1.0 * row[x2 + k] - row[x1 + k]) * share)
        if begin < end:
            first = 3 * (begin + step)
            slide_row(
                row[first - 3 :],
                row[first:],
                row[first + 3 :],
                row[first + 6 :],
                shares[3 * begin :],
                is_cubic,
                result[3 * begin : 3 * end],
            )


@compiled
def slide_row(before: Array, own: Array, after: Array, last: Array, shares: Array, is_cubic: bool, out: Array) -> None:
    if is_cubic:
        for i in range(out.shape[0]):
            value = cubic(1.0 * before[i], 1.0 * own[i], 1.0 * after[i], 1.0 * last[i], shares[i])
            out[i] = np.uint8(min(max(value, 0.0), 255.0))
    else:
        for i in range(out.shape[0]):
            out[i] = np.uint8(own[i] + (1.0 * after[i] - own[i]) * shares[i])


@compiled
def cubic(p: float, q: float, r: float, s: float, share: float) -> float:
    """The cubic through four values, between the second and the third (Catmull-Rom with a = -1)."""
    return q + share * ((-p + r) + share * ((2 * (p - q) + r - s) + share * (-p + q - r + s)))
