"""Transforms of one image, with PaddleClas's names and rules.

Every random choice comes from the generator that the caller passes. The loader seeds it with the sample's
position in the epoch.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Protocol

import cv2
import numpy as np

from ppxcls.config.checks import ConfigPlace, Count, Finite, Positive, Share
from ppxcls.config.registry import Block, Components, Registry
from ppxcls.data.decode import (
    Image,
    ImageParts,
    decode_image,
    warn_if_almost_black,
    warn_if_several_images,
)
from ppxcls.data.pixel_format import PixelFormat
from ppxcls.data.pixel_size import FillValue, check_fill, filled
from ppxcls.data.preparation import PreparedImages, side_or_sides
from ppxcls.data.resize import (
    Interpolation,
    ResizedParts,
    Size,
    cut_part,
    interpolation_name,
    resizer,
    width_and_height,
)
from ppxcls.system.arrays import Array

# For channels with values from 0 to 1.
IMAGENET_MEAN, IMAGENET_STD = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)

_MAX_TRANSFORMS = 50
_MAX_RESULT_PIXELS = 50_000_000  # of the sizes of all transforms; the largest network here takes 0.3 million

Generator = np.random.Generator
TransformOps = Annotated[list[Any], Components("transform")]


class Transform(Protocol):
    """One step from encoded bytes to the image that the network receives.

    Attributes:
        needs_uint8: True if the transform takes only uint8 images, so that it must come before
            NormalizeImage.
        channel_counts: numbers of channels that the transform takes; empty for any number.
        takes_parts: True if the transform also takes an ``ImageParts``, because it needs only a part of the
            image.
    """

    needs_uint8: ClassVar[bool] = False
    channel_counts: ClassVar[tuple[int, ...]] = ()
    takes_parts: ClassVar[bool] = False

    def __call__(self, image: Any, rng: Generator) -> Image | ImageParts:
        """Returns the changed image.

        Args:
            image: image [H, W, C], or the result of the previous transform.
            rng: source of every random choice.

        Raises:
            ValueError: the image does not fit the transform.
        """

    def resized(self, size: int) -> Transform:
        """Returns the same transform for training on images with sides of ``size`` pixels."""
        return self

    def prepare(self, images: PreparedImages) -> PreparedImages:
        """Returns the facts about the images after the transform; unchanged by default.

        Args:
            images: facts about the images before the transform.

        Raises:
            ValueError: the images do not fit the transform.
        """
        return images


def _check_list(blocks: Sequence[Block]) -> int | None:
    """Checks that the transforms of a list fit each other.

    A user's own transforms are not built, because that may take long.

    Returns:
        Number of channels of the prepared images; None if a user's own transform decides it.

    Raises:
        ConfigError: a transform does not take the images that the transforms before it give.
    """
    images = PreparedImages()
    for block in blocks:
        if TRANSFORMS.components()[block.name].__module__.startswith("ppxcls."):
            images = _prepared(block, TRANSFORMS.build(block), images)
        else:
            images = replace(images, channel_count=None, bits=None)
    return images.channel_count


TRANSFORMS: Registry[Transform] = Registry(
    "transform", base=Transform, optional_members=("prepare", "channel_counts"), check_list=_check_list
)


@TRANSFORMS.register
class DecodeImage(Transform):
    """Decodes bytes to [H, W, C], uint8 or uint16.

    Args:
        to_rgb: True for RGB, False for OpenCV's BGR.
        to_np, backend: keys of PaddleClas that have no effect.
        channel_first: key of PaddleClas that supports only False; see ToCHWImage.
        channels: number of channels; 1 for grey, 3 for colours, 4 for colours and a fourth channel, such as
            alpha. The fourth channel of a file without one has the largest value.
        bits: bits of a value; 16 keeps the values of files with 16 bits, and multiplies others by 257.
    """

    takes_parts = True

    def __init__(
        self,
        *,
        to_rgb: bool = True,
        to_np: bool = False,
        channel_first: Literal[False] = False,
        backend: Literal["cv2", "pil"] = "cv2",
        channels: Literal[1, 3, 4] = 3,
        bits: Literal[8, 16] = 8,
    ) -> None:
        self.to_rgb = to_rgb
        self.pixel_format = PixelFormat(channels, bits)

    def prepare(self, images: PreparedImages) -> PreparedImages:
        """Sets the number and the order of the channels, and the bits."""
        channels, bits = self.pixel_format
        colours = "RGB" if self.to_rgb else "BGR"
        names = {1: "grey", 3: colours, 4: f"{colours}A"}
        return replace(images, channels=names[channels], channel_count=channels, bits=bits)

    def __call__(self, data: bytes | ImageParts, rng: Generator) -> Image | ImageParts:
        if isinstance(data, ImageParts):
            if self.pixel_format == PixelFormat() and self.to_rgb:
                return data
            return self.ordered(data.decoded(self.pixel_format))
        image = decode_image(data, self.pixel_format)
        if self.pixel_format.bits == 8:
            warn_if_almost_black(data, image)
        warn_if_several_images(data)
        return self.ordered(image)

    def ordered(self, image: Image) -> Image:
        """Returns an RGB or RGBA image with its channels in the order of ``to_rgb``."""
        if self.to_rgb or image.shape[2] == 1:
            return image
        return image[:, :, ::-1] if image.shape[2] == 3 else image[:, :, [2, 1, 0, 3]]


@TRANSFORMS.register
class ResizeImage(Transform):
    """Resizes to ``size``, or the shorter side to ``resize_short``.

    Args:
        size: pixels of both sides, or [width, height].
        resize_short: pixels of the shorter side. The other side keeps the aspect ratio and is rounded. It
            takes precedence over ``size``.
        interpolation: method of interpolation; None for bilinear with cv2 and bicubic with pil.
        backend: library that resizes, OpenCV or Pillow.
        return_numpy: key of PaddleClas that has no effect.
        keep_ratio: True to keep the aspect ratio, with the whole image in the centre of ``size``
            (letterbox).
        fill_value: value of the area beside an image with ``keep_ratio``, in the units of the image; a list
            for a value of each channel.
    """

    takes_parts = True

    def __init__(
        self,
        size: Size | None = None,
        resize_short: Count | None = None,
        *,
        interpolation: Interpolation | None = None,
        backend: Literal["cv2", "pil"] = "cv2",
        return_numpy: bool = True,
        keep_ratio: bool = False,
        fill_value: FillValue = 0.0,
    ) -> None:
        if size is None and resize_short is None:
            raise ValueError("expected size or resize_short")
        if keep_ratio and (size is None or resize_short is not None):
            raise ValueError("expected size, and not resize_short, with keep_ratio")
        self.size = None if size is None else width_and_height(size)
        self.resize_short = resize_short
        self.keep_ratio = keep_ratio
        self.fill_value = fill_value
        self._needs_8_bits = backend == "pil"
        self._interpolation = interpolation_name(interpolation, backend)
        self._resize = resizer(interpolation, backend)

    def prepare(self, images: PreparedImages) -> PreparedImages:
        """Sets the size, or the shorter side, and the interpolation."""
        if self._needs_8_bits and images.bits == 16:
            raise ValueError("expected the backend cv2 for images of 16 bits, received 'pil'")
        check_fill("fill_value", self.fill_value, images.channel_count)
        if self.size is None or self.resize_short is not None:
            return replace(
                images, size=None, short=self.resize_short, interpolation=self._interpolation, fill=None
            )
        fill = self.fill_value if isinstance(self.fill_value, float | int) else tuple(self.fill_value)
        return replace(
            images,
            size=side_or_sides(self.size),
            short=None,
            interpolation=self._interpolation,
            fill=fill if self.keep_ratio else None,
        )

    def __call__(self, image: Image | ImageParts, rng: Generator) -> Image | ImageParts:
        if self.keep_ratio:
            return self._letterbox(image.whole() if isinstance(image, ImageParts) else image)
        size = self.size
        if self.resize_short is not None:
            height, width = image.shape[:2]
            # Same order of the operations as in PaddleClas, because it decides how halves are rounded.
            factor = self.resize_short / min(width, height)
            size = round(width * factor), round(height * factor)
        assert size is not None
        return (
            ResizedParts(image, size, self._resize)
            if isinstance(image, ImageParts)
            else self._resize(image, size)
        )

    def _letterbox(self, image: Image) -> Image:
        """Returns the whole image in the centre of ``size``, with its own aspect ratio."""
        assert self.size is not None
        (width, height), (image_height, image_width) = self.size, image.shape[:2]
        factor = min(width / image_width, height / image_height)
        inner_width = min(max(round(image_width * factor), 1), width)
        inner_height = min(max(round(image_height * factor), 1), height)
        canvas = filled(image, width, height, self.fill_value)
        left, top = (width - inner_width) // 2, (height - inner_height) // 2
        inner_image = self._resize(image, (inner_width, inner_height))
        canvas[top : top + inner_height, left : left + inner_width] = inner_image.reshape(
            inner_height, inner_width, -1
        )
        return canvas


class CentreCrop(Transform):
    """A crop of the centre; a smaller image is an error.

    Args:
        width: pixels of a row.
        height: number of rows.
    """

    takes_parts = True

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height

    def start(self, space: int) -> int:
        """Returns the first pixel of the crop on one axis, if ``space`` pixels of the image are not in it."""
        raise NotImplementedError

    def prepare(self, images: PreparedImages) -> PreparedImages:
        """Sets the size."""
        return replace(images, size=side_or_sides((self.width, self.height)))

    def __call__(self, image: Image | ImageParts, rng: Generator) -> Image:
        height, width = image.shape[:2]
        if height < self.height or width < self.width:
            raise ValueError(
                f"{type(self).__name__}: expected at least {self.width}x{self.height} pixels, "
                f"received {width}x{height}"
            )
        left, top = self.start(width - self.width), self.start(height - self.height)
        return cut_part(image, left=left, top=top, width=self.width, height=self.height)


@TRANSFORMS.register
class CropImage(CentreCrop):
    """Crops the centre; a smaller image is an error.

    Args:
        size: pixels of both sides, or [width, height].
    """

    def __init__(self, size: Size) -> None:
        super().__init__(*width_and_height(size))

    def start(self, space: int) -> int:
        """Returns the first pixel; half a pixel is rounded down."""
        return space // 2


@TRANSFORMS.register
class RandCropImage(Transform):
    """Crops a random part and resizes it (arXiv:1409.4842, section 6, with PaddleClas's distribution).

    The ratio of width to height, the share of the area, and the position are drawn uniformly. If a limit of
    the share is larger than the largest share that fits the ratio, it is reduced to that.

    Args:
        size: pixels of both sides of the result, or [width, height].
        scale: limits of the share of the area; None for [0.08, 1].
        ratio: limits of the ratio of width to height; None for [3/4, 4/3].
        interpolation: method of interpolation; None for bilinear with cv2 and bicubic with pil.
        backend: library that resizes, OpenCV or Pillow.
    """

    takes_parts = True

    def __init__(
        self,
        size: Size,
        scale: tuple[Share, Share] | None = None,
        *,
        ratio: tuple[Positive, Positive] | None = None,
        interpolation: Interpolation | None = None,
        backend: Literal["cv2", "pil"] = "cv2",
    ) -> None:
        self.size = width_and_height(size)
        self.scale = scale or (0.08, 1.0)
        self.ratio = ratio or (3 / 4, 4 / 3)
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if low > high:
                raise ValueError(f"expected {name} as [low, high], received {[low, high]}")
        self._interpolation = interpolation_name(interpolation, backend)
        self._resize = resizer(interpolation, backend)

    def prepare(self, images: PreparedImages) -> PreparedImages:
        """Sets the size and the interpolation."""
        return replace(images, size=side_or_sides(self.size), short=None, interpolation=self._interpolation)

    def __call__(self, image: Image | ImageParts, rng: Generator) -> Image:
        left, top, width, height = self.draw(image.shape[1], image.shape[0], rng)
        return self._resize(cut_part(image, left=left, top=top, width=width, height=height), self.size)

    def resized(self, size: int) -> RandCropImage:
        """Returns the same crop, resized to ``size`` pixels on both sides."""
        crop = copy.copy(self)
        crop.size = (size, size)
        return crop

    def draw(self, image_width: int, image_height: int, rng: Generator) -> tuple[int, int, int, int]:
        """Draws left, top, width and height of the part, in pixels."""
        aspect = rng.uniform(*self.ratio)
        largest = min(image_width / image_height / aspect, image_height / image_width * aspect)
        share = rng.uniform(min(self.scale[0], largest), min(self.scale[1], largest))
        side = math.sqrt(image_width * image_height * share)
        # At least one pixel, because the image may be only a few pixels wide.
        width = min(max(int(side * math.sqrt(aspect)), 1), image_width)
        height = min(max(int(side / math.sqrt(aspect)), 1), image_height)
        left = int(rng.integers(0, image_width - width, endpoint=True))
        top = int(rng.integers(0, image_height - height, endpoint=True))
        return left, top, width, height


@TRANSFORMS.register
class RandFlipImage(Transform):
    """Mirrors the image with probability 1/2.

    Args:
        flip_code: direction; 1 swaps left and right, 0 top and bottom, -1 both.
    """

    def __init__(self, flip_code: Literal[1, 0, -1] = 1) -> None:
        self.flip_code = flip_code

    def __call__(self, image: Image, rng: Generator) -> Image:
        return cv2.flip(image, self.flip_code) if rng.integers(2) else image


@TRANSFORMS.register
class NormalizeImage(Transform):
    """Computes ``(image * scale - mean) / std`` in float32.

    It runs on the device if it is at the end of a data set's transforms.

    Args:
        scale: factor, a number or a fraction such as PaddleClas's ``1.0/255.0``; None for ``1 / 255``. Images
            of 16 bits need one, such as ``1.0/65535.0``.
        mean: mean of each channel; None for ImageNet's. The mean of a grey image is that of the three
            colours.
        std: standard deviation of each channel; None for ImageNet's, as for ``mean``.
        order: layout of the images; ``chw`` for [C, H, W], ``hwc`` or an empty string for [H, W, C].
        output_fp16, channel_num: keys of PaddleClas that have no effect, because AMP casts, and a fourth
            channel would be zero.

    Attributes:
        mean: mean of each channel, float32 [C].
        std: standard deviation of each channel, float32 [C].
    """

    def __init__(
        self,
        scale: Finite | None = None,
        mean: list[Finite] | None = None,
        *,
        std: list[Positive] | None = None,
        order: Literal["chw", "hwc", ""] = "chw",
        output_fp16: bool = False,
        channel_num: Literal[3, 4] = 3,
    ) -> None:
        lengths = {len(values) for values in (mean, std) if values is not None}
        if len(lengths) > 1 or 0 in lengths:
            raise ValueError(
                f"expected mean and std of the same length, received {list(mean or [])} and {list(std or [])}"
            )
        self.scale = np.float32(1 / 255 if scale is None else scale)
        self.chw = order == "chw"
        self._is_scale_missing = scale is None
        self._largest_byte = 1.0 if scale is None else 255 * scale
        self._values = (mean, std)
        self._set_channels(lengths.pop() if lengths else 3)

    def _set_channels(self, count: int) -> None:
        """Sets mean and standard deviation for images with a number of channels."""
        self._mean_and_std = tuple(
            _imagenet_constants(count)[i] if values is None else tuple(values)
            for i, values in enumerate(self._values)
        )
        self.mean, self.std = (np.array(values, np.float32) for values in self._mean_and_std)

    @functools.cached_property
    def table(self) -> Array:
        """Normalised value of each byte in each channel, float32 [256, C]."""
        return (np.arange(256, dtype=np.float32)[:, None] * self.scale - self.mean) / self.std

    def prepare(self, images: PreparedImages) -> PreparedImages:
        """Sets mean and standard deviation. With another scale, they apply to other values than 0 to 1."""
        if images.bits == 16 and self._is_scale_missing:
            raise ValueError("expected a scale for images of 16 bits, such as 1.0/65535.0")
        count = images.channel_count
        if count is not None and self._values == (None, None):
            self._set_channels(count)
        if count is not None and count != len(self.mean):
            raise ValueError(
                f"expected mean and std of length {count}, the number of channels; received {len(self.mean)}"
            )
        mean, std = self._mean_and_std
        largest = self._largest_byte * (65535 / 255 if images.bits == 16 else 1)
        if largest and abs(largest - 1) > 1e-6:
            mean, std = (tuple(round(value / largest, 6) for value in values) for values in (mean, std))
        return replace(images, mean=mean, std=std)

    def __call__(self, image: Image, rng: Generator) -> Image:
        count = image.shape[0] if self.chw else image.shape[-1]
        if count != len(self.mean):
            raise ValueError(
                f"NormalizeImage: expected images of {len(self.mean)} channels, as mean and std have, "
                f"received {list(image.shape)}"
            )
        if image.dtype == np.uint8 and not self.chw:
            return cv2.LUT(image, self.table[None])  # the same numbers in a fifth of the time
        shape = (-1, 1, 1) if self.chw else (-1,)
        return (image.astype(np.float32) * self.scale - self.mean.reshape(shape)) / self.std.reshape(shape)


def _imagenet_constants(channel_count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns ImageNet's mean and standard deviation for grey or RGB images.

    Raises:
        ValueError: nothing is known of the other channels.
    """
    if channel_count == 1:
        return (sum(IMAGENET_MEAN) / 3,), (sum(IMAGENET_STD) / 3,)
    if channel_count == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    raise ValueError(f"expected mean and std of length {channel_count}, because ImageNet's have 3 numbers")


@TRANSFORMS.register
class ToCHWImage(Transform):
    """Transposes [H, W, C] to [C, H, W]."""

    def __call__(self, image: Image, rng: Generator) -> Image:
        return image.transpose(2, 0, 1)


@functools.cache
def _takes_parts(transform_class: type[Transform]) -> bool:
    """Returns ``takes_parts`` of the class that defines ``__call__``.

    A subclass that overrides ``__call__`` gets whole images, unless it sets ``takes_parts`` itself.
    """
    defining_class = next(base for base in transform_class.__mro__ if "__call__" in vars(base))
    return bool(vars(defining_class).get("takes_parts", False))


class Compose:
    """A sequence of transforms.

    Args:
        transforms: transforms in order. The first takes encoded bytes, or an image if there is no
            DecodeImage.
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = list(transforms)

    @property
    def pixel_format(self) -> PixelFormat:
        """Channels and bits of a decoded image; those of RGB if there is no DecodeImage."""
        return next((t.pixel_format for t in self.transforms if isinstance(t, DecodeImage)), PixelFormat())

    def resized(self, size: int | None) -> Compose:
        """Returns the same transforms for images with sides of ``size`` pixels; None for no change."""
        return self if size is None else Compose([transform.resized(size) for transform in self.transforms])

    def without_decoding(self, image: Image, rng: Generator | None = None) -> Image:
        """Transforms an image that is already decoded as ``pixel_format`` says, RGB or RGBA.

        Raises:
            ValueError: the image has another type or shape, or does not fit a transform.
        """
        self.pixel_format.check(image)
        for transform in self.transforms:
            if isinstance(transform, DecodeImage):
                image = transform.ordered(image)
        return Compose([t for t in self.transforms if not isinstance(t, DecodeImage)])(image, rng)

    def __call__(self, data: bytes | Image | ImageParts, rng: Generator | None = None) -> Image:
        """Transforms an image.

        Args:
            data: encoded bytes or an ``ImageParts``, or an image if there is no DecodeImage.
            rng: source of the random choices; None for a new generator with an unpredictable seed.

        Returns:
            An image, uint8 [H, W, C], or the result of the last transform.

        Raises:
            ValueError: the image can't be decoded, or does not fit a transform.
        """
        rng = rng or np.random.default_rng()
        image: Any = data
        if not self.transforms:
            return image
        for transform in self.transforms:
            if isinstance(image, ImageParts) and not _takes_parts(type(transform)):
                image = image.whole()
            if (transform.needs_uint8 or transform.channel_counts) and isinstance(image, np.ndarray):
                _check_image(transform, image)
            image = transform(image, rng)
            if isinstance(image, np.ndarray) and image.ndim == 2:  # OpenCV drops the axis of one channel
                image = image[:, :, None]
        return image.whole() if isinstance(image, ImageParts) else image


def _check_image(transform: Transform, image: Image) -> None:
    """Raises ValueError if a transform does not take an image with these channels or of this type.

    A kernel would read memory outside of an image with fewer channels than it expects.
    """
    name, counts = type(transform).__name__, transform.channel_counts
    if counts and (image.ndim != 3 or image.shape[2] not in counts):
        raise ValueError(f"{name}: {_counts_text(counts)}, received an image {list(image.shape)}")
    if transform.needs_uint8 and image.dtype != np.uint8:
        raise ValueError(f"{name}: expected an image uint8, received {image.dtype}")


def _counts_text(counts: Sequence[int]) -> str:
    return f"expected an image with {' or '.join(map(str, counts))} channels"


def _prepared(block: Block, transform: Transform, images: PreparedImages) -> PreparedImages:
    """Returns the facts about the images after a transform.

    Raises:
        ConfigError: the transform does not take the images.
    """
    count = images.channel_count
    if count is not None and transform.channel_counts and count not in transform.channel_counts:
        raise block.where.error(f"{_counts_text(transform.channel_counts)}, received {count}")
    if images.bits == 16 and transform.needs_uint8:
        raise block.where.error(f"{block.name} works on 8 bits, and DecodeImage keeps 16")
    try:
        images_after = transform.prepare(images)
    except ValueError as error:
        raise block.where.error(f"transform {block.name}: {error}") from None
    is_of_package = type(transform).__module__.startswith("ppxcls.")
    return images_after if is_of_package else replace(images_after, channel_count=None, bits=None)


@dataclass(kw_only=True)
class DeviceStage:
    """The transforms that ``split_for_device`` leaves to the device.

    Attributes:
        normalize: normalisation of the batch; None if the device does not normalise.
        chw: True if the host's images are already [C, H, W].
    """

    normalize: NormalizeImage | None
    chw: bool


def build_transforms(specs: Sequence[Any], where: ConfigPlace = ConfigPlace(("transform_ops",))) -> Compose:
    """Builds the transforms of a config's list.

    An example of a list is ``[{"DecodeImage": {}}, {"ResizeImage": {"resize_short": 320}}, ...]``.

    Raises:
        ConfigError: a transform is unknown or has an invalid argument, the order of the transforms is
            invalid, or they need too much work.
    """
    transforms: list[Transform] = []
    images = PreparedImages()
    is_chw = False
    for block in _bounded_blocks(specs, where):
        transform = TRANSFORMS.build(block)
        if isinstance(transform, DecodeImage) and transforms:
            raise block.where.error("expected DecodeImage first")
        if transform.needs_uint8 and any(isinstance(t, NormalizeImage | ToCHWImage) for t in transforms):
            raise block.where.error(
                f"{block.name} works on uint8: expected it before NormalizeImage and ToCHWImage"
            )
        if isinstance(transform, NormalizeImage) and transform.chw and not is_chw:
            # For [H, W, 3], PaddleClas's default would apply the channels' constants to rows, or fail.
            raise (block.where / "order").error("expected '' or 'hwc' before ToCHWImage, received 'chw'")
        images = _prepared(block, transform, images)
        is_chw = is_chw or isinstance(transform, ToCHWImage)
        transforms.append(transform)
    return Compose(transforms)


def _bounded_blocks(specs: Sequence[Any], where: ConfigPlace) -> list[Block]:
    """Returns the blocks of a list of transforms. Raises ConfigError if they need too much work.

    The list may come from a stranger's export or run. A few bytes could keep a server busy for minutes.
    """
    if len(specs) > _MAX_TRANSFORMS:
        raise where.error(f"expected at most {_MAX_TRANSFORMS} transforms, received {len(specs):,}")
    blocks = list(TRANSFORMS.blocks(specs, where))
    pixel_count = 0
    for block in blocks:
        for name in ("size", "resize_short", "img_size"):
            size = block.arguments.get(name) or 0
            pixel_count += math.prod(size) if isinstance(size, list | tuple) else size**2
        if pixel_count > _MAX_RESULT_PIXELS:
            raise block.where.error(
                f"expected sizes of at most {_MAX_RESULT_PIXELS:,} pixels in all transforms together, "
                f"received {pixel_count:,}"
            )
    return blocks


def prepared_images(specs: Sequence[Any], images: PreparedImages | None = None) -> PreparedImages:
    """Returns how a config's list of transforms prepares images.

    Args:
        specs: transforms as in a config: ``[{"ResizeImage": {"resize_short": 320}}, ...]``.
        images: facts about the images before the first of them; None if nothing is known.

    Raises:
        ConfigError: a transform is unknown or has a wrong argument.
    """
    images = images or PreparedImages()
    for block in TRANSFORMS.blocks(specs, ConfigPlace(("transform_ops",))):
        images = _prepared(block, TRANSFORMS.build(block), images)
    return images


def starts_with_decoding(specs: Sequence[Any]) -> bool:
    """True if the first transform of a config's list is DecodeImage, which files need."""
    return bool(specs) and "DecodeImage" in specs[0]


def split_for_device(compose: Compose) -> tuple[Compose, DeviceStage]:
    """Splits off NormalizeImage and ToCHWImage at the end, so that they run on the device.

    A uint8 batch has a quarter of the bytes of a float32 batch.

    Returns:
        The transforms that run on the host, and those that run on the device.
    """
    host = list(compose.transforms)
    normalize: NormalizeImage | None = None
    while (
        host
        and isinstance(host[-1], NormalizeImage | ToCHWImage)
        and not (normalize and isinstance(host[-1], NormalizeImage))
    ):
        last = host.pop()
        normalize = last if isinstance(last, NormalizeImage) else normalize
    is_chw = any(isinstance(t, ToCHWImage) for t in host)
    return Compose(host), DeviceStage(normalize=normalize, chw=is_chw)
