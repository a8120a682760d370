"""Pillow's operations on one uint8 image [H, W, 3], computed by kernels and tables.

The pixels are the same as Pillow's, without conversions of the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image as PillowImage

from ppxcls.data.decode import Image
from ppxcls.system.arrays import Array
from ppxcls.system.kernels import call

Colour = tuple[int, int, int]
Table = Array

_NEAREST, _BICUBIC = PillowImage.Resampling.NEAREST, PillowImage.Resampling.BICUBIC
_BYTE_VALUES = np.arange(256)
_FIXED_POINT_LIMIT_PIXELS = 32768  # pixels; Pillow computes in fixed point if both sides are shorter


def apply_by_kernel(
    image: Image,
    name: str,
    *,
    value: float,
    colour: Colour,
    shear: PillowImage.Resampling,
    move: PillowImage.Resampling,
) -> Image | None:
    """Applies one operation.

    Args:
        image: image, uint8 [H, W, 3].
        name: name of the operation, as in ``policies.OPERATIONS``.
        value: argument of the operation.
        colour: colour of the area that a geometric operation uncovers.
        shear: interpolation of shears.
        move: interpolation of shifts and rotations.

    Returns:
        The new image; ``image`` itself for ``Identity``; None if Pillow has to apply the operation.
    """
    height, width = image.shape[:2]
    if name in _TABLE_OPERATIONS:
        return cv2.LUT(image, _TABLE_OPERATIONS[name](value))
    if name in _IMAGE_OPERATIONS:
        return _IMAGE_OPERATIONS[name](np.ascontiguousarray(image), value)
    if name.startswith("Shear") and shear != _NEAREST:
        return _slide(image, name[-1], slope=value, pixels=0.0, resample=shear, colour=colour)
    if name.startswith("Translate"):
        pixels = value * (width if name[-1] == "X" else height)
        return (
            _shift(image, name[-1], pixels, colour)
            if move == _NEAREST
            else _slide(image, name[-1], slope=0.0, pixels=pixels, resample=move, colour=colour)
        )
    if (
        name == "Rotate"
        and move == _NEAREST
        and value % 90 != 0
        and max(height, width) < _FIXED_POINT_LIMIT_PIXELS
    ):
        return _rotate(np.ascontiguousarray(image), value, colour)
    return image if name == "Identity" else None


def _blend_table(base: float, factor: float) -> Table:
    """Returns the table of ``base + factor (value - base)``, computed in float32 and clipped to 0 to 255."""
    values = np.float32(base) + np.float32(factor) * (_BYTE_VALUES.astype(np.float32) - np.float32(base))
    return np.clip(values, 0, 255).astype(np.uint8)


def _posterize_table(bits: float) -> Table:
    bit_count = max(1, min(8, int(bits)))
    return (_BYTE_VALUES & ~(2 ** (8 - bit_count) - 1)).astype(np.uint8)


def _solarize_table(threshold: float) -> Table:
    return np.where(int(threshold) > _BYTE_VALUES, _BYTE_VALUES, 255 - _BYTE_VALUES).astype(np.uint8)


def _solarize_add_table(amount: float) -> Table:
    raised_values = np.minimum(255, _BYTE_VALUES + round(amount))
    return np.where(_BYTE_VALUES < 128, raised_values, _BYTE_VALUES).astype(np.uint8)


_TABLE_OPERATIONS: dict[str, Callable[[float], Table]] = {
    "Invert": lambda _: (255 - _BYTE_VALUES).astype(np.uint8),
    "Posterize": _posterize_table,
    "Solarize": _solarize_table,
    "SolarizeAdd": _solarize_add_table,
    "Brightness": lambda value: _blend_table(0, value),
}


def _change_contrast(image: Image, factor: float) -> Image:
    from ppxcls.data import pixel_kernels

    total = call(pixel_kernels.grey, *(plane.reshape(-1) for plane in cv2.split(image)))
    return cv2.LUT(image, _blend_table(int(total / (image.shape[0] * image.shape[1]) + 0.5), factor))


def _change_saturation(image: Image, factor: float) -> Image:
    from ppxcls.data import pixel_kernels

    planes = cv2.split(image)
    call(pixel_kernels.saturate, *(plane.reshape(-1) for plane in planes), np.float32(factor))
    return cv2.merge(planes)


def _change_sharpness(image: Image, factor: float) -> Image:
    from ppxcls.data import pixel_kernels

    smooth, out = np.empty_like(image), np.empty_like(image)
    call(pixel_kernels.smooth, image.reshape(len(image), -1), smooth.reshape(len(image), -1))
    call(pixel_kernels.blend, image.reshape(-1), smooth.reshape(-1), np.float32(factor), out.reshape(-1))
    return out


def _histogram_operation(table_from_counts: Callable[[Table], Table]) -> Callable[[Image, float], Image]:
    """Returns an operation that maps each channel with a table, computed from the channel's histogram."""

    def operation(image: Image, _: float) -> Image:
        from ppxcls.data import pixel_kernels

        counts = np.zeros((3, 256), np.int64)
        call(pixel_kernels.histograms, image, counts)
        return cv2.LUT(image, np.stack([table_from_counts(channel) for channel in counts], -1)[None])

    return operation


def _autocontrast_table(counts: Table) -> Table:
    """Returns the table that stretches a channel to the whole range from 0 to 255."""
    (present_values,) = np.nonzero(counts)
    low, high = int(present_values[0]), int(present_values[-1])
    if high <= low:
        return _BYTE_VALUES.astype(np.uint8)
    scale = 255.0 / (high - low)
    return np.clip((_BYTE_VALUES * scale + -low * scale).astype(np.int64), 0, 255).astype(np.uint8)


def _equalize_table(counts: Table) -> Table:
    """Returns the table that gives about the same number of pixels to each value."""
    nonzero_counts = counts[counts > 0]
    step = int(counts.sum() - nonzero_counts[-1]) // 255
    if len(nonzero_counts) <= 1 or not step:
        return _BYTE_VALUES.astype(np.uint8)
    preceding_counts = np.concatenate(([0], np.cumsum(counts)[:-1]))
    return np.clip((step // 2 + preceding_counts) // step, 0, 255).astype(np.uint8)


_IMAGE_OPERATIONS: dict[str, Callable[[Image, float], Image]] = {
    "Contrast": _change_contrast,
    "Color": _change_saturation,
    "Sharpness": _change_sharpness,
    "AutoContrast": _histogram_operation(_autocontrast_table),
    "Equalize": _histogram_operation(_equalize_table),
}


def _slide(
    image: Image, axis: str, *, slope: float, pixels: float, resample: PillowImage.Resampling, colour: Colour
) -> Image:
    """Shears or shifts an image along one axis, with interpolation.

    Columns are moved as the rows of the transposed image.
    """
    from ppxcls.data import pixel_kernels

    rows = np.ascontiguousarray(image) if axis == "X" else cv2.transpose(image)
    out = np.empty_like(rows)
    flat_shape, shares = (len(rows), -1), np.empty(3 * rows.shape[1])
    fill = np.array(colour, np.uint8)
    call(
        pixel_kernels.slide,
        rows.reshape(flat_shape),
        float(slope),
        float(pixels),
        resample == _BICUBIC,
        fill,
        shares,
        out.reshape(flat_shape),
    )
    return out if axis == "X" else cv2.transpose(out)


def _shift(image: Image, axis: str, pixels: float, colour: Colour) -> Image:
    """Shifts an image along one axis by whole pixels."""
    axis_index = 1 if axis == "X" else 0
    side = image.shape[axis_index]
    # Added one by one, so that the sums are rounded as in Pillow.
    source_positions = np.add.accumulate(np.concatenate(([pixels + 0.5], np.ones(side - 1))))
    is_inside = (source_positions >= 0) & (source_positions.astype(np.int64) < side)
    out = np.empty_like(image)
    out[...] = colour
    target, source = np.moveaxis(out, axis_index, 0), np.moveaxis(image, axis_index, 0)
    if is_inside.any():
        first, last = np.flatnonzero(is_inside)[[0, -1]]
        begin = int(source_positions[first])
        target[first : last + 1] = source[begin : begin + last - first + 1]
    return out


def _rotate(image: Image, degrees: float, colour: Colour) -> Image:
    """Rotates an image around its centre; each pixel is the nearest one."""
    from ppxcls.data import pixel_kernels

    height, width = image.shape[:2]
    angle = -math.radians(degrees % 360.0)
    a, b, d, e = (round(f(angle), 15) for f in (math.cos, math.sin, lambda angle: -math.sin(angle), math.cos))
    centre_x, centre_y = width / 2.0, height / 2.0
    c, f = a * -centre_x + b * -centre_y + centre_x, d * -centre_x + e * -centre_y + centre_y
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
