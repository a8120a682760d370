"""Transforms that put an image on a larger area."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import cv2

from ppxcls.config.checks import Bound, CountOrZero
from ppxcls.data.decode import Image
from ppxcls.data.pixel_size import FillValue, check_fill, check_result_size, filled
from ppxcls.data.preparation import PreparedImages, side_or_sides
from ppxcls.data.resize import Size, width_and_height
from ppxcls.data.transforms import TRANSFORMS, Generator, Transform

Padding = Annotated[int, Bound(ge=0, le=4096)]
Divisor = Annotated[int, Bound(ge=1, le=4096)]
_BORDERS = {
    "edge": cv2.BORDER_REPLICATE,
    "reflect": cv2.BORDER_REFLECT_101,
    "symmetric": cv2.BORDER_REFLECT,
}


@TRANSFORMS.register
class Pad(Transform):
    """Adds pixels on all sides.

    Args:
        padding: pixels of each side; [left and right, top and bottom], or [left, top, right, bottom].
        fill: value of the new pixels, in the units of the image; a list for a value of each channel.
        padding_mode: content of the new pixels. ``constant`` is ``fill``, ``edge`` the nearest pixel,
            ``reflect`` the mirrored image without the pixels at its edge, ``symmetric`` with them.
        backend: key of PaddleClas that has no effect.
    """

    def __init__(
        self,
        padding: Padding | list[Padding],
        fill: FillValue = 0.0,
        *,
        padding_mode: Literal["constant", "edge", "reflect", "symmetric"] = "constant",
        backend: Literal["cv2", "pil"] = "cv2",
    ) -> None:
        sides = [padding] if isinstance(padding, int) else list(padding)
        if len(sides) not in (1, 2, 4):
            raise ValueError(f"expected padding as 1, 2 or 4 integers, received {len(sides)}")
        self.left, self.top, self.right, self.bottom = sides * (4 // len(sides))
        self.fill = fill
        self.padding_mode = padding_mode

    def prepare(self, images: PreparedImages) -> PreparedImages:
        """Enlarges the size."""
        check_fill("fill", self.fill, images.channel_count)
        if images.size is None:
            return images
        width, height = width_and_height(images.size)
        size = width + self.left + self.right, height + self.top + self.bottom
        return replace(images, size=side_or_sides(size))

    def __call__(self, image: Image, rng: Generator) -> Image:
        height, width = image.shape[:2]
        new_width, new_height = width + self.left + self.right, height + self.top + self.bottom
        if self.padding_mode == "constant":
            canvas = filled(image, new_width, new_height, self.fill)
            canvas[self.top : self.top + height, self.left : self.left + width] = image
            return canvas
        check_result_size(image, new_width, new_height)
        border = _BORDERS[self.padding_mode]
        return cv2.copyMakeBorder(image, self.top, self.bottom, self.left, self.right, border)


@TRANSFORMS.register
class Padv2(Transform):
    """Adds pixels until an image has a size. The type of the image stays, unlike in PaddleClas.

    Args:
        size: pixels of both sides of the result, or [width, height]; null for ``size_divisor``. A larger
            image is an error.
        size_divisor: number by which the sides of the result can be divided, if there is no ``size``.
        pad_mode: place of the image; 0 for left and top, 1 for the centre, 2 for right and bottom, -1 for
            ``offsets``.
        offsets: left and top edge of the image in the result, in pixels.
        fill_value: value of the new pixels, in the units of the image; a list for a value of each channel.
    """

    def __init__(
        self,
        size: Size | None = None,
        size_divisor: Divisor = 32,
        *,
        pad_mode: Literal[-1, 0, 1, 2] = 0,
        offsets: tuple[CountOrZero, CountOrZero] | None = None,
        fill_value: FillValue = 127.5,
    ) -> None:
        if (pad_mode == -1) != (offsets is not None):
            raise ValueError("expected offsets with pad_mode -1, and with no other pad_mode")
        self.size = None if size is None else width_and_height(size)
        self.size_divisor = size_divisor
        self.pad_mode = pad_mode
        self.offsets = offsets
        self.fill_value = fill_value

    def prepare(self, images: PreparedImages) -> PreparedImages:
        """Sets the size."""
        check_fill("fill_value", self.fill_value, images.channel_count)
        if self.size is None and images.size is None:
            return images
        width, height = (0, 0) if images.size is None else width_and_height(images.size)
        return replace(images, size=side_or_sides(self._new_size(width, height)))

    def __call__(self, image: Image, rng: Generator) -> Image:
        height, width = image.shape[:2]
        new_width, new_height = self._new_size(width, height)
        free_width, free_height = new_width - width, new_height - height
        centre = free_width // 2, free_height // 2
        places = {0: (0, 0), 1: centre, 2: (free_width, free_height), -1: self.offsets or (0, 0)}
        left, top = places[self.pad_mode]
        if left > free_width or top > free_height:
            raise ValueError(
                f"Padv2: expected an image that fits into {new_width}x{new_height} pixels from "
                f"({left}, {top}), received {width}x{height}"
            )
        if (new_width, new_height) == (width, height):
            return image
        canvas = filled(image, new_width, new_height, self.fill_value)
        canvas[top : top + height, left : left + width] = image
        return canvas

    def _new_size(self, width: int, height: int) -> tuple[int, int]:
        """Returns width and height of the result in pixels."""
        if self.size is not None:
            return self.size
        return tuple(-(-side // self.size_divisor) * self.size_divisor for side in (width, height))  # type: ignore[return-value]
