"""Decodes images.

The pixels always equal those of ``cv2.imdecode(..., 1)``. Common JPEGs are decoded faster.
"""

from __future__ import annotations

import functools
import io
import itertools
import os
import warnings

import cv2
import numpy as np
import simplejpeg
from PIL import Image as PillowImage
from PIL import ImageOps, features

from ppxcls.data.picture_headers import (
    BARE_MARKERS,
    PictureLimits,
    PictureSize,
    check_scans,
    current_limits,
    picture_size,
)
from ppxcls.data.pixel_format import PixelFormat
from ppxcls.system.arrays import Array
from ppxcls.system.atomic_files import reason_of
from ppxcls.system.file_kinds import is_avif, is_heic, why_unreadable
from ppxcls.system.logs import logger
from ppxcls.system.temporary_folder import temporary_folder

Image = Array

# The loader decodes in its own threads. OpenCV's thread pool would compete with them for the cores.
cv2.setNumThreads(1)

MAX_PIXELS = int(os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"])  # OpenCV's limit, also checked in headers here
_PIXEL_LIMITS = PictureLimits(MAX_PIXELS, None, "OPENCV_IO_MAX_IMAGE_PIXELS")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*")
# Portable float map and OpenEXR. A Radiance file can't hold NaN.
_REAL_STARTS = (b"PF", b"Pf", b"v/1\x01")
_TIFF_STARTS = (b"II", b"MM")
_SAMPLE_FORMATS = (b"\x53\x01\x03\x00", b"\x01\x53\x00\x03")  # a TIFF's tag 339, a short number
_RADIANCE_SIGNATURES = (b"#?RADIANCE", b"#?RGBE")
_APNG_HEADER_BYTES = 1024  # an animated PNG says so before its pixels
_START_OF_IMAGE, _START_OF_SCAN, _EXIF_MARKER = 0xD8, 0xDA, 0xE1
# Number of files that a process opens a second time to look for something to warn about. Training reads its
# files in random order, so a common problem is among the first ones. Without a limit, every sample of every
# epoch would be opened twice.
_MAX_REOPENED_FILES = 1000
# Pillow warns above this number, and raises an error above twice this number. The sizes that Pillow reads
# here are compared with our own limit.
PillowImage.MAX_IMAGE_PIXELS = max(PillowImage.MAX_IMAGE_PIXELS or 0, MAX_PIXELS)
warnings.filterwarnings("ignore", category=PillowImage.DecompressionBombWarning)
RGB = PixelFormat()  # of most pictures, 8 bits
_EXIF_MARKS = (b"eXIf", b"EXIF")  # of PNG and WebP; OpenCV turns a TIFF itself
_ORIENTATION_TAG = 0x0112
_FRAME_MARKERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


class _Search:
    """Search for one file to warn about. It ends with the first such file, or after many other files.

    Attributes:
        is_over: True if no more files need to be opened.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count(1)  # next() is one step, so threads can share it
        self.is_over = False

    def count(self, *, is_hit: bool) -> None:
        """Counts a file that was opened."""
        if is_hit or next(self._numbers) >= _MAX_REOPENED_FILES:
            self.is_over = True


_almost_black_search, _several_search = _Search(), _Search()


class ImageParts:
    """An image that is decoded only as far as needed.

    This is a base class, because ``isinstance`` with a Protocol takes microseconds.

    Attributes:
        shape: height and width in pixels, and 3 channels.
    """

    shape: tuple[int, int, int]

    @property
    def encoded(self) -> bytes:
        """The encoded bytes of the file."""
        raise NotImplementedError

    def whole(self) -> Image:
        """Returns the whole image, uint8 [H, W, 3], RGB.

        Raises:
            ValueError: the image can't be decoded.
        """
        raise NotImplementedError

    def decoded(self, pixel_format: PixelFormat) -> Image:
        """Returns the whole image in another format, as ``decode_image`` decodes its file.

        Raises:
            ValueError: the image can't be decoded.
        """
        return decode_image(self.encoded, pixel_format)

    def part(self, left: int, top: int, width: int, height: int) -> Image:
        """Returns the pixels of a part, uint8 [height, width, 3]. They equal those of ``whole()``.

        Raises:
            ValueError: the image can't be decoded.
        """
        raise NotImplementedError


def decode_image(data: bytes, pixel_format: PixelFormat = RGB) -> Image:
    """Decodes a JPEG, a PNG, or any other format that OpenCV reads; HEIC if pillow-heif is installed.

    JPEGs are decoded by simplejpeg, which also uses libjpeg-turbo and returns RGB without a conversion from
    BGR. OpenCV decodes what simplejpeg would read differently: images with an EXIF orientation or four colour
    components, and data that libjpeg decodes with a warning.

    Args:
        data: encoded bytes.
        pixel_format: channels and bits of the result.

    Returns:
        [H, W, C], RGB, RGBA or grey, upright.

    Raises:
        ValueError: the data is empty, truncated, larger than ``OPENCV_IO_MAX_IMAGE_PIXELS`` or than the
            limits of ``picture_limits``, has too many scans, or is not an image. The message tells what the
            file is, if that is known.
    """
    if not data:
        raise ValueError("the file is empty")
    check_scans(data)
    size = picture_size(data) or _size_by_pillow(data)
    if size is not None:
        _check_size(size)
    if _is_plain_jpeg(data):
        is_grey = pixel_format.channels == 1
        try:
            image = simplejpeg.decode_jpeg(data, "GRAY" if is_grey else "RGB")
        except ValueError as error:
            # Older releases of OpenCV would fill the missing part with grey.
            if "Premature end of JPEG file" in str(error):
                raise ValueError("truncated JPEG") from None
        else:
            return image if pixel_format == RGB else pixel_format.converted(image)
    if pixel_format == RGB or data.startswith(_RADIANCE_SIGNATURES):
        return pixel_format.converted(_decode_rgb(data))
    return pixel_format.converted(_decode_unusual(data, pixel_format))


def _decode_rgb(data: bytes) -> Image:
    """Decodes an image to uint8 [H, W, 3], RGB. Raises ValueError."""
    image = _decode_by_opencv(data, cv2.IMREAD_COLOR)
    return _decode_by_pillow(data, "RGB") if image is None else image


def _decode_unusual(data: bytes, pixel_format: PixelFormat) -> Image:
    """Decodes an image with the channels and bits that its file has, as far as the format asks for them.

    Raises:
        ValueError: as ``decode_image``, or the values are no integers of 8 or 16 bits.
    """
    depth = cv2.IMREAD_ANYDEPTH if pixel_format.bits == 16 else 0
    if pixel_format.channels == 4:
        image = _decode_by_opencv(data, cv2.IMREAD_UNCHANGED)
        if image is None:
            return _decode_by_pillow(data, "RGBA")
        if image.shape[2] == 4 and image.dtype == np.uint8 and data.startswith(_TIFF_SIGNATURES):
            return _four_channels_of_tiff(data, image)
        if image.shape[2] == 4 and image.dtype in (np.uint8, np.uint16):
            return _upright(image, data)
    flag = cv2.IMREAD_GRAYSCALE if pixel_format.channels == 1 else cv2.IMREAD_COLOR
    image = _decode_by_opencv(data, flag | depth)
    if image is None:
        return _decode_by_pillow(data, "L" if pixel_format.channels == 1 else "RGB")
    if image.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"expected values of 8 or 16 bits, received {image.dtype}; use bits: 8")
    return image


def _decode_by_opencv(data: bytes, flags: int) -> Image | None:
    """Decodes an image, grey, RGB or RGBA; None if OpenCV does not know the format.

    Raises:
        ValueError: OpenCV can't decode the image, or it contains numbers that are not finite.
    """
    try:
        if data.startswith(_RADIANCE_SIGNATURES):
            image = _decode_radiance(data)
        else:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        is_not_finite = image is not None and _may_be_real(data) and _has_not_finite_pixels(data)
    except cv2.error as error:
        raise ValueError(f"OpenCV can't decode the image: {error.err}") from None
    if image is None:
        return None
    if is_not_finite:
        raise ValueError("the image contains NaN or infinite numbers")
    if image.ndim == 2:
        return image[:, :, None]
    conversions = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}
    if image.shape[2] in conversions and image.dtype in (np.uint8, np.uint16, np.float32):
        return cv2.cvtColor(image, conversions[image.shape[2]], dst=image)
    return image


def _four_channels_of_tiff(data: bytes, image: Image) -> Image:
    """Returns the values that a TIFF stores; OpenCV multiplies the colours of 8 bits with the fourth channel.

    Args:
        data: encoded bytes.
        image: what OpenCV decodes, for files that Pillow can't decode or converts.
    """
    try:
        with PillowImage.open(io.BytesIO(data)) as picture:
            if picture.mode in ("RGBA", "RGBX"):
                return np.array(ImageOps.exif_transpose(picture))
    except Exception:  # Pillow's readers raise many kinds
        return image
    return image


def _upright(image: Image, data: bytes) -> Image:
    """Turns a PNG or WebP image by its EXIF orientation, which OpenCV ignores with a fourth channel."""
    if not any(mark in data for mark in _EXIF_MARKS):
        return image
    try:
        with PillowImage.open(io.BytesIO(data)) as picture:
            orientation = picture.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # OpenCV has decoded the image, and its orientation is damaged
        return image
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return image[::rows, ::columns]


def _may_be_real(data: bytes) -> bool:
    """True if the pixels of a file may be floating-point numbers. OpenCV makes black pixels from NaN."""
    is_tiff = data.startswith(_TIFF_STARTS) and any(tag in data for tag in _SAMPLE_FORMATS)
    return is_tiff or data.startswith(_REAL_STARTS)


def _has_not_finite_pixels(data: bytes) -> bool:
    """True if OpenCV reads floating-point pixels from a file, and one of them is NaN or infinite."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return pixels is not None and pixels.dtype.kind == "f" and not np.isfinite(pixels).all()


def _decode_radiance(data: bytes) -> Image | None:
    """Decodes a Radiance picture, BGR; None if it can't be decoded.

    OpenCV reads this format from files only. From memory, it writes a file itself, which stays in the folder
    for temporary files if the picture has too many pixels.

    Raises:
        ValueError: no file can be written.
    """
    try:
        with temporary_folder() as folder:
            file = folder / "picture.hdr"
            file.write_bytes(data)
            return cv2.imread(str(file), cv2.IMREAD_COLOR)
    except OSError as error:
        raise ValueError(f"a Radiance picture must be written to a file: {reason_of(error)}") from None


def _size_by_pillow(data: bytes) -> PictureSize | None:
    """Returns the size of a picture in a format that ``picture_size`` does not know; None if it is unknown.

    Raises:
        ValueError: the picture has far too many pixels.
    """
    try:
        with PillowImage.open(io.BytesIO(data)) as picture:
            return PictureSize(*picture.size, 3)
    except PillowImage.DecompressionBombError:
        raise ValueError(
            f"too many pixels; an image may have at most {MAX_PIXELS:,} (OPENCV_IO_MAX_IMAGE_PIXELS)"
        ) from None
    except Exception:  # OpenCV decides about formats that Pillow can't read
        return None


def _decode_by_pillow(data: bytes, mode: str) -> Image:
    """Returns the first image of a GIF, AVIF or HEIC, for builds of OpenCV without these formats.

    Args:
        data: encoded bytes.
        mode: Pillow's mode of the result: ``L``, ``RGB`` or ``RGBA``.

    Raises:
        ValueError: the data has another format. The message tells what the file is.
    """
    try:
        if data[:4] != b"GIF8" and not is_avif(data) and not (is_heic(data) and can_read_heic()):
            raise OSError
        with PillowImage.open(io.BytesIO(data)) as picture:
            _check_size(PictureSize(*picture.size, 3))  # frames may be larger than the header says
            image = np.array(ImageOps.exif_transpose(picture).convert(mode))
            return image[:, :, None] if image.ndim == 2 else image
    except (OSError, SyntaxError, EOFError, PillowImage.DecompressionBombError):
        is_supported = (is_avif(data) and features.check("avif")) or (is_heic(data) and can_read_heic())
        reason = None if is_supported else why_unreadable(data)
        raise ValueError(reason or "not an image, or damaged beyond decoding") from None


@functools.cache
def can_read_heic() -> bool:
    """True if pillow-heif is installed. Pillow then reads HEIC images."""
    try:
        import pillow_heif

        pillow_heif.register_heif_opener()
    except Exception:  # a library that it needs may be missing
        return False
    return True


def _may_have_several_images(data: bytes) -> bool:
    """True if the format of a file allows several images."""
    is_animated_webp = data[8:16] == b"WEBPVP8X" and bool(data[20:21]) and bool(data[20] & 2)
    is_animated_png = data[:8] == _PNG_SIGNATURE and b"acTL" in data[:_APNG_HEADER_BYTES]
    return data[:4] in (b"GIF8", *_TIFF_SIGNATURES) or is_animated_webp or is_avif(data) or is_animated_png


def image_count(data: bytes) -> int:
    """Returns the number of images in a file: frames of an animation, or pages; 1 if it is unknown.

    The first image of a file is decoded.
    """
    if not _may_have_several_images(data):
        return 1
    try:
        with PillowImage.open(io.BytesIO(data)) as picture:
            return int(getattr(picture, "n_frames", 1))
    except Exception:  # OpenCV has decoded it, and Pillow only counts
        return 1


def warn_if_several_images(data: bytes) -> None:
    """Logs a warning, once per process, if a file has several images, which are not all used.

    Only the first files of a process are looked into.
    """
    if _several_search.is_over or not _may_have_several_images(data):
        return
    count = image_count(data)
    _several_search.count(is_hit=count > 1)
    if count > 1:
        logger.warning(
            f"a file has {count:,} images, such as an animation or pages, and the first one is used; "
            "ppxcls check lists such files"
        )


def largest_16bit_value(data: bytes, image: Image) -> int | None:
    """Returns the largest value of an image with 16 bits per channel that uses only 14 bits or fewer.

    With 8 bits, such an image is decoded to almost black. Cameras and microscopes write such files. The
    result is None for any other image.

    Args:
        data: encoded bytes.
        image: decoded image, uint8 or uint16 [H, W, C].
    """
    if not _may_be_almost_black(data, image):
        return None
    raw_image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if raw_image is None or raw_image.dtype not in (np.uint16, np.int16):
        return None
    largest_value = int(raw_image[..., :3].max() if raw_image.ndim == 3 else raw_image.max())
    return largest_value if 0 < largest_value < 1 << 14 else None


def _may_be_almost_black(data: bytes, image: Image) -> bool:
    """True if an image is dark and may have 16 bits per channel."""
    is_16_bit_png = data[:8] == _PNG_SIGNATURE and data[24:25] == b"\x10"
    largest_value = 64 if image.dtype == np.uint8 else 1 << 14
    return (is_16_bit_png or data[:4] in _TIFF_SIGNATURES) and int(image[..., :3].max()) <= largest_value


def warn_if_almost_black(data: bytes, image: Image) -> None:
    """Logs a warning, once per process, if ``largest_16bit_value`` returns a value for the image.

    Only the first files of a process are looked into.
    """
    if _almost_black_search.is_over or not _may_be_almost_black(data, image):
        return
    largest_value = largest_16bit_value(data, image)
    _almost_black_search.count(is_hit=largest_value is not None)
    if largest_value is not None:
        description = f"an image with 16 bits per channel has values up to {largest_value:,} of 65,535"
        logger.warning(f"{description}, so it decodes to almost black; ppxcls check lists such files")


def _check_size(size: PictureSize) -> None:
    """Raises ValueError if a picture is too large.

    OpenCV does not check some of its formats, and none if it was imported before this package.
    """
    for limits in (current_limits(), _PIXEL_LIMITS):
        if limits is not None:
            limits.check(size)


def _is_plain_jpeg(data: bytes) -> bool:
    """True if the data is a JPEG with at most 3 components and without an EXIF orientation.

    Only the markers before the first scan are read. JPEGs with unusual ones are left to OpenCV.
    """
    if data[:2] != bytes((0xFF, _START_OF_IMAGE)):
        return False
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in BARE_MARKERS:
            return False
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        segment = (
            data[position + 4 : position + 2 + length]
            if marker in _FRAME_MARKERS or marker == _EXIF_MARKER
            else b""
        )
        if marker in _FRAME_MARKERS and (len(segment) < 6 or segment[5] > 3):
            return False
        # 0x0112 is the tag of the orientation, searched in both byte orders. If other data matches by chance,
        # OpenCV decodes the image, which is only slower.
        if (
            marker == _EXIF_MARKER
            and segment.startswith(b"Exif")
            and (b"\x01\x12" in segment or b"\x12\x01" in segment)
        ):
            return False
        if marker == _START_OF_SCAN:
            return True
        position += 2 + length
    return False
