"""The channels and the bits of decoded images."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from ppxcls.system.arrays import Array

_UINT16_PER_UINT8 = 257  # 255 becomes 65535


class PixelFormat(NamedTuple):
    """The channels and the bits of a decoded image, [H, W, channels]. The default is 8 bits of RGB.

    Attributes:
        channels: 1 for grey, 3 for RGB, 4 for RGBA.
        bits: 8 for uint8, 16 for uint16.
    """

    channels: int = 3
    bits: int = 8

    @property
    def dtype(self) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
        """Type of the values."""
        return np.dtype(np.uint8) if self.bits == 8 else np.dtype(np.uint16)

    @property
    def pixel_bytes(self) -> int:
        """Bytes of a pixel."""
        return self.channels * self.bits // 8

    @property
    def largest_value(self) -> int:
        """Largest value of a channel, which is that of an opaque alpha."""
        return (1 << self.bits) - 1

    def check(self, image: Array) -> None:
        """Checks a decoded image.

        Raises:
            ValueError: the image has another type or shape.
        """
        if image.dtype != self.dtype or image.ndim != 3 or image.shape[2] != self.channels or not image.size:
            raise ValueError(
                f"expected an image {self.dtype} [H, W, {self.channels}], "
                f"received {image.dtype} {list(image.shape)}"
            )

    def converted(self, image: Array) -> Array:
        """Returns an image in this format.

        Args:
            image: grey, RGB or RGBA image, uint8 or uint16, [H, W, C].
        """
        if image.dtype != self.dtype:
            image = (
                (image >> 8).astype(np.uint8)
                if self.bits == 8
                else image.astype(np.uint16) * np.uint16(_UINT16_PER_UINT8)
            )
        count = image.shape[2]
        if count == self.channels:
            return np.ascontiguousarray(image)
        if self.channels == 1:
            return cv2.cvtColor(np.ascontiguousarray(image[:, :, :3]), cv2.COLOR_RGB2GRAY)[:, :, None]
        colours = np.repeat(image, 3, axis=2) if count == 1 else image[:, :, :3]
        if self.channels == 3:
            return np.ascontiguousarray(colours)
        alpha = np.full((*image.shape[:2], 1), self.largest_value, self.dtype)
        return np.concatenate([colours, alpha], axis=2)
