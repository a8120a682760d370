"""Transforms that erase parts of one image.

Names and arguments are those of PaddleClas. Every random choice comes from the generator that is passed in.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from PIL import Image as PillowImage

from ppxcls.config.checks import Count, Positive, Share
from ppxcls.data.decode import Image
from ppxcls.data.pixel_size import FillValue, check_fill
from ppxcls.data.preparation import PreparedImages
from ppxcls.data.transforms import TRANSFORMS, Generator, Transform


@TRANSFORMS.register
class RandomErasing(Transform):
    """Erases a random rectangle (arXiv:1708.04896).

    Args:
        EPSILON: probability of erasing.
        sl: smallest share of the image's area.
        sh: largest share of the image's area.
        r1: smallest ratio of height to width; the largest is its inverse.
        mean: colour for the mode ``const``, in the units of the image at this place: 0 to 255 before
            NormalizeImage; one value for all channels, or a value for each channel.
        attempt: number of attempts to draw a rectangle that fits.
        use_log_aspect: True if the logarithm of the ratio is drawn uniformly, instead of the ratio.
        mode: content of the rectangle: ``const`` for the colour ``mean``, ``rand`` for one random colour,
            ``pixel`` for a random colour per pixel.
    """

    def __init__(
        self,
        EPSILON: Share = 0.5,
        sl: Share = 0.02,
        *,
        sh: Share = 0.4,
        r1: Positive = 0.3,
        mean: FillValue = 0.0,
        attempt: Count = 100,
        use_log_aspect: bool = False,
        mode: Literal["const", "rand", "pixel"] = "const",
    ) -> None:
        if sl > sh or r1 > 1:
            raise ValueError(f"expected sl up to sh and r1 up to 1, received {sl:g}, {sh:g} and {r1:g}")
        self.probability = EPSILON
        self.shares = (sl, sh)
        self.aspects = (r1, 1 / r1)
        self.mean = mean
        self.attempt = attempt
        self.use_log_aspect = use_log_aspect
        self.mode = mode

    def __call__(self, image: Image, rng: Generator) -> Image:
        if rng.random() >= self.probability:
            return image
        height, width = image.shape[:2]
        for _ in range(self.attempt):
            area = rng.uniform(*self.shares) * height * width
            min_aspect, max_aspect = self.aspects
            aspect = (
                math.exp(rng.uniform(math.log(min_aspect), math.log(max_aspect)))
                if self.use_log_aspect
                else rng.uniform(min_aspect, max_aspect)
            )
            erased_height, erased_width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < erased_height < height and 0 < erased_width < width:
                top = int(rng.integers(height - erased_height + 1))
                left = int(rng.integers(width - erased_width + 1))
                fill_values = self._fill_values(image, erased_height, erased_width, rng)
                output = image.copy()
                output[top : top + erased_height, left : left + erased_width] = fill_values
                return output
        return image

    def prepare(self, images: PreparedImages) -> PreparedImages:
        """Checks the number of colours."""
        check_fill("mean", self.mean, images.channel_count)
        return images

    def _fill_values(self, image: Image, height: int, width: int, rng: Generator) -> Any:
        dtype = image.dtype
        if self.mode == "const":
            return np.asarray(self.mean, dtype)
        sides = (1, 1) if self.mode == "rand" else (height, width)
        shape = (*sides, image.shape[2])
        return (
            rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
            if dtype in (np.uint8, np.uint16)
            else rng.normal(size=shape).astype(dtype)
        )


@TRANSFORMS.register
class Cutout(Transform):
    """Blackens squares around random points, cut at the border (arXiv:1708.04552).

    Args:
        n_holes: number of squares.
        length: side of a square in pixels.
    """

    def __init__(self, n_holes: Count = 1, length: Count = 112) -> None:
        self.n_holes = n_holes
        self.length = length

    def __call__(self, image: Image, rng: Generator) -> Image:
        output = image.copy()
        for _ in range(self.n_holes):
            y, x = (int(rng.integers(side)) for side in image.shape[:2])
            half = self.length // 2
            output[max(0, y - half) : y + half, max(0, x - half) : x + half] = 0
        return output


@TRANSFORMS.register
class HideAndSeek(Transform):
    """Blackens each square of a random grid with probability 1/2 (arXiv:1811.02545).

    The sides of the squares are 16, 32, 44 or 56 pixels. One image in five is not changed.
    """

    _SIDES_PIXELS = (0, 16, 32, 44, 56)

    def __call__(self, image: Image, rng: Generator) -> Image:
        side = self._SIDES_PIXELS[rng.integers(len(self._SIDES_PIXELS))]
        if side == 0:
            return image
        output = image.copy()
        for top in range(0, image.shape[0], side):
            for left in range(0, image.shape[1], side):
                if rng.random() < 0.5:
                    output[top : top + side, left : left + side] = 0
        return output


@TRANSFORMS.register
class GridMask(Transform):
    """Blackens a regular grid of squares (arXiv:2001.04086).

    Args:
        d1: smallest period of the grid in pixels.
        d2: largest period of the grid in pixels.
        rotate: upper limit of the random rotation in degrees, exclusive; 1 for no rotation.
        ratio: share of a period between two squares, in both directions.
        mode: area to blacken: 0 for the squares of the grid, 1 for the area around them.
        prob: probability of the transform.
    """

    def __init__(
        self,
        d1: Count = 96,
        d2: Count = 224,
        *,
        rotate: Count = 1,
        ratio: Share = 0.5,
        mode: Literal[0, 1] = 0,
        prob: Share = 1.0,
    ) -> None:
        if d1 > d2:
            raise ValueError(f"expected d1 up to d2, received {d1} and {d2}")
        self.periods = (d1, d2)
        self.rotate = rotate
        self.ratio = ratio
        self.mode = mode
        self.prob = prob

    def __call__(self, image: Image, rng: Generator) -> Image:
        if rng.random() >= self.prob:
            return image
        height, width = image.shape[:2]
        side = math.ceil(math.hypot(height, width))
        period = int(rng.integers(self.periods[0], self.periods[1] + 1))
        gap = min(max(int(period * self.ratio + 0.5), 1), period)
        offsets = rng.integers(period, size=2)
        rows, columns = ((np.arange(side) + shift) % period < gap for shift in offsets)
        mask = (rows[:, None] | columns[None, :]) != bool(self.mode)
        rotated_mask = PillowImage.fromarray(mask.astype(np.uint8)).rotate(int(rng.integers(self.rotate)))
        top, left = (side - height) // 2, (side - width) // 2
        return image * np.asarray(rotated_mask)[top : top + height, left : left + width, None]
