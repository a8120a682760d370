"""Limits the number of pixels of a transform's result, and the values of the area that it uncovers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ppxcls.config.checks import Finite
from ppxcls.data.decode import MAX_PIXELS, Image
from ppxcls.data.picture_headers import current_limits
from ppxcls.system.arrays import Array

FillValue = Finite | list[Finite]
_OPENCV_CHANNELS = 4  # that OpenCV can fill with values of their own


def check_result_size(image: Image, width: int, height: int) -> None:
    """Checks the size of a result before it takes memory.

    Args:
        image: image before the transform.
        width: width of the result in pixels.
        height: height of the result in pixels.

    Raises:
        ValueError: the result would have too many pixels.
    """
    limits = current_limits()
    max_pixels = MAX_PIXELS if limits is None else min(limits.pixels, MAX_PIXELS)
    if width * height > max_pixels:  # such as a line of pixels, if its shorter side is enlarged
        raise ValueError(
            f"{image.shape[1]} x {image.shape[0]} pixels would become {width} x {height}; too many"
        )


def check_fill(name: str, fill: float | Sequence[float], channel_count: int | None) -> None:
    """Checks the number of fill values before there is an image.

    Args:
        name: name of the argument, for the message.
        fill: one value for all channels, or a value for each channel.
        channel_count: number of channels; None if it is not known.

    Raises:
        ValueError: the number of values is not the number of channels.
    """
    count = np.size(fill)
    if channel_count is not None and count not in (1, channel_count):
        raise ValueError(f"expected {name} as one number, or {channel_count}; received {count}")


def fill_of_channels(fill: float | Sequence[float], image: Image) -> Array:
    """Returns the value of each channel, rounded and clipped to the image's type, [C].

    Args:
        fill: one value for all channels, or a value for each channel.
        image: image, [H, W, C].

    Raises:
        ValueError: the number of values is not the number of channels.
    """
    values = np.atleast_1d(np.asarray(fill, np.float64))
    if values.size not in (1, image.shape[2]):
        raise ValueError(f"expected one value, or {image.shape[2]} to fill with; received {values.size}")
    if image.dtype.kind in "iu":
        limits = np.iinfo(image.dtype)
        values = np.rint(values).clip(limits.min, limits.max)
    return np.broadcast_to(values.astype(image.dtype), (image.shape[2],))


def filled(image: Image, width: int, height: int, fill: float | Sequence[float]) -> Image:
    """Returns an image of another size with one colour.

    Args:
        image: image with the channels and the type of the result, [H, W, C].
        width: width of the result in pixels.
        height: height of the result in pixels.
        fill: value as in ``fill_of_channels``.

    Raises:
        ValueError: the result would have too many pixels, or ``fill`` does not fit.
    """
    check_result_size(image, width, height)
    canvas = np.empty((height, width, image.shape[2]), image.dtype)
    canvas[:] = fill_of_channels(fill, image)
    return canvas


def by_channel_groups(image: Image, fill: Array, function: Callable[[Image, Any], Image]) -> Image:
    """Applies a function of OpenCV that takes a fill value, and at most four channels.

    Args:
        image: image, [H, W, C].
        fill: value of each channel, [C].
        function: function of some channels and of their fill values.
    """
    if image.shape[2] <= _OPENCV_CHANNELS:
        return function(np.ascontiguousarray(image), tuple(fill.tolist()))
    groups = [
        function(
            np.ascontiguousarray(image[:, :, first : first + _OPENCV_CHANNELS]),
            tuple(fill[first : first + _OPENCV_CHANNELS].tolist()),
        )
        for first in range(0, image.shape[2], _OPENCV_CHANNELS)
    ]
    return np.concatenate([group.reshape(*group.shape[:2], -1) for group in groups], axis=2)
