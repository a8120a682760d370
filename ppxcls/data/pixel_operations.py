"""Pillow's operations on one uint8 image [H, W, 3], by kernels and tables: the same pixels without conversions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from PIL import Image as PillowImage

from ppxcls.data.decode import Image
from ppxcls.system.kernels import call

Colour = tuple[int, int, int]
Table = np.ndarray[Any, Any]

_NEAREST, _BICUBIC = PillowImage.Resampling.NEAREST, PillowImage.Resampling.BICUBIC
_VALUES = np.arange(256)
_LARGEST = 32768  # pixels of a side, up to which Pillow computes in fixed point


def apply(
    image: Image,
    name: str,
    value: float,
    colour: Colour,
    shear: PillowImage.Resampling,
    move: PillowImage.Resampling,
) -> Image | None:
    """Apply one operation.

    Args:
        image: uint8 [H, W, 3].
        name: of the operation, as in ``policies.OPERATIONS``.
        value: its argument.
        colour: of the area that a geometric operation uncovers.
        shear: interpolation of shears.
        move: interpolation of shifts and rotations.

    Returns:
        Another image; the same one for ``Identity``; None if Pillow has to do it.
    """
    height, width = image.shape[:2]
    if name in _BY_VALUE:
        return cv2.LUT(image, _BY_VALUE[name](value))
    if name in _BY_IMAGE:
        return _BY_IMAGE[name](np.ascontiguousarray(image), value)
    if name.startswith("Shear") and shear != _NEAREST:
        return _slid(image, name[-1], value, 0.0, shear, colour)
    if name.startswith("Translate"):
        pixels = value * (width if name[-1] == "X" else height)
        return (
            _shifted(image, name[-1], pixels, colour)
            if move == _NEAREST
            else _slid(image, name[-1], 0.0, pixels, move, colour)
        )
    if name == "Rotate" and move == _NEAREST and value % 90 != 0 and max(height, width) < _LARGEST:
        return _rotated(np.ascontiguousarray(image), value, colour)
    return image if name == "Identity" else None


def _blended_values(base: float, factor: float) -> Table:
    """The table of ``base + factor (value - base)`` in float32, cut off."""
    values = np.float32(base) + np.float32(factor) * (_VALUES.astype(np.float32) - np.float32(base))
    return np.clip(values, 0, 255).astype(np.uint8)


def _posterized(bits: float) -> Table:
    kept = max(1, min(8, int(bits)))
    return (_VALUES & ~(2 ** (8 - kept) - 1)).astype(np.uint8)


def _solarized(threshold: float) -> Table:
    return np.where(int(threshold) > _VALUES, _VALUES, 255 - _VALUES).astype(np.uint8)


def _dark_raised(amount: float) -> Table:
    return np.where(_VALUES < 128, np.minimum(255, _VALUES + round(amount)), _VALUES).astype(np.uint8)


_BY_VALUE: dict[str, Callable[[float], Table]] = {
    "Invert": lambda _: (255 - _VALUES).astype(np.uint8),
    "Posterize": _posterized,
    "Solarize": _solarized,
    "SolarizeAdd": _dark_raised,
    "Brightness": lambda value: _blended_values(0, value),
}


def _contrasted(image: Image, factor: float) -> Image:
    from ppxcls.data import pixel_kernels

    total = call(pixel_kernels.grey, *(plane.reshape(-1) for plane in cv2.split(image)))
    return cv2.LUT(image, _blended_values(int(total / (image.shape[0] * image.shape[1]) + 0.5), factor))


def _saturated(image: Image, factor: float) -> Image:
    from ppxcls.data import pixel_kernels

    planes = cv2.split(image)
    call(pixel_kernels.saturate, *(plane.reshape(-1) for plane in planes), np.float32(factor))
    return cv2.merge(planes)


def _sharpened(image: Image, factor: float) -> Image:
    from ppxcls.data import pixel_kernels

    smooth, out = np.empty_like(image), np.empty_like(image)
    call(pixel_kernels.smooth, image.reshape(len(image), -1), smooth.reshape(len(image), -1))
    call(pixel_kernels.blend, image.reshape(-1), smooth.reshape(-1), np.float32(factor), out.reshape(-1))
    return out


def _by_histogram(table_of: Callable[[Table], Table]) -> Callable[[Image, float], Image]:
    """An operation that has a table for each channel, which follows from the channel's histogram."""

    def changed(image: Image, _: float) -> Image:
        from ppxcls.data import pixel_kernels

        counts = np.zeros((3, 256), np.int64)
        call(pixel_kernels.histograms, image, counts)
        return cv2.LUT(image, np.stack([table_of(channel) for channel in counts], -1)[None])

    return changed


def _stretched(counts: Table) -> Table:
    """To the whole range."""
    (used,) = np.nonzero(counts)
    low, high = int(used[0]), int(used[-1])
    if high <= low:
        return _VALUES.astype(np.uint8)
    scale = 255.0 / (high - low)
    return np.clip((_VALUES * scale + -low * scale).astype(np.int64), 0, 255).astype(np.uint8)


def _equalized(counts: Table) -> Table:
    """To about equally many pixels of each value."""
    used = counts[counts > 0]
    step = int(counts.sum() - used[-1]) // 255
    if len(used) <= 1 or not step:
        return _VALUES.astype(np.uint8)
    before = np.concatenate(([0], np.cumsum(counts)[:-1]))
    return np.clip((step // 2 + before) // step, 0, 255).astype(np.uint8)


_BY_IMAGE: dict[str, Callable[[Image, float], Image]] = {
    "Contrast": _contrasted,
    "Color": _saturated,
    "Sharpness": _sharpened,
    "AutoContrast": _by_histogram(_stretched),
    "Equalize": _by_histogram(_equalized),
}


def _slid(
    image: Image, axis: str, slope: float, pixels: float, resample: PillowImage.Resampling, colour: Colour
) -> Image:
    """Sheared or shifted along one axis with interpolation.

    Columns are moved as the rows of the transposed image.
    """
    from ppxcls.data import pixel_kernels

    rows = np.ascontiguousarray(image) if axis == "X" else cv2.transpose(image)
    out = np.empty_like(rows)
    flat, shares = (len(rows), -1), np.empty(3 * rows.shape[1])
    fill = np.array(colour, np.uint8)
    call(
        pixel_kernels.slide,
        rows.reshape(flat),
        float(slope),
        float(pixels),
        resample == _BICUBIC,
        fill,
        shares,
        out.reshape(flat),
    )
    return out if axis == "X" else cv2.transpose(out)


def _shifted(image: Image, axis: str, pixels: float, colour: Colour) -> Image:
    """Shifted along one axis by whole pixels."""
    dimension = 1 if axis == "X" else 0
    side = image.shape[dimension]
    places = np.add.accumulate(
        np.concatenate(([pixels + 0.5], np.ones(side - 1)))
    )  # rounded as Pillow's sums
    inside = (places >= 0) & (places.astype(np.int64) < side)
    out = np.empty_like(image)
    out[...] = colour
    moved, source = np.moveaxis(out, dimension, 0), np.moveaxis(image, dimension, 0)
    if inside.any():
        first, last = np.flatnonzero(inside)[[0, -1]]
        begin = int(places[first])
        moved[first : last + 1] = source[begin : begin + last - first + 1]
    return out


def _rotated(image: Image, degrees: float, colour: Colour) -> Image:
    """Rotated around the centre; each pixel is the nearest one."""
    from ppxcls.data import pixel_kernels

    height, width = image.shape[:2]
    angle = -math.radians(degrees % 360.0)
    a, b, d, e = (round(f(angle), 15) for f in (math.cos, math.sin, lambda x: -math.sin(x), math.cos))
    x, y = width / 2.0, height / 2.0
    c, f = a * -x + b * -y + x, d * -x + e * -y + y
    matrix = a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5
    out = np.empty_like(image)
    call(
        pixel_kernels.nearest,
        image,
        *(math.floor(value * 65536.0 + 0.5) for value in matrix),
        np.array(colour, np.uint8),
        out,
    )
    return out
