"""Resizes images with OpenCV, with Pillow, or with a kernel that gives Pillow's pixels.

It resizes whole images, and images that are decoded only as far as a part needs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import cv2
import numpy as np
from PIL import Image as PillowImage

from ppxcls.config.checks import Count
from ppxcls.data.decode import Image, ImageParts
from ppxcls.data.pixel_size import check_result_size
from ppxcls.system import kernels

Size = Count | list[Count]
Interpolation = Literal["nearest", "bilinear", "bicubic", "area", "lanczos", "box", "hamming"]
ResizeFunction = Callable[[Image, tuple[int, int]], Image]
_RADIUS_PIXELS = 4  # radius of the widest interpolation, in pixels of the larger of the two images

_CV2_METHODS = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
    "lanczos": cv2.INTER_LANCZOS4,
}
_PILLOW_METHODS = {
    "nearest": PillowImage.Resampling.NEAREST,
    "bilinear": PillowImage.Resampling.BILINEAR,
    "bicubic": PillowImage.Resampling.BICUBIC,
    "box": PillowImage.Resampling.BOX,
    "lanczos": PillowImage.Resampling.LANCZOS,
    "hamming": PillowImage.Resampling.HAMMING,
}

_OPENCV_CHANNELS = 4  # of the images that it transposes
_KERNEL_METHODS = ("bilinear", "bicubic")  # Pillow's filters that the numba kernel supports
_MAX_INTERMEDIATE_PIXELS = 1 << 26  # pixels of the image between the two steps of Pillow's resizing


def interpolation_name(interpolation: str | None, backend: str) -> str:
    """Returns the interpolation, or the backend's default.

    The default is bilinear for cv2 and bicubic for Pillow, as in PaddleClas.
    """
    return interpolation or ("bilinear" if backend == "cv2" else "bicubic")


def resizer(interpolation: str | None, backend: str) -> ResizeFunction:
    """Returns a function from an image [H, W, C] and (width, height) to the resized image.

    The backend cv2 takes uint8 and uint16, and pil takes uint8.

    Raises:
        ValueError: the backend does not support this interpolation.
    """
    table: Mapping[str, Any] = _CV2_METHODS if backend == "cv2" else _PILLOW_METHODS
    name = interpolation_name(interpolation, backend)
    if name not in table:
        raise ValueError(f"expected an interpolation of {backend}: {', '.join(table)}; received {name!r}")
    return functools.partial(_resize, name=name, backend=backend)


def _resize(image: Image, size: tuple[int, int], *, name: str, backend: str) -> Image:
    check_result_size(image, *size)
    # Such as a column of pixels, because it is made wider first.
    if backend == "pil" and size[0] * image.shape[0] > _MAX_INTERMEDIATE_PIXELS:
        raise ValueError(
            f"{image.shape[1]} x {image.shape[0]} pixels would become {size[0]} x {image.shape[0]}; too many"
        )
    if backend == "cv2":
        return cv2.resize(image, size, interpolation=_CV2_METHODS[name])
    if name in _KERNEL_METHODS and kernels.HAS_NUMBA and image.dtype == np.uint8:
        return _resize_by_kernel(image, size, is_cubic=name == "bicubic")
    return _resize_by_pillow(image, size, _PILLOW_METHODS[name])


def _resize_by_pillow(image: Image, size: tuple[int, int], method: PillowImage.Resampling) -> Image:
    """Resizes the width first, as a single call did up to Pillow 12.

    Pillow 13 starts with the height if the height is reduced more, which gives other pixels. Channels are
    resized one by one unless there are three, because Pillow weighs the colours of RGBA with their alpha.
    """
    if image.dtype != np.uint8:
        raise ValueError(f"the backend pil resizes uint8 images, received {image.dtype}; use cv2")
    if image.ndim == 3 and image.shape[2] != 3:
        planes = [_resize_by_pillow(image[:, :, i], size, method) for i in range(image.shape[2])]
        return np.stack(planes, axis=2)
    picture = PillowImage.fromarray(image)
    if method != PillowImage.Resampling.NEAREST:
        picture = picture.resize((size[0], picture.height), method)
    return np.asarray(picture.resize(size, method))


def _resize_by_kernel(image: Image, size: tuple[int, int], *, is_cubic: bool) -> Image:
    """Resizes an image to the same pixels as Pillow, with a kernel.

    The kernel resizes the first side, so the image is transposed to resize its width.
    """

    from ppxcls.data.resample_kernels import resample

    def resize_first_side(source: Image, length: int) -> Image:
        out = np.empty((length, *source.shape[1:]), np.uint8)
        rows = np.ascontiguousarray(source).reshape(len(source), -1)
        kernels.call(resample, rows, is_cubic, out.reshape(length, -1))
        return out

    width, height = size
    if width != image.shape[1]:
        image = _transposed(resize_first_side(_transposed(image), width))
    return np.ascontiguousarray(image) if height == image.shape[0] else resize_first_side(image, height)


def _transposed(image: Image) -> Image:
    """Returns an image with its first two axes swapped. OpenCV does that for up to four channels."""
    if image.ndim == 3 and image.shape[2] > _OPENCV_CHANNELS:
        return np.ascontiguousarray(image.transpose(1, 0, 2))
    return cv2.transpose(image).reshape(image.shape[1], image.shape[0], *image.shape[2:])


def width_and_height(size: int | Sequence[int]) -> tuple[int, int]:
    """Returns a size as (width, height).

    Raises:
        ValueError: the list does not have 2 items.
    """
    if isinstance(size, int):
        return size, size
    if len(size) != 2:
        raise ValueError(f"expected size as one integer or [width, height], received {list(size)}")
    return size[0], size[1]


def cut_part(image: Image | ImageParts, *, left: int, top: int, width: int, height: int) -> Image:
    """Returns a part of an image, uint8 [height, width, 3]."""
    if isinstance(image, ImageParts):
        return image.part(left, top, width, height)
    return image[top : top + height, left : left + width]


class ResizedParts(ImageParts):
    """A resized image that decodes only the pixels that a part needs.

    A part has the same pixels as in the whole resized image. Both libraries derive the positions between the
    pixels from the whole size. So the part is cut from a resized image of the whole size, and the pixels that
    the part does not need are empty.

    Args:
        image: image to resize.
        size: width and height after resizing, in pixels.
        resize: function that resizes an image.

    Attributes:
        shape: height and width after resizing, and 3.
    """

    def __init__(self, image: ImageParts, size: tuple[int, int], resize: ResizeFunction) -> None:
        self._image = image
        self._size = size
        self._resize = resize
        self.shape = size[1], size[0], 3

    @property
    def encoded(self) -> bytes:
        """The encoded file, which is not resized."""
        return self._image.encoded

    def whole(self) -> Image:
        """Returns the resized image, uint8 [H, W, 3].

        Raises:
            ValueError: the image can't be decoded or resized.
        """
        return self._resize(self._image.whole(), self._size)

    def part(self, left: int, top: int, width: int, height: int) -> Image:
        """Returns a part of the resized image, uint8 [height, width, 3].

        Raises:
            ValueError: the image can't be decoded or resized.
        """
        rows, columns = self._image.shape[:2]
        source_x, source_width = _source_range(left, width, columns / self._size[0], columns)
        source_y, source_height = _source_range(top, height, rows / self._size[1], rows)
        if source_width * source_height == rows * columns:
            return self.whole()[top : top + height, left : left + width]
        canvas = np.empty(self._image.shape, np.uint8)
        canvas[source_y : source_y + source_height, source_x : source_x + source_width] = self._image.part(
            source_x, source_y, source_width, source_height
        )
        return self._resize(canvas, self._size)[top : top + height, left : left + width]


def _source_range(start: int, length: int, scale: float, total: int) -> tuple[int, int]:
    """Returns start and length of the source pixels that a part of the resized side depends on."""
    margin = _RADIUS_PIXELS * max(1.0, scale) + 1
    first = max(int(start * scale - margin), 0)
    return first, min(int((start + length) * scale + margin) + 1, total) - first
