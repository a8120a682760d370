"""Transforms with the names and the rules of ``paddle.vision``, which PaddleClas's YAMLs use too.

A size is [height, width] here, as there. The other transforms of this package have [width, height].
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import cv2
import numpy as np

from ppxcls.config.checks import Finite, NotNegative, Share
from ppxcls.data.decode import Image
from ppxcls.data.pixel_size import (
    FillValue,
    by_channel_groups,
    check_fill,
    check_result_size,
    fill_of_channels,
)
from ppxcls.data.preparation import PreparedImages
from ppxcls.data.resize import Interpolation, Size, resizer, width_and_height
from ppxcls.data.transforms import TRANSFORMS, CentreCrop, Generator, ResizeImage, Transform

_METHODS = {"nearest": cv2.INTER_NEAREST, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


def _height_and_width(size: Size) -> tuple[int, int]:
    """Returns a size of ``paddle.vision`` as (width, height)."""
    height, width = width_and_height(size)
    return width, height


@TRANSFORMS.register
class Resize(Transform):
    """Resizes the shorter side to ``size``, or the image to [height, width].

    Args:
        size: pixels of the shorter side; the other side keeps the aspect ratio, and its fraction is dropped.
            A list is [height, width].
        interpolation: method of interpolation.
        backend: library that resizes, OpenCV or Pillow.
    """

    def __init__(
        self,
        size: Size,
        interpolation: Interpolation = "bilinear",
        *,
        backend: Literal["cv2", "pil"] = "cv2",
    ) -> None:
        self._short = size if isinstance(size, int) else None
        self._size = _height_and_width(size)
        self._facts = ResizeImage(list(self._size), interpolation=interpolation, backend=backend)
        self._resize = resizer(interpolation, backend)

    def prepare(self, images: PreparedImages) -> PreparedImages:
        """Sets the size, or the shorter side, and the interpolation."""
        images = self._facts.prepare(images)
        return images if self._short is None else replace(images, size=None, short=self._short)

    def __call__(self, image: Image, rng: Generator) -> Image:
        if self._short is None:
            return self._resize(image, self._size)
        height, width = image.shape[:2]
        sides = [max(int(self._short * side / min(width, height)), 1) for side in (width, height)]
        return self._resize(image, (sides[0], sides[1]))


@TRANSFORMS.register
class CenterCrop(CentreCrop):
    """Crops the centre; a smaller image is an error.

    A half pixel is rounded to the even neighbour. ``CropImage`` rounds it down.

    Args:
        size: pixels of both sides, or [height, width].
    """

    def __init__(self, size: Size) -> None:
        super().__init__(*_height_and_width(size))

    def start(self, space: int) -> int:
        """Returns the first pixel; half a pixel is rounded to the even neighbour."""
        return round(space / 2)


@TRANSFORMS.register
class RandomRotation(Transform):
    """Rotates the image by a random angle around its centre.

    Args:
        degrees: limit d of the angle, which is drawn from [-d, d]; or [lowest, highest]. A positive angle is
            counter-clockwise.
        prob: probability of the transform.
        interpolation: method of interpolation.
        expand: True to enlarge the image, so that all of it is visible. Sizes differ then, so a resize or a
            crop has to follow.
        center: centre of the rotation, [x, y] in pixels from the left upper corner; null for the image's. It
            has no effect with ``expand``.
        fill: value of uncovered pixels, in the units of the image; a list for a value of each channel.
    """

    def __init__(
        self,
        degrees: NotNegative | tuple[Finite, Finite],
        prob: Share = 0.5,
        *,
        interpolation: Literal["nearest", "bilinear", "bicubic"] = "nearest",
        expand: bool = False,
        center: tuple[Finite, Finite] | None = None,
        fill: FillValue = 0.0,
    ) -> None:
        low, high = degrees if isinstance(degrees, list | tuple) else (-degrees, degrees)
        if low > high:
            raise ValueError(f"expected degrees as [lowest, highest], received {[low, high]}")
        self.degrees = (low, high)
        self.prob = prob
        self.expand = expand
        self.center = center
        self.fill = fill
        self._method = _METHODS[interpolation]

    def prepare(self, images: PreparedImages) -> PreparedImages:
        """Forgets the size if the image is enlarged."""
        check_fill("fill", self.fill, images.channel_count)
        return replace(images, size=None, short=None) if self.expand else images

    def __call__(self, image: Image, rng: Generator) -> Image:
        is_rotated, angle = rng.random() < self.prob, rng.uniform(*self.degrees)
        return self.rotated(image, angle) if is_rotated else image

    def rotated(self, image: Image, angle: float) -> Image:
        """Returns an image rotated by an angle in degrees.

        Raises:
            ValueError: the result would have too many pixels, or ``fill`` does not fit.
        """
        height, width = image.shape[:2]
        size = self._expanded_size(width, height, angle) if self.expand else (width, height)
        check_result_size(image, *size)
        # OpenCV counts from the centre of the first pixel, and users from its corner.
        centre = (width - 1) / 2, (height - 1) / 2
        if self.center is not None and not self.expand:
            centre = self.center[0] - 0.5, self.center[1] - 0.5
        matrix = cv2.getRotationMatrix2D(centre, angle, 1.0)
        matrix[:, 2] += (size[0] - width) / 2, (size[1] - height) / 2

        def rotate(channels: Image, fill: tuple[float, ...]) -> Image:
            return cv2.warpAffine(channels, matrix, size, flags=self._method, borderValue=fill)

        return by_channel_groups(image, fill_of_channels(self.fill, image), rotate)

    @staticmethod
    def _expanded_size(width: int, height: int, angle: float) -> tuple[int, int]:
        """Returns the smallest whole (width, height) that holds the rotated image."""
        cosine, sine = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
        sides = (width * cosine + height * sine, width * sine + height * cosine)
        return math.ceil(round(sides[0], 6)), math.ceil(round(sides[1], 6))


@TRANSFORMS.register
class RandomGrayscale(Transform):
    """Removes the colours with a probability: all channels get the luminance (ITU-R BT.601).

    Args:
        p: probability of the transform.
    """

    channel_counts = (3,)

    def __init__(self, p: Share = 0.1) -> None:
        self.p = p
        self._conversion = cv2.COLOR_RGB2GRAY

    def prepare(self, images: PreparedImages) -> PreparedImages:
        """Takes note of the order of the channels."""
        self._conversion = cv2.COLOR_BGR2GRAY if images.channels == "BGR" else cv2.COLOR_RGB2GRAY
        return images

    def __call__(self, image: Image, rng: Generator) -> Image:
        if rng.random() >= self.p:
            return image
        grey = cv2.cvtColor(np.ascontiguousarray(image), self._conversion)
        return cv2.merge([grey] * 3)
