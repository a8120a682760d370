"""The images that a predictor accepts, in any of the forms in which people have them."""

from __future__ import annotations

import inspect
import io
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageOps

from ppxcls.data.decode import RGB
from ppxcls.data.errors import DataError
from ppxcls.data.image_files import find_image_files
from ppxcls.data.pixel_format import PixelFormat
from ppxcls.data.read_file import read_file
from ppxcls.system.arrays import Array
from ppxcls.system.atomic_files import is_inside, reason_of
from ppxcls.system.paths import url_problem
from ppxcls.system.patterns import PatternError, is_pattern, matching_files

Source: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Array | PillowImage.Image
)
ACCEPTED = (
    "a path, a folder, the bytes of an image file, a file opened with 'rb', a PIL image, "
    "an array [H, W, 3], or a list of these"
)
_CHANNEL_COUNTS = (1, 3, 4)  # grey, RGB, RGB with alpha
_OPENED_AS_TEXT = "the file is opened as text; open it with 'rb'"
_OPENED_ASYNC = "the file is asynchronous; pass its bytes: await file.read()"
_16_BIT_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # Pillow's modes of grey images
_FORMATS_WITHOUT_32_BITS = ("PNG", "PPM", "JPEG2000")  # Pillow may open their 16-bit images as I
_MAX_ROUNDING = 0.001  # distance from 0 to 1 that a resize in floating-point numbers may leave


@dataclass(frozen=True)
class NamedImage:
    """An image before it is read.

    Attributes:
        name: path of the image; ``image 0`` and so on if it has none.
        load: function that returns the bytes of an image file, or an array in the wanted format. It raises
            OSError or ValueError if the image can't be used.
    """

    name: str
    load: Callable[[], bytes | Array]


def find_images(path: str, within: Path | None = None) -> list[str]:
    """Returns the sorted image files of a path.

    Args:
        path: file, folder (all images below it), or pattern.
        within: folder in which the images must lie; None for any folder.

    Raises:
        DataError: there are no such files, or a link leads to one that is not in the folder.
    """
    if (problem := url_problem(path)) is not None:
        raise DataError(problem)
    if os.path.isdir(path):
        images = find_image_files(path)
        files = [os.path.join(path, file) for file in images.files]
        if not files:
            raise DataError(f"{path}: no images in this folder; {images.skipped_line()}")
    else:
        files = [path] if os.path.isfile(path) else _files_of_pattern(path)
    if not files:
        raise DataError(f"{path}: no such image, folder of images or pattern")
    if within and (outer_file := next((file for file in files if not is_inside(file, [within])), None)):
        raise DataError(f"{outer_file}: a link out of {within}; name the images: infer -c RUN IMAGES")
    return sorted(files)


def _files_of_pattern(path: str) -> list[str]:
    """Returns the files of a pattern; none if the path is no pattern.

    Raises:
        DataError: the pattern needs a look at too many names.
    """
    try:
        return matching_files(path) if is_pattern(path) else []
    except PatternError as error:
        raise DataError(str(error)) from None


def named_images(images: Source | Iterable[Source], pixel_format: PixelFormat = RGB) -> Iterable[NamedImage]:
    """Returns the images of one source or of several, in their order.

    A folder stands for all images below it, and an array [N, H, W, 3] for N images. The sources of a list are
    checked here. Those of any other iterable, such as a generator, are taken and checked one by one as the
    result is iterated, so that it may be longer than the memory. An open file or a PIL image is read when it
    is taken, because a generator may close it.

    Args:
        images: one source or several.
        pixel_format: channels and bits of the arrays.

    Raises:
        DataError: a source has another type, or a folder has no images.
    """
    if _is_source(images):
        return list(_each_image([images], pixel_format))
    if not isinstance(images, Iterable) or isinstance(images, dict | set | frozenset):
        raise DataError(f"expected {ACCEPTED}; received {_type_name(images)}")
    image_iterator = _each_image(images, pixel_format)
    return list(image_iterator) if isinstance(images, list | tuple) else image_iterator


def _each_image(sources: Iterable[Any], pixel_format: PixelFormat) -> Iterator[NamedImage]:
    """Yields the images of sources. Raises DataError as ``named_images``."""
    count = 0
    for source in sources:
        if not _is_source(source):
            raise DataError(f"image {count}: expected {ACCEPTED}; received {_type_name(source)}")
        for image in _images_of(source, count, pixel_format):
            yield image
            count += 1


def _is_source(value: Any) -> bool:
    if isinstance(value, str | os.PathLike | bytes | bytearray | memoryview | PillowImage.Image):
        return True
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biufc" or value.ndim == 0  # an array of paths is a list of them
    return hasattr(value, "read") or (hasattr(value, "__array__") and np.asarray(value).dtype.kind in "biufc")


def _type_name(value: Any) -> str:
    return (
        "None"
        if value is None
        else f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
    )


def _images_of(source: Any, number: int, pixel_format: PixelFormat) -> Iterator[NamedImage]:
    """Yields the images of one source.

    Args:
        source: source that ``_is_source`` accepts.
        number: number of the first image, for its name.
        pixel_format: channels and bits of the arrays.
    """
    name = f"image {number}"
    if isinstance(source, str | os.PathLike):
        yield from _files_of(os.fspath(source))
    elif isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        yield NamedImage(name, lambda: data)
    elif isinstance(source, PillowImage.Image):
        yield _of_pillow(source, getattr(source, "filename", "") or name, pixel_format)
    elif hasattr(source, "read"):
        yield _of_open_file(source, name)
    else:
        array = np.asarray(source)
        parts = list(array) if array.ndim == 4 and array.shape[-1] in _CHANNEL_COUNTS else [array]
        for i, part in enumerate(parts):
            yield NamedImage(f"image {number + i}", partial(to_pixels, part, pixel_format))


def _files_of(path: str | bytes) -> Iterator[NamedImage]:
    """Yields a file, the images of a folder, or those that match a pattern."""
    path = os.fsdecode(path)
    files = [path]
    if url_problem(path) is None and os.path.isdir(path):
        files = find_images(path)
    elif url_problem(path) is None and not os.path.exists(path):
        files = _files_of_pattern(path) or files
    for file in files:
        yield NamedImage(file, lambda file=file: _read(file))  # type: ignore[misc]


def _read(path: str) -> bytes:
    if (problem := url_problem(path)) is not None:
        raise ValueError(problem)
    return read_file(path)


def _failure(reason: str) -> Callable[[], bytes]:
    """Returns a function that reports an error, so that the other images are predicted."""

    def fail() -> bytes:
        raise ValueError(reason)

    return fail


def _of_open_file(stream: Any, name: str) -> NamedImage:
    path = getattr(stream, "name", None)
    name = os.fsdecode(path) if isinstance(path, str | bytes) else name
    try:
        data = _content(stream)
    except UnicodeError:
        return NamedImage(name, _failure(_OPENED_AS_TEXT))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        return NamedImage(name, _failure(reason_of(error)))
    return NamedImage(name, lambda: data)


def _content(stream: Any) -> bytes:
    """Returns the bytes of an open file.

    Raises:
        OSError, ValueError, AttributeError, TypeError: the file can't be read, or gives no bytes.
    """
    if isinstance(stream, io.TextIOBase):
        raise ValueError(_OPENED_AS_TEXT)
    if inspect.iscoroutinefunction(stream.read):
        raise ValueError(_OPENED_ASYNC)
    if not getattr(stream, "readable", lambda: True)():
        raise ValueError("the file is opened for writing; open it with 'rb'")
    if hasattr(stream, "seek") and getattr(stream, "seekable", lambda: True)():
        stream.seek(0)  # a program that has just written a BytesIO is at its end
    data = stream.read()
    if inspect.isawaitable(data):
        getattr(data, "close", lambda: None)()  # otherwise Python warns that nobody has waited for it
        raise ValueError(_OPENED_ASYNC)
    if isinstance(data, str):
        raise ValueError(_OPENED_AS_TEXT)
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"expected bytes from read(), received {_type_name(data)}")
    return bytes(data)


def _of_pillow(picture: PillowImage.Image, name: str, pixel_format: PixelFormat) -> NamedImage:
    try:
        picture.load()
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        return NamedImage(name, _failure(reason_of(error)))

    def to_array() -> Array:
        upright = ImageOps.exif_transpose(picture)
        if upright.mode in _16_BIT_MODES:
            return to_pixels(np.asarray(upright), pixel_format, is_16_bit=_is_16_bit(picture))
        if upright.mode not in ("F", "L"):
            upright = upright.convert("RGBA" if pixel_format.channels == 4 else "RGB")
        return to_pixels(np.asarray(upright), pixel_format)

    return NamedImage(name, to_array)


def _is_16_bit(picture: PillowImage.Image) -> bool:
    """True if a picture comes from a file with 16 bits per pixel, so that small values are dark."""
    return bool(picture.format) and (picture.mode != "I" or picture.format in _FORMATS_WITHOUT_32_BITS)


def to_rgb(array: Array, *, is_16_bit: bool = False) -> Array:
    """Returns an array as an image uint8 [H, W, 3], as ``to_pixels`` does."""
    return to_pixels(array, RGB, is_16_bit=is_16_bit)


def to_pixels(array: Array, pixel_format: PixelFormat, *, is_16_bit: bool = False) -> Array:
    """Returns an array as an image with the channels and bits of a format.

    Alpha is dropped unless the format has it, as from a file. Of 16 bits per channel, the upper 8 are used
    unless the format has 16, as from a file. Integers have 16 bits if one of them is above 255, whatever
    their type. uint16 has 16 bits if the format has.

    Args:
        array: image [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]: integers from 0 to 255, integers from 0 to
            65535, or floating-point numbers from 0 to 1.
        pixel_format: channels and bits of the result.
        is_16_bit: True if integers have 16 bits, also if all of them are small.

    Raises:
        ValueError: the array has another shape, or other numbers.
    """
    description = f"{array.dtype} {list(array.shape)}"
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in _CHANNEL_COUNTS or not array.size:
        advice = ""
        if array.ndim == 3 and array.shape[0] in _CHANNEL_COUNTS:
            advice = "; the channels must come last: array.transpose(1, 2, 0)"
        raise ValueError(f"expected an image [H, W, 3], [H, W, 4] or [H, W], received {description}{advice}")
    channels = array[..., : max(pixel_format.channels, 3)]
    is_16_bit = is_16_bit or (array.dtype == np.uint16 and pixel_format.bits == 16)
    values = _to_integers(channels, description, is_16_bit=is_16_bit, bits=pixel_format.bits)
    return pixel_format.converted(values)


def _to_integers(array: Array, description: str, *, is_16_bit: bool, bits: int) -> Array:
    """Returns numbers as uint8, or as uint16 if they have 16 bits. Raises ValueError.

    Args:
        array: numbers.
        description: type and shape of the image, for messages.
        is_16_bit: True if integers have 16 bits, also if all of them are small.
        bits: bits that floating-point numbers get.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    low, high = array.min(), array.max()
    if array.dtype.kind == "f":
        if not (low >= -_MAX_ROUNDING and high <= 1 + _MAX_ROUNDING):  # NaN too
            raise ValueError(
                "expected floating-point numbers from 0 to 1, or uint8 from 0 to 255, "
                f"received {description} from {low!s} to {high!s}"
            )
        values = np.rint(array.astype(np.float64).clip(0, 1) * ((1 << bits) - 1))
        return values.astype(np.uint8 if bits == 8 else np.uint16)
    if array.dtype.kind not in "iu" or low < 0 or high > 65535:
        raise ValueError(
            "expected numbers from 0 to 255, or from 0 to 65535 for 16 bits, "
            f"received {description} from {low} to {high}"
        )
    return array.astype(np.uint16 if is_16_bit or high > 255 else np.uint8)
