"""Preprocessing of images: what published weights expect, what a config does, and the differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ppxcls.data.transforms import IMAGENET_MEAN, IMAGENET_STD, prepared_images


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The preprocessing with which the publisher of a network's weights evaluated them.

    Attributes:
        source: publisher of the weights.
        input_size: side of the square input in pixels.
        crop_share: side of the input divided by the shorter side of the resized image; None for no crop.
        interpolation: interpolation of the resizing.
        mean: mean of each channel, for values from 0 to 1.
        std: standard deviation of each channel, for values from 0 to 1.
        url: address of the weights on the publisher's site.
    """

    source: str
    input_size: int
    crop_share: float | None
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    url: str = ""


HALF = (0.5, 0.5, 0.5)


def paddleclas_preprocessing(name: str) -> Preprocessing:
    """Preprocessing of PaddleClas's Xception YAMLs, with the weights' address from its table of models."""
    url = f"https://paddle-imagenet-models-name.bj.bcebos.com/dygraph/{name}_pretrained.pdparams"
    return Preprocessing(
        source="PaddleClas",
        input_size=299,
        crop_share=299 / 320,
        interpolation="bilinear",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        url=url,
    )


def timm_preprocessing(name: str, crop_share: float) -> Preprocessing:
    """Preprocessing of timm 1.0.31's ``default_cfg``, with the weights' page on the Hugging Face hub."""
    return Preprocessing(
        source="timm",
        input_size=299,
        crop_share=crop_share,
        interpolation="bicubic",
        mean=HALF,
        std=HALF,
        url=f"https://huggingface.co/timm/{name}",
    )


def _are_similar(share: float | None, expected_share: float | None) -> bool:
    """True if both shares are missing, or differ by rounding of the resized side only."""
    if share is None or expected_share is None:
        return share is expected_share
    return abs(share - expected_share) <= 0.01


def differences(expected: Preprocessing, transform_ops: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lists the differences between a config's evaluation transforms and what published weights expect.

    Args:
        expected: preprocessing that the weights expect.
        transform_ops: transforms from the config: ``[{"ResizeImage": {"resize_short": 320}}, ...]``.

    Returns:
        Lines such as ``mean: (0.485, 0.456, 0.406), the weights expect (0.5, 0.5, 0.5) (timm)``.
    """
    preprocessing = prepared_images(transform_ops)
    comparisons: list[tuple[str, Any, Any]] = []
    if isinstance(preprocessing.size, int):
        comparisons.append(("input size", preprocessing.size, expected.input_size))
        crop_share = preprocessing.size / preprocessing.short if preprocessing.short else None
        if not _are_similar(crop_share, expected.crop_share):
            shares = (
                crop_share and round(crop_share, 4),
                expected.crop_share and round(expected.crop_share, 4),
            )
            comparisons.append(("share of the crop", *shares))
    if preprocessing.interpolation:
        comparisons.append(("interpolation", preprocessing.interpolation, expected.interpolation))
    if preprocessing.mean is not None:
        comparisons += [("mean", preprocessing.mean, expected.mean), ("std", preprocessing.std, expected.std)]
    return [
        f"{name}: {value}, the weights expect {expected_value} ({expected.source})"
        for name, value, expected_value in comparisons
        if value != expected_value
    ]
