"""Decodes images.

The pixels always equal those of ``cv2.imdecode(..., 1)``; common JPEGs are decoded faster.
"""

from __future__ import annotations

import io
import os
import threading
import warnings
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image as PillowImage

from ppxcls.system.logs import logger

Image = np.ndarray[Any, Any]

# The loader decodes in threads of its own; OpenCV's pool would compete with them for the cores.
cv2.setNumThreads(1)

MOST_PIXELS = int(os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"])  # OpenCV's limit, applied here to headers as well
_PNG = b"\x89PNG\r\n\x1a\n"
_START_OF_IMAGE, _START_OF_SCAN, _EXIF = 0xD8, 0xDA, 0xE1
_has_warned = threading.Event()
# Pillow refuses twice as many as it warns of; here it is only asked for sizes, which are compared with our
# own limit.
PillowImage.MAX_IMAGE_PIXELS = max(PillowImage.MAX_IMAGE_PIXELS or 0, MOST_PIXELS)
warnings.filterwarnings("ignore", category=PillowImage.DecompressionBombWarning)
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


class ImageParts:
    """An image that is decoded as far as it is needed.

    A base class, because asking for a Protocol takes microseconds.

    Attributes:
        shape: height, width, 3.
    """

    shape: tuple[int, int, int]

    @property
    def encoded(self) -> bytes:
        """The file."""
        raise NotImplementedError

    def whole(self) -> Image:
        """The image, uint8 [H, W, 3], RGB. Raises ValueError."""
        raise NotImplementedError

    def part(self, left: int, top: int, width: int, height: int) -> Image:
        """The pixels of a part, the same as in ``whole()``, uint8 [height, width, 3]. Raises ValueError."""
        raise NotImplementedError


def decode_image(data: bytes) -> Image:
    """Decode a JPEG, PNG or anything else that OpenCV reads.

    JPEGs are decoded by simplejpeg, which is libjpeg-turbo as well and gives RGB without a conversion from
    BGR. OpenCV decodes what simplejpeg would read differently: an EXIF orientation, four colour components,
    and data that libjpeg decodes with a warning.

    Returns:
        uint8 [H, W, 3], RGB, upright.

    Raises:
        ValueError: the data is empty, truncated, larger than ``OPENCV_IO_MAX_IMAGE_PIXELS``, or no image.
    """
    if not data:
        raise ValueError("the file is empty")
    if _is_plain_jpeg(data):
        try:
            return simplejpeg.decode_jpeg(data, "RGB")
        except ValueError as error:
            # Older releases of OpenCV would fill the missing part with grey.
            if "Premature end of JPEG file" in str(error):
                raise ValueError("truncated JPEG") from None
    if data[:8] == _PNG:
        _check_pixels(data[20:24], data[16:20])
    else:
        _check_size_by_pillow(data)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise ValueError(f"OpenCV can't decode it: {error.err}") from None
    if image is None and (data[:4] == b"GIF8" or data[4:12] in (b"ftypavif", b"ftypavis")):
        return _by_pillow(data)
    if image is None:
        raise ValueError("not an image, or damaged beyond decoding")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def _check_size_by_pillow(data: bytes) -> None:
    """Refuse too many pixels by the header.

    OpenCV's own limit does not hold if it was imported before this package.
    """
    try:
        with PillowImage.open(io.BytesIO(data)) as picture:
            width, height = picture.size
    except PillowImage.DecompressionBombError:
        raise ValueError(
            f"too many pixels; an image may have {MOST_PIXELS:,} (OPENCV_IO_MAX_IMAGE_PIXELS)"
        ) from None
    except Exception:  # what Pillow does not know, OpenCV may decode, or refuse
        return
    _check_pixels(height.to_bytes(8, "big"), width.to_bytes(8, "big"))


def _by_pillow(data: bytes) -> Image:
    """The first picture of a GIF or AVIF, for OpenCV's builds without these formats."""
    try:
        with PillowImage.open(io.BytesIO(data)) as picture:
            _check_pixels(picture.height.to_bytes(4, "big"), picture.width.to_bytes(4, "big"))
            return np.array(picture.convert("RGB"))
    except (OSError, SyntaxError, PillowImage.DecompressionBombError):
        raise ValueError("not an image, or damaged beyond decoding") from None


def largest_of_few_bits(data: bytes, image: Image) -> int | None:
    """The largest value of an image with 16 bits per channel that uses 14 or fewer, so that it is decoded to
    almost black.

    Cameras and microscopes write such files. None for any other image.

    Args:
        data: encoded bytes.
        image: the decoded image, uint8 [H, W, 3].
    """
    may_have_16 = (data[:8] == _PNG and data[24:25] == b"\x10") or data[:4] in (b"II*\0", b"MM\0*")
    if not may_have_16 or int(image.max()) > 64:
        return None
    whole = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if whole is None or whole.dtype not in (np.uint16, np.int16):
        return None
    largest = int(whole[..., :3].max() if whole.ndim == 3 else whole.max())
    return largest if 0 < largest < 1 << 14 else None


def warn_of_few_bits(data: bytes, image: Image) -> None:
    """Log a warning, once in a process, for an image of which ``largest_of_few_bits`` is not None."""
    if not _has_warned.is_set() and (largest := largest_of_few_bits(data, image)) is not None:
        _has_warned.set()
        values = f"an image with 16 bits per channel has values up to {largest:,} of 65,535"
        logger.warning(f"{values}, so it decodes to almost black; ppxcls check lists such files")


def _check_pixels(height: bytes, width: bytes) -> None:
    size = [int.from_bytes(side, "big") for side in (width, height)]
    if size[0] * size[1] > MOST_PIXELS:
        raise ValueError(
            f"{size[0]} x {size[1]} pixels; an image may have {MOST_PIXELS:,} (OPENCV_IO_MAX_IMAGE_PIXELS)"
        )


def _is_plain_jpeg(data: bytes) -> bool:
    """Whether it is a JPEG with at most 3 components and without an EXIF orientation, by the markers before the
    first scan.

    Raises:
        ValueError: it has too many pixels.
    """
    if data[:2] != bytes((0xFF, _START_OF_IMAGE)):
        return False
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        segment = data[position + 4 : position + 2 + length] if marker in _FRAMES or marker == _EXIF else b""
        if marker in _FRAMES:
            _check_pixels(segment[1:3], segment[3:5])
            if len(segment) < 6 or segment[5] > 3:
                return False
        # The orientation's tag, 0x0112, in either byte order; a chance match costs only the detour through
        # OpenCV.
        if (
            marker == _EXIF
            and segment.startswith(b"Exif")
            and (b"\x01\x12" in segment or b"\x12\x01" in segment)
        ):
            return False
        if marker == _START_OF_SCAN:
            return True
        position += 2 + length
    return False
