"""Augmentation policies that apply Pillow's operations to one uint8 image, and colour jitter.

Names, arguments and interpolations match PaddleClas. Every random choice comes from the generator that the
caller passes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageEnhance, ImageOps

from ppxcls.config.checks import Bound, Count, NotNegative
from ppxcls.data import pixel_operations
from ppxcls.data.decode import Image
from ppxcls.data.transforms import TRANSFORMS, Generator, Transform
from ppxcls.system import kernels

Picture = PillowImage.Image
Operation = Callable[[Picture, float, "Fill"], Picture]
Level = Annotated[float, Bound(ge=0, le=10)]

_NEAREST, _BILINEAR, _BICUBIC = (PillowImage.Resampling[name] for name in ("NEAREST", "BILINEAR", "BICUBIC"))


class Fill:
    """Interpolation of geometric operations, and the colour of the area that they uncover.

    Args:
        colour: red, green and blue of the uncovered area, 0 to 255.
        shear: interpolation of shears.
        move: interpolation of shifts and rotations; None for the same as ``shear``.
    """

    def __init__(
        self,
        colour: tuple[int, int, int],
        shear: PillowImage.Resampling,
        move: PillowImage.Resampling | None = None,
    ) -> None:
        self.colour = colour
        self.shear = shear
        self.move = shear if move is None else move

    def sheared(self, image: Picture, *matrix: float) -> Picture:
        """Returns an affine transform of an image.

        Its pixel (x, y) is pixel (a x + b y + c, d x + e y + f) of ``image``.
        """
        transform = PillowImage.Transform.AFFINE
        return image.transform(image.size, transform, matrix, resample=self.shear, fillcolor=self.colour)

    def moved(self, image: Picture, x: float, y: float) -> Picture:
        """Returns the image shifted by ``x`` pixels to the left and ``y`` pixels up."""
        transform, matrix = PillowImage.Transform.AFFINE, (1, 0, x, 0, 1, y)
        return image.transform(image.size, transform, matrix, resample=self.move, fillcolor=self.colour)


def _solarize_add(image: Picture, amount: float) -> Picture:
    table = [min(255, i + round(amount)) if i < 128 else i for i in range(256)]
    return image.point(table * len(image.getbands()))


# Pillow's operations, which define the pixels. The argument ``v`` is a slope, a share of the side, degrees,
# bits, a threshold, or a factor.
OPERATIONS: dict[str, Operation] = {
    "Identity": lambda image, v, fill: image,
    "ShearX": lambda image, v, fill: fill.sheared(image, 1, v, 0, 0, 1, 0),
    "ShearY": lambda image, v, fill: fill.sheared(image, 1, 0, 0, v, 1, 0),
    "TranslateX": lambda image, v, fill: fill.moved(image, v * image.width, 0),
    "TranslateY": lambda image, v, fill: fill.moved(image, 0, v * image.height),
    "Rotate": lambda image, v, fill: image.rotate(v, resample=fill.move, fillcolor=fill.colour),
    "AutoContrast": lambda image, v, fill: ImageOps.autocontrast(image),
    "Equalize": lambda image, v, fill: ImageOps.equalize(image),
    "Invert": lambda image, v, fill: ImageOps.invert(image),
    "Posterize": lambda image, v, fill: ImageOps.posterize(image, max(1, min(8, int(v)))),
    "Solarize": lambda image, v, fill: ImageOps.solarize(image, int(v)),
    "SolarizeAdd": lambda image, v, fill: _solarize_add(image, v),
    "Color": lambda image, v, fill: ImageEnhance.Color(image).enhance(v),
    "Contrast": lambda image, v, fill: ImageEnhance.Contrast(image).enhance(v),
    "Brightness": lambda image, v, fill: ImageEnhance.Brightness(image).enhance(v),
    "Sharpness": lambda image, v, fill: ImageEnhance.Sharpness(image).enhance(v),
}
_SIGNED_OPERATIONS = {"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"}
_ENHANCEMENTS = {"Color", "Contrast", "Brightness", "Sharpness"}


def _argument(name: str, strength: float, full_arguments: dict[str, float], rng: Generator) -> float:
    """Returns the argument of an operation for a strength.

    Args:
        name: name of the operation.
        strength: strength from 0 to 1.
        full_arguments: argument of each operation at full strength; for enhancements, its distance from 1.
        rng: random generator that decides the sign.
    """
    value = strength * full_arguments.get(name, 0.0)
    if name in _SIGNED_OPERATIONS:
        return value if rng.integers(2) else -value
    if name in _ENHANCEMENTS:
        return 1 + value if rng.integers(2) else 1 - value
    if name == "Posterize":
        return 8 - value
    return 256 - value if name == "Solarize" else value


def apply(image: Image, steps: Sequence[tuple[str, float]], fill: Fill) -> Image:
    """Applies operations one after another.

    If numba is installed, its kernels compute the same pixels faster.

    Args:
        image: image, uint8 [H, W, 3].
        steps: name and argument of each operation.
        fill: interpolation and colour of geometric operations.

    Raises:
        ValueError: the image has another type or shape, of which the kernels would read other memory.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected an image uint8 [H, W, 3], received {image.dtype} {list(image.shape)}")
    for name, value in steps:
        kernel_result = (
            pixel_operations.apply_by_kernel(
                image, name, value=value, colour=fill.colour, shear=fill.shear, move=fill.move
            )
            if kernels.HAS_NUMBA
            else None
        )
        image = (
            np.asarray(OPERATIONS[name](PillowImage.fromarray(image), value, fill))
            if kernel_result is None
            else kernel_result
        )
    return image


# ImageNet's policy (AutoAugment, arXiv:1805.09501, table 9): pairs of operations, each with its probability
# and its magnitude out of 9.
_POLICY = """
Posterize .4 8 Rotate .6 9|Solarize .6 5 AutoContrast .6 5|Equalize .8 8 Equalize .6 3
Posterize .6 7 Posterize .6 6
Equalize .4 7 Solarize .2 4|Equalize .4 4 Rotate .8 8|Solarize .6 3 Equalize .6 7|Posterize .8 5 Equalize 1 2
Rotate .2 3 Solarize .6 8|Equalize .6 8 Posterize .4 6|Rotate .8 8 Color .4 0|Rotate .4 9 Equalize .6 2
Equalize 0 7 Equalize .8 8|Invert .6 4 Equalize 1 8|Color .6 4 Contrast 1 8|Rotate .8 8 Color 1 2
Color .8 8 Solarize .8 7|Sharpness .4 7 Invert .6 8|ShearX .6 5 Equalize 1 9|Color .4 0 Equalize .6 3
Equalize .4 7 Solarize .2 4|Solarize .6 5 AutoContrast .6 5|Invert .6 4 Equalize 1 8|Color .6 4 Contrast 1 8
Equalize .8 8 Equalize .6 3
"""
_FULL_ARGUMENTS = {
    "ShearX": 0.3,
    "ShearY": 0.3,
    "TranslateX": 150 / 331,
    "TranslateY": 150 / 331,
    "Rotate": 30,
    "Posterize": 4,
}
_FULL_ARGUMENTS |= {"Solarize": 256, "Color": 0.9, "Contrast": 0.9, "Brightness": 0.9, "Sharpness": 0.9}
_PADDLECLAS_FILL = Fill((128, 128, 128), _BICUBIC, _NEAREST)
_RAND_OPERATIONS = [*_FULL_ARGUMENTS, "AutoContrast", "Equalize", "Invert"]


@TRANSFORMS.register
class AutoAugment(Transform):
    """Applies one of 25 pairs of operations (ImageNet's policy of AutoAugment, arXiv:1805.09501).

    Each operation of a pair has its own probability.
    """

    needs_uint8 = True
    channel_counts = (3,)

    def __init__(self) -> None:
        words = [pair.split() for line in _POLICY.split("\n") for pair in line.split("|") if pair]
        self.policy = [[(w[i], float(w[i + 1]), int(w[i + 2])) for i in (0, 3)] for w in words]
        self._fill = _PADDLECLAS_FILL

    def __call__(self, image: Image, rng: Generator) -> Image:
        steps = []
        for name, probability, magnitude in self.policy[rng.integers(len(self.policy))]:
            value = _argument(name, magnitude / 9, _FULL_ARGUMENTS, rng)
            if rng.random() < probability:
                steps.append((name, value))
        return apply(image, steps, self._fill)


@TRANSFORMS.register
class RandAugment(Transform):
    """Applies random operations of the same magnitude (arXiv:1909.13719).

    Args:
        num_layers: number of operations for each image, drawn from 14.
        magnitude: strength of the operations, from 0 to 10.
    """

    needs_uint8 = True
    channel_counts = (3,)

    def __init__(self, num_layers: Count = 2, magnitude: Level = 5.0) -> None:
        self.num_layers = num_layers
        self.magnitude = magnitude
        self._fill = _PADDLECLAS_FILL

    def __call__(self, image: Image, rng: Generator) -> Image:
        names = [_RAND_OPERATIONS[i] for i in rng.integers(len(_RAND_OPERATIONS), size=self.num_layers)]
        return apply(
            image,
            [(name, _argument(name, self.magnitude / 10, _FULL_ARGUMENTS, rng)) for name in names],
            self._fill,
        )


@TRANSFORMS.register
class TrivialAugment(Transform):
    """Applies one of 14 operations with one of 31 strengths (arXiv:2103.10158, the wide space)."""

    needs_uint8 = True
    channel_counts = (3,)

    _FULL_ARGUMENTS = dict.fromkeys((*_ENHANCEMENTS, "ShearX", "ShearY"), 0.99) | {
        "Rotate": 135,
        "Posterize": 6,
        "Solarize": 256,
    }

    def __init__(self) -> None:
        self._names = [
            "Identity",
            "AutoContrast",
            "Equalize",
            *sorted(self._FULL_ARGUMENTS),
            "TranslateX",
            "TranslateY",
        ]
        self._fill = Fill((128, 128, 128), _BILINEAR)

    def __call__(self, image: Image, rng: Generator) -> Image:
        name = self._names[rng.integers(len(self._names))]
        shift_limits = {"TranslateX": 32 / image.shape[1], "TranslateY": 32 / image.shape[0]}
        return apply(
            image,
            [(name, _argument(name, rng.integers(31) / 30, self._FULL_ARGUMENTS | shift_limits, rng))],
            self._fill,
        )


@TRANSFORMS.register
class TimmAutoAugment(Transform):
    """Applies timm's RandAugment, described by timm's string.

    Args:
        config_str: string of ``rand`` and settings, joined by ``-``. ``m`` is the magnitude (default 9),
            ``n`` the number of operations (2), ``p`` the probability of each (0.5), ``mstd`` the standard
            deviation of the magnitude (0), and ``mmax`` the limit of the magnitude (10). If ``mstd`` is 100
            or more, the magnitude is uniform from 0 to ``m``. With ``inc1``, all operations get stronger with
            the magnitude.
        interpolation: interpolation of geometric operations; ``random`` draws bilinear or bicubic for each
            image.
        img_size: size by which timm scales shifts. It has no effect, because shifts are shares of the side
            here.
    """

    needs_uint8 = True
    channel_counts = (3,)

    _FULL_ARGUMENTS = _FULL_ARGUMENTS | {"TranslateX": 0.45, "TranslateY": 0.45, "SolarizeAdd": 110}

    def __init__(
        self,
        config_str: str = "rand-m9-mstd0.5-inc1",
        interpolation: Literal["random", "bilinear", "bicubic"] = "random",
        img_size: Count | list[Count] | None = None,
    ) -> None:
        kind, *parts = config_str.split("-")
        settings = {"m": 9.0, "n": 2.0, "p": 0.5, "mstd": 0.0, "mmax": 10.0, "inc": 0.0}
        for part in parts:
            match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
            if not match or match[1] not in settings:
                raise ValueError(
                    f"expected parts such as {', '.join(settings)} with a number, received {part!r}"
                )
            settings[match[1]] = float(match[2])
        if (
            kind != "rand"
            or not 0 <= settings["p"] <= 1
            or not 0 <= settings["m"] <= settings["mmax"]
            or settings["n"] < 1
        ):
            raise ValueError(f"expected a string such as rand-m9-mstd0.5-inc1, received {config_str!r}")
        self.settings = settings
        self._names = [*_RAND_OPERATIONS, "SolarizeAdd"]
        self._interpolations = {
            "random": [_BILINEAR, _BICUBIC],
            "bilinear": [_BILINEAR],
            "bicubic": [_BICUBIC],
        }[interpolation]

    def __call__(self, image: Image, rng: Generator) -> Image:
        settings = self.settings
        steps = []
        for i in rng.integers(len(self._names), size=int(settings["n"])):
            if rng.random() >= settings["p"]:
                continue
            magnitude = (
                rng.uniform(0, settings["m"])
                if settings["mstd"] >= 100
                else rng.normal(settings["m"], settings["mstd"])
            )
            steps.append(
                (
                    self._names[i],
                    self._value(self._names[i], min(max(magnitude, 0.0), settings["mmax"]) / 10, rng),
                )
            )
        fill = Fill((124, 116, 104), self._interpolations[rng.integers(len(self._interpolations))])
        return apply(image, steps, fill)

    def _value(self, name: str, strength: float, rng: Generator) -> float:
        if self.settings["inc"]:
            return _argument(name, strength, self._FULL_ARGUMENTS, rng)
        # Without inc, these two get weaker with the magnitude. Enhancement factors go from 0.1 to 1.9.
        if name == "Posterize":
            return 4 * strength
        if name == "Solarize":
            return 256 * strength
        return (
            0.1 + 1.8 * strength
            if name in _ENHANCEMENTS
            else _argument(name, strength, self._FULL_ARGUMENTS, rng)
        )


@TRANSFORMS.register
class ColorJitter(Transform):
    """Changes brightness, contrast, saturation and hue by random factors, in a random order.

    Args:
        brightness: extent b of the change; the factor is drawn from ``[max(0, 1 - b), 1 + b]``.
        contrast: extent of the change, like brightness.
        saturation: extent of the change, like brightness.
        hue: extent h of the change; the shift is drawn from ``[-h, h]``, and 1 is the whole colour circle.
    """

    needs_uint8 = True
    channel_counts = (3,)

    def __init__(
        self,
        brightness: NotNegative = 0.0,
        contrast: NotNegative = 0.0,
        saturation: NotNegative = 0.0,
        hue: Annotated[float, Bound(ge=0, le=0.5)] = 0.0,
    ) -> None:
        self.ranges = {"Brightness": brightness, "Contrast": contrast, "Color": saturation, "Hue": hue}

    def __call__(self, image: Image, rng: Generator) -> Image:
        names = list(self.ranges)
        for i in rng.permutation(len(names)):
            name, extent = names[i], self.ranges[names[i]]
            value = (
                rng.uniform(-extent, extent)
                if name == "Hue"
                else rng.uniform(max(0.0, 1 - extent), 1 + extent)
            )
            if extent == 0:
                continue
            image = (
                _shift_hue(image, value) if name == "Hue" else apply(image, [(name, value)], _PADDLECLAS_FILL)
            )
        return image


def _shift_hue(image: Image, share: float) -> Image:
    hue, saturation, value = PillowImage.fromarray(image).convert("HSV").split()
    shifted_hue = (np.asarray(hue).astype(np.int16) + round(share * 255)) % 256
    channels = PillowImage.fromarray(shifted_hue.astype(np.uint8)), saturation, value
    return np.asarray(PillowImage.merge("HSV", channels).convert("RGB"))
