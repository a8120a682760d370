"""The preprocessing that published weights expect, and a comparison of a config with it."""

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
    """

    source: str
    input_size: int
    crop_share: float | None
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


HALF = (0.5, 0.5, 0.5)
PADDLECLAS = Preprocessing("PaddleClas", 299, 299 / 320, "bilinear", IMAGENET_MEAN, IMAGENET_STD)  # of its Xception YAMLs


def differences(expected: Preprocessing, transform_ops: Sequence[Mapping[str, Any]]) -> list[str]:
    """How a config's evaluation transforms differ from what published weights expect.

    Args:
        expected: by the weights.
        transform_ops: from the config: ``[{"ResizeImage": {"resize_short": 320}}, ...]``.

    Returns:
        Lines such as ``mean: (0.485, 0.456, 0.406), the weights expect (0.5, 0.5, 0.5) (timm)``.
    """
    ops = {key: value or {} for op in transform_ops for key, value in op.items()}
    resize, crop, normalize = (ops.get(key) for key in ("ResizeImage", "CropImage", "NormalizeImage"))
    found: list[tuple[str, Any, Any]] = []
    short = resize.get("resize_short") if resize else None
    size = crop.get("size") if crop else (resize.get("size") if resize else None)
    if isinstance(size, int):
        found.append(("input size", size, expected.input_size))
        share = size / short if short else None
        if (share is None) != (expected.crop_share is None) or (share and abs(share - (expected.crop_share or 0)) > 0.01):
            found.append(("share of the crop", share and round(share, 4), expected.crop_share and round(expected.crop_share, 4)))
    if resize:
        default = "bilinear" if resize.get("backend", "cv2") == "cv2" else "bicubic"
        found.append(("interpolation", resize.get("interpolation") or default, expected.interpolation))
    if normalize is not None:
        found.append(("mean", tuple(normalize.get("mean", IMAGENET_MEAN)), expected.mean))
        found.append(("std", tuple(normalize.get("std", IMAGENET_STD)), expected.std))
    return [f"{what}: {own}, the weights expect {theirs} ({expected.source})" for what, own, theirs in found if own != theirs]
