"""Preprocessing of images: what published weights expect, what a config does, and the differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ppxcls.config.checks import ConfigError
from ppxcls.data.preparation import PreparedImages
from ppxcls.data.transforms import IMAGENET_MEAN, IMAGENET_STD, TRANSFORMS, prepared_images


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
        url: address of the weights, which ``pretrained: True`` fetches; empty for the networks of this
            package, whose weights are in ``ppxcls.published.catalogue``.
    """

    source: str
    input_size: int
    crop_share: float | None
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    url: str = ""


HALF = (0.5, 0.5, 0.5)
_Comparison = tuple[str, Any, Any]  # name of a fact, value in the config, value that the weights expect
_ROUNDING = 1e-3  # of mean and standard deviation, for channels with values from 0 to 1
_TRANSFORMS_WITH_FACTS = (
    *("DecodeImage", "ResizeImage", "CropImage", "NormalizeImage", "ToCHWImage"),
    *("Resize", "CenterCrop"),
)


def paddleclas_preprocessing() -> Preprocessing:
    """Preprocessing of PaddleClas's Xception YAMLs."""
    return Preprocessing(
        source="PaddleClas",
        input_size=299,
        crop_share=299 / 320,
        interpolation="bilinear",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def timm_preprocessing(crop_share: float) -> Preprocessing:
    """Preprocessing of timm 1.0.31's ``default_cfg``."""
    return Preprocessing(
        source="timm",
        input_size=299,
        crop_share=crop_share,
        interpolation="bicubic",
        mean=HALF,
        std=HALF,
    )


def _are_similar(share: float | None, expected_share: float | None) -> bool:
    """True if both shares are missing, or differ by rounding of the resized side only."""
    if share is None or expected_share is None:
        return share is expected_share
    return abs(share - expected_share) <= 0.01


@dataclass(frozen=True)
class RunPreprocessing:
    """The preprocessing with which a run evaluated its weights.

    Attributes:
        transform_ops: transforms of the run as plain values.
        train_ops: training transforms of the run as plain values; empty if they are not known.
        is_exhaustive: False if only the training transforms are known, so that the size may differ.
    """

    transform_ops: list[dict[str, Any]]
    train_ops: list[dict[str, Any]]
    is_exhaustive: bool = True

    @cached_property
    def images(self) -> PreparedImages:
        """Facts about the prepared images.

        A transform that this version does not know may change the channels and the bits, so these are not
        known after it.
        """
        images = PreparedImages()
        for op in self.transform_ops:
            try:
                images = prepared_images([op], images)
            except ConfigError:
                images = replace(images, channel_count=None, bits=None)
        return images

    @cached_property
    def other_transforms(self) -> tuple[str, ...]:
        """Names of transforms that declare no facts, such as a user's own."""
        return _other_transforms(self.transform_ops)


def run_preprocessing(config: Mapping[str, Any]) -> RunPreprocessing | None:
    """Returns the preprocessing of a run, by its resolved config as plain values.

    The evaluation transforms are used, otherwise those for prediction, otherwise the normalisation of the
    training. None if the config has none of them.
    """
    eval_ops = _ops_at(config, ("DataLoader", "Eval", "dataset", "transform_ops"))
    train_ops = _ops_at(config, ("DataLoader", "Train", "dataset", "transform_ops"))
    transform_ops = eval_ops or _ops_at(config, ("Infer", "transforms"))
    if transform_ops:
        return RunPreprocessing(transform_ops, train_ops)
    return RunPreprocessing(train_ops, train_ops, is_exhaustive=False) if train_ops else None


def _ops_at(config: Any, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the transforms at a key path of a config; empty if it has none, or is damaged."""
    for key in keys:
        config = config.get(key) if isinstance(config, Mapping) else None
    is_valid = isinstance(config, list) and all(isinstance(op, dict) for op in config)
    return list(config) if config and is_valid else []


def differences(expected: Preprocessing, transform_ops: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lists the differences between a config's evaluation transforms and what published weights expect.

    Args:
        expected: preprocessing that the weights expect.
        transform_ops: transforms from the config: ``[{"ResizeImage": {"resize_short": 320}}, ...]``.

    Returns:
        Lines such as ``mean: (0.485, 0.456, 0.406), the weights expect (0.5, 0.5, 0.5) (timm)``.
    """
    images = prepared_images(transform_ops)
    is_complete = _has_facts_of_all(transform_ops)
    comparisons = _size_comparisons(images, expected.input_size, expected.crop_share, is_complete=is_complete)
    if images.interpolation:
        comparisons.append(("interpolation", images.interpolation, expected.interpolation))
    comparisons += _normalisation_comparisons(
        images,
        PreparedImages(mean=expected.mean, std=expected.std, channels="RGB"),
        is_complete=is_complete,
    )
    return _lines(comparisons, expected.source)


def differences_from_run(
    expected: RunPreprocessing, transform_ops: Sequence[Mapping[str, Any]], *, is_training: bool = False
) -> list[str]:
    """Lists the differences between a config's transforms and those of the run that trained the weights.

    Args:
        expected: preprocessing of the run.
        transform_ops: transforms from the config.
        is_training: True for training transforms, of which only the normalisation is compared.

    Returns:
        Lines such as ``mean: (0.5, 0.5, 0.5), the weights expect (0.485, 0.456, 0.406) (their run)``.
    """
    images = prepared_images(transform_ops)
    is_complete = _has_facts_of_all(transform_ops)
    comparisons: list[_Comparison] = []
    if not is_training and expected.is_exhaustive:
        size, short = expected.images.size, expected.images.short
        comparisons += _size_comparisons(images, size, _crop_share(size, short), is_complete=is_complete)
        if images.interpolation and expected.images.interpolation:
            comparisons.append(("interpolation", images.interpolation, expected.images.interpolation))
        comparisons.append(("letterbox", images.fill, expected.images.fill))
        other_transforms = _other_transforms(transform_ops)
        if other_transforms != expected.other_transforms:
            name, expected_name = (
                ", ".join(ops) or "none" for ops in (other_transforms, expected.other_transforms)
            )
            comparisons.append(("other transforms", name, expected_name))
    comparisons += _normalisation_comparisons(images, expected.images, is_complete=is_complete)
    return _lines(comparisons, "their run")


def _lines(comparisons: Sequence[_Comparison], source: str) -> list[str]:
    return [
        f"{name}: {value}, the weights expect {expected_value} ({source})"
        for name, value, expected_value in comparisons
        if not _are_equal(value, expected_value)
    ]


def _are_equal(value: Any, expected_value: Any) -> bool:
    """True if two facts are equal. Numbers of a mean may be rounded."""
    if isinstance(value, tuple) and isinstance(expected_value, tuple) and len(value) == len(expected_value):
        return all(abs(a - b) < _ROUNDING for a, b in zip(value, expected_value, strict=True))
    return bool(value == expected_value)


def _crop_share(size: int | tuple[int, int] | None, short: int | None) -> float | None:
    return size / short if isinstance(size, int) and short else None


def _size_comparisons(
    images: PreparedImages,
    expected_size: int | tuple[int, int] | None,
    expected_share: float | None,
    *,
    is_complete: bool,
) -> list[_Comparison]:
    if expected_size is None or (images.size is None and not is_complete):
        return []
    if images.size is None:
        return [("input size", "that of each image", expected_size)]
    comparisons: list[_Comparison] = [("input size", images.size, expected_size)]
    crop_share = _crop_share(images.size, images.short)
    if isinstance(images.size, int) and not _are_similar(crop_share, expected_share):
        shares = (crop_share and round(crop_share, 4), expected_share and round(expected_share, 4))
        comparisons.append(("share of the crop", *shares))
    return comparisons


def _normalisation_comparisons(
    images: PreparedImages, expected: PreparedImages, *, is_complete: bool
) -> list[_Comparison]:
    """Returns the comparisons of mean, standard deviation and channels.

    Without NormalizeImage, a user's own transform may normalise the images.

    Args:
        images: facts of the config.
        expected: facts of the weights.
        is_complete: True if the config has only transforms that declare what they do.
    """
    comparisons: list[_Comparison] = []
    if images.mean is not None or is_complete:
        comparisons += [("mean", images.mean, expected.mean), ("std", images.std, expected.std)]
    if images.channels and expected.channels:
        comparisons.append(("channels", images.channels, expected.channels))
    if images.bits and expected.bits:
        comparisons.append(("bits", images.bits, expected.bits))
    return comparisons


def _has_facts_of_all(transform_ops: Sequence[Mapping[str, Any]]) -> bool:
    """True if every transform is one of this package."""
    components = TRANSFORMS.components()
    names = [name for op in transform_ops for name in op]
    return all(name in components and components[name].__module__.startswith("ppxcls.") for name in names)


def _other_transforms(transform_ops: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(name for op in transform_ops for name in op if name not in _TRANSFORMS_WITH_FACTS)
