"""Compares ``Arch.in_channels`` with the images that the transforms give."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ppxcls.config.registry import Block, registry
from ppxcls.config.sections import Config

_RGB_CHANNELS = 3
_SAMPLE_PIXELS = 512  # sides of the image that a user's own transforms are tried on


def check_image_channels(config: Config) -> None:
    """Compares the channels that a network of this package takes with those of the prepared images.

    A user's own network or data set is not checked. A user's own transforms are tried on one image, unless
    the network takes 3 channels.

    Raises:
        ConfigError: the transforms of a list do not fit each other, or the network takes another number of
            channels than the images have.
    """
    expected_count = config.Arch.get("in_channels", _RGB_CHANNELS)
    for key, transforms in _transform_lists(config).items():
        count = registry("transform").check_list(transforms)
        if not _is_of_package(config.Arch):
            continue
        counts: tuple[int, ...] | None = None if count is None else (count,)
        if counts is None and expected_count != _RGB_CHANNELS:
            counts = _tried_counts(transforms)
        if counts is not None and expected_count not in counts:
            raise config.where("Arch.in_channels").error(
                f"expected {counts[0]}, because {key} gives images with {_channels_text(counts[0])} "
                f"(DecodeImage: channels); received {expected_count}"
            )


def _channels_text(count: int) -> str:
    return "1 channel" if count == 1 else f"{count} channels"


def _transform_lists(config: Config) -> dict[str, Sequence[Block]]:
    """Returns the lists of transforms by their keys."""
    lists = {}
    for mode in ("Train", "Eval"):
        section = getattr(config.DataLoader, mode) if config.DataLoader else None
        if section and _is_of_package(section.dataset):
            lists[f"DataLoader.{mode}.dataset.transform_ops"] = section.dataset.get("transform_ops") or []
    if config.Infer and config.Infer.transforms:
        lists["Infer.transforms"] = config.Infer.transforms
    return lists


def _is_of_package(block: Block) -> bool:
    """True if a component is defined in this package, and not by the user."""
    return registry(block.kind).components()[block.name].__module__.startswith("ppxcls.")


def _tried_counts(blocks: Sequence[Block]) -> tuple[int, ...] | None:
    """Returns the number of channels of an image after some transforms.

    Returns:
        One number. Two for a user's own transforms, because images may be [H, W, C] or [C, H, W]. None if it
        is unknown.
    """
    image: Any = _sample_image()
    try:
        for block in blocks:
            image = registry("transform").build(block)(image, np.random.default_rng(0))
        shape = np.asarray(image).shape
    except Exception:  # a user's code, which may not take this image; training reports its own errors
        return None
    if len(shape) == 2:
        return (1,)
    return (shape[0], shape[-1]) if shape[0] < shape[-1] else (shape[-1], shape[0])


def _sample_image() -> bytes:
    """Returns a grey PNG as encoded bytes."""
    header = struct.pack(">IIBBBBB", _SAMPLE_PIXELS, _SAMPLE_PIXELS, 8, 2, 0, 0, 0)  # 8 bits, RGB
    rows = (b"\0" + b"\x80" * 3 * _SAMPLE_PIXELS) * _SAMPLE_PIXELS
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
