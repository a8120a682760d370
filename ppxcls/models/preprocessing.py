"""The preprocessing of images: what published weights expect, what a config does, and how two of them differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ppxcls.data.transforms import IMAGENET_MEAN, IMAGENET_STD, prepared_images


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


def differences(expected: Preprocessing, transform_ops: Sequence[Mapping[str, Any]]) -> list[str]:
    """How a config's evaluation transforms differ from what published weights expect.

    Args:
        expected: by the weights.
        transform_ops: from the config: ``[{"ResizeImage": {"resize_short": 320}}, ...]``.

    Returns:
        Lines such as ``mean: (0.485, 0.456, 0.406), the weights expect (0.5, 0.5, 0.5) (timm)``.
    """
    own = prepared_images(transform_ops)
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
