"""Resizing by OpenCV, by Pillow or with Pillow's pixels, of whole images and of parts that are decoded as they are needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import cv2
import numpy as np
from PIL import Image as PillowImage

from ppxcls.config.checks import Count
from ppxcls.data.decode import MOST_PIXELS, Image, ImageParts
from ppxcls.system import kernels

Size = Count | list[Count]
Interpolation = Literal["nearest", "bilinear", "bicubic", "area", "lanczos", "box", "hamming"]
Resize = Callable[[Image, tuple[int, int]], Image]
_RADIUS = 4  # of the widest interpolation, in pixels of the larger one of both images

_CV2 = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
    "lanczos": cv2.INTER_LANCZOS4,
}
_PILLOW = {
    "nearest": PillowImage.Resampling.NEAREST,
    "bilinear": PillowImage.Resampling.BILINEAR,
    "bicubic": PillowImage.Resampling.BICUBIC,
    "box": PillowImage.Resampling.BOX,
    "lanczos": PillowImage.Resampling.LANCZOS,
    "hamming": PillowImage.Resampling.HAMMING,
}

_BY_KERNEL = ("bilinear", "bicubic")  # those of Pillow's filters that ``_resampled`` has
_MOST_BETWEEN = 1 << 26  # pixels between the two steps of Pillow's resizing


def interpolation_name(interpolation: str | None, backend: str) -> str:
    """The interpolation, or the backend's default: bilinear for cv2, and bicubic for Pillow, as in PaddleClas."""
    return interpolation or ("bilinear" if backend == "cv2" else "bicubic")


def resizer(interpolation: str | None, backend: str) -> Resize:
    """A function from uint8 [H, W, 3] and (width, height) to the resized image.

    Raises:
        ValueError: the backend does not have this interpolation.
    """
    table: Mapping[str, Any] = _CV2 if backend == "cv2" else _PILLOW
    name = interpolation_name(interpolation, backend)
    if name not in table:
        raise ValueError(f"expected an interpolation of {backend}: {', '.join(table)}; received {name!r}")
    method = table[name]

    def resize(image: Image, size: tuple[int, int]) -> Image:
        if size[0] * size[1] > MOST_PIXELS:  # a line of pixels whose shorter side is enlarged
            raise ValueError(
                f"{image.shape[1]} x {image.shape[0]} pixels would become {size[0]} x {size[1]}; too many"
            )
        if (
            backend == "pil" and size[0] * image.shape[0] > _MOST_BETWEEN
        ):  # a column of pixels that is made wider first
            raise ValueError(
                f"{image.shape[1]} x {image.shape[0]} pixels would become {size[0]} x {image.shape[0]}; too many"
            )
        if backend == "cv2":
            return cv2.resize(image, size, interpolation=method)
        if name in _BY_KERNEL and kernels.HAS_NUMBA and image.dtype == np.uint8:
            return _resampled(image, size, name == "bicubic")
        return _by_pillow(image, size, method)

    return resize


def _by_pillow(image: Image, size: tuple[int, int], method: PillowImage.Resampling) -> Image:
    """Width first, as one call did up to Pillow 12.

    Pillow 13 begins with the height if that is reduced more: other pixels.
    """
    picture = PillowImage.fromarray(image)
    if method != PillowImage.Resampling.NEAREST:
        picture = picture.resize((size[0], picture.height), method)
    return np.asarray(picture.resize(size, method))


def _resampled(image: Image, size: tuple[int, int], is_cubic: bool) -> Image:
    """The pixels of ``_by_pillow``, by a kernel that resizes the first side, so that the image is transposed for its width."""

    from ppxcls.data.resample_kernels import resample

    def along_first_side(source: Image, length: int) -> Image:
        out = np.empty((length, *source.shape[1:]), np.uint8)
        rows = np.ascontiguousarray(source).reshape(len(source), -1)
        kernels.call(resample, rows, is_cubic, out.reshape(length, -1))
        return out

    width, height = size
    if width != image.shape[1]:
        image = cv2.transpose(along_first_side(cv2.transpose(image), width))
    return np.ascontiguousarray(image) if height == image.shape[0] else along_first_side(image, height)


def pair_of(size: int | Sequence[int]) -> tuple[int, int]:
    """(width, height).

    Raises:
        ValueError: a list of another length than 2.
    """
    if isinstance(size, int):
        return size, size
    if len(size) != 2:
        raise ValueError(f"expected size as one integer or [width, height], received {list(size)}")
    return size[0], size[1]


def part_of(image: Image | ImageParts, left: int, top: int, width: int, height: int) -> Image:
    """A part of an image, uint8 [height, width, 3]."""
    if isinstance(image, ImageParts):
        return image.part(left, top, width, height)
    return image[top : top + height, left : left + width]


class ResizedParts(ImageParts):
    """An image that is resized, of which only what a part needs is decoded.

    The part is the same as that of the whole image: it is cut from a resized image whose other pixels are
    empty, because both libraries derive the positions between the pixels from the whole size.

    Args:
        image: to resize.
        size: width and height to resize to.
        resize: resizes.

    Attributes:
        shape: height, width, 3 after resizing.
    """

    def __init__(self, image: ImageParts, size: tuple[int, int], resize: Resize) -> None:
        self._image, self._size, self._resize = image, size, resize
        self.shape = size[1], size[0], 3

    @property
    def encoded(self) -> bytes:
        """The file, which is not resized."""
        return self._image.encoded

    def whole(self) -> Image:
        """The resized image, uint8 [H, W, 3]. Raises ValueError."""
        return self._resize(self._image.whole(), self._size)

    def part(self, left: int, top: int, width: int, height: int) -> Image:
        """A part of the resized image, uint8 [height, width, 3]. Raises ValueError."""
        rows, columns = self._image.shape[:2]
        x, across = _needed(left, width, columns / self._size[0], columns)
        y, down = _needed(top, height, rows / self._size[1], rows)
        if across * down == rows * columns:
            return self.whole()[top : top + height, left : left + width]
        canvas = np.empty(self._image.shape, np.uint8)
        canvas[y : y + down, x : x + across] = self._image.part(x, y, across, down)
        return self._resize(canvas, self._size)[top : top + height, left : left + width]


def _needed(start: int, length: int, scale: float, total: int) -> tuple[int, int]:
    """Start and length of the pixels of a side that a part of the resized side depends on."""
    margin = _RADIUS * max(1.0, scale) + 1
    first = max(int(start * scale - margin), 0)
    return first, min(int((start + length) * scale + margin) + 1, total) - first
