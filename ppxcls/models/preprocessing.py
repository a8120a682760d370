"""The preprocessing of images: what published weights expect, what a config does, and how two of them differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ppxcls.data.transforms import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing with which the publisher of a network's weights evaluated them.

    Attributes:
        source: the publisher.
        input_size: pixels of both sides.
        crop_share: side of the input divided by the shorter side of the resized image; None for no crop.
        interpolation: of the resizing.
        mean: of channels with values from 0 to 1.
        std: of channels with values from 0 to 1.
        url: of the weights at their publisher's.
    """

    source: str
    input_size: int
    crop_share: float | None
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    url: str = ""


HALF = (0.5, 0.5, 0.5)


def of_paddleclas(name: str) -> Preprocessing:
    """The preprocessing of PaddleClas's Xception YAMLs, with the weights' address from its table of models."""
    url = f"https://paddle-imagenet-models-name.bj.bcebos.com/dygraph/{name}_pretrained.pdparams"
    return Preprocessing("PaddleClas", 299, 299 / 320, "bilinear", IMAGENET_MEAN, IMAGENET_STD, url)


def of_timm(name: str, crop_share: float) -> Preprocessing:
    """The preprocessing of timm 1.0.31's ``default_cfg``, with the weights' page on the Hugging Face hub."""
    return Preprocessing(
        "timm", 299, crop_share, "bicubic", HALF, HALF, f"https://huggingface.co/timm/{name}"
    )


@dataclass(frozen=True)
class PreparedImages:
    """What a list of transforms does to images; None where it has no such step.

    Attributes:
        size: sides after all transforms, one number or (width, height).
        short: shorter side after resizing, before a crop.
        interpolation: of the resizing.
        mean: of the normalisation.
        std: of the normalisation.
    """

    size: int | tuple[int, int] | None
    short: int | None
    interpolation: str | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    @classmethod
    def by(cls, transform_ops: Sequence[Mapping[str, Any]]) -> PreparedImages:
        """Of transforms from a config: ``[{"ResizeImage": {"resize_short": 320}}, ...]``."""
        ops = {key: value or {} for op in transform_ops for key, value in op.items()}
        resize, crop, normalize = (ops.get(key) for key in ("ResizeImage", "CropImage", "NormalizeImage"))
        size = crop.get("size") if crop else (resize.get("size") if resize else None)
        if isinstance(size, list | tuple):
            size = size[0] if len(set(size)) == 1 else tuple(size)
        interpolation = None
        if resize:
            default = "bilinear" if resize.get("backend", "cv2") == "cv2" else "bicubic"
            interpolation = resize.get("interpolation") or default
        return cls(
            size=size,
            short=resize.get("resize_short") if resize else None,
            interpolation=interpolation,
            mean=None if normalize is None else tuple(normalize.get("mean") or IMAGENET_MEAN),
            std=None if normalize is None else tuple(normalize.get("std") or IMAGENET_STD),
        )

    def __str__(self) -> str:
        """Such as ``299 px bilinear from 320``."""
        if self.size is None and self.short is None:
            return "images as they are"
        size = (
            f"{self.size[0]} x {self.size[1]}"
            if isinstance(self.size, tuple)
            else self.size or f"shorter side {self.short}"
        )
        return f"{size} px {self.interpolation or ''}".rstrip() + (
            f" from {self.short}" if self.size and self.short else ""
        )

    def differences(self, other: PreparedImages) -> list[str]:
        """What another list of transforms does differently, such as ``size: 71, and 299``."""
        names = ("size", "short", "interpolation", "mean", "std")
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in names]
        return [f"{name}: {own}, and {theirs}" for name, own, theirs in pairs if own != theirs]


def differences(expected: Preprocessing, transform_ops: Sequence[Mapping[str, Any]]) -> list[str]:
    """How a config's evaluation transforms differ from what published weights expect.

    Args:
        expected: by the weights.
        transform_ops: from the config: ``[{"ResizeImage": {"resize_short": 320}}, ...]``.

    Returns:
        Lines such as ``mean: (0.485, 0.456, 0.406), the weights expect (0.5, 0.5, 0.5) (timm)``.
    """
    own = PreparedImages.by(transform_ops)
    found: list[tuple[str, Any, Any]] = []
    if isinstance(own.size, int):
        found.append(("input size", own.size, expected.input_size))
        share = own.size / own.short if own.short else None
        if (share is None) != (expected.crop_share is None) or (
            share and abs(share - (expected.crop_share or 0)) > 0.01
        ):
            found.append(
                (
                    "share of the crop",
                    share and round(share, 4),
                    expected.crop_share and round(expected.crop_share, 4),
                )
            )
    if own.interpolation:
        found.append(("interpolation", own.interpolation, expected.interpolation))
    if own.mean is not None:
        found += [("mean", own.mean, expected.mean), ("std", own.std, expected.std)]
    return [
        f"{what}: {mine}, the weights expect {theirs} ({expected.source})"
        for what, mine, theirs in found
        if mine != theirs
    ]
