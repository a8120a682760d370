"""What published weights expect of the images, and whether a config's evaluation gives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Preprocessing:
    """How the weights of a network were evaluated by who published them.

    Attributes:
        source: who.
        input_size: pixels of both sides.
        crop_share: the input's side over the shorter side after resizing; None for resizing without a crop.
        mean, std: of channels whose values are from 0 to 1.
    """

    source: str
    input_size: int
    crop_share: float | None
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


_HALF, _IMAGENET = (0.5, 0.5, 0.5), (0.485, 0.456, 0.406)
_TIMM = Preprocessing("timm", 299, 0.94, "bicubic", _HALF, _HALF)
_PADDLECLAS = Preprocessing("PaddleClas", 299, 299 / 320, "bilinear", _IMAGENET, (0.229, 0.224, 0.225))

# timm 1.0.31's default_cfg; Keras's preprocess_input; PaddleClas's YAMLs.
PREPROCESSING: dict[str, Preprocessing] = {
    "legacy_xception": replace(_TIMM, crop_share=0.8975),
    "xception41": replace(_TIMM, crop_share=0.903),
    "xception65": _TIMM,
    "xception71": replace(_TIMM, crop_share=0.903),
    "xception41p": _TIMM,
    "xception65p": _TIMM,
    "Xception": Preprocessing("Keras", 299, None, "bilinear", _HALF, _HALF),
    "Xception41": _PADDLECLAS,
    "Xception65": _PADDLECLAS,
    "Xception71": _PADDLECLAS,
    "Xception41_deeplab": _PADDLECLAS,
    "Xception65_deeplab": _PADDLECLAS,
}


def disagreements(name: str, transform_ops: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where a config's evaluation transforms differ from what the published weights of a network expect.

    Args:
        name: of the network.
        transform_ops: checked, as in the config: ``[{"ResizeImage": {"resize_short": 320}}, ...]``.

    Returns:
        Lines such as ``mean: (0.485, 0.456, 0.406), the weights expect (0.5, 0.5, 0.5) (timm)``.
    """
    expected = PREPROCESSING[name]
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
        found.append(("mean", tuple(normalize.get("mean", _IMAGENET)), expected.mean))
        found.append(("std", tuple(normalize.get("std", (0.229, 0.224, 0.225))), expected.std))
    return [f"{what}: {own}, the weights expect {theirs} ({expected.source})" for what, own, theirs in found if own != theirs]
