"""``Arch.in_channels`` must match the images that the transforms give, for every verb."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ppxcls
from tests.conftest import run_tool

PLUGIN = """
import cv2
import numpy as np
import ppxcls

@ppxcls.TRANSFORMS.register
class GreyImage(ppxcls.Transform):
    def __call__(self, image, rng):
        return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:, :, None]

@ppxcls.TRANSFORMS.register
class FourChannels(ppxcls.Transform):
    def __call__(self, image, rng):
        return np.concatenate([image, image[:, :, :1]], axis=2).transpose(2, 0, 1)

@ppxcls.TRANSFORMS.register
class Particular(ppxcls.Transform):
    def __call__(self, image, rng):
        raise ValueError("only images of the own data")
"""


def decoding(channels: int) -> list[Any]:
    normalize = {"NormalizeImage": {"mean": [0.5] * channels, "std": [0.5] * channels, "order": ""}}
    return [{"DecodeImage": {"channels": channels}}, {"RandCropImage": {"size": 71}}, normalize]


@pytest.mark.parametrize("channels", [1, 4])
def test_the_network_and_the_images_agree(channels: int, write_config: Callable[..., Path]) -> None:
    lists = {f"DataLoader.{mode}.dataset.transform_ops": decoding(channels) for mode in ("Train", "Eval")}
    file = write_config(**lists)
    assert ppxcls.load_config(file, [f"Arch.in_channels={channels}"]).Arch.in_channels == channels
    with pytest.raises(ppxcls.ConfigError, match=rf"Arch.in_channels: expected {channels}, .*; received 3$"):
        ppxcls.load_config(file)
    lists["DataLoader.Eval.dataset.transform_ops"] = decoding(3)
    with pytest.raises(
        ppxcls.ConfigError, match=r"expected 3, because DataLoader.Eval.dataset.transform_ops"
    ):
        ppxcls.load_config(write_config(**lists), [f"Arch.in_channels={channels}"])


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_another_number_of_channels_is_an_error_of_the_config(
    channels: int, write_config: Callable[..., Path]
) -> None:
    message = (
        rf"Arch.in_channels: expected 3, because DataLoader.Train.dataset.transform_ops gives images "
        rf"with 3 channels \(DecodeImage: channels\); received {channels}$"
    )
    with pytest.raises(ppxcls.ConfigError, match=message) as caught:
        ppxcls.load_config(write_config(), [f"Arch.in_channels={channels}"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [0, -1, "three", 1.5])
def test_no_number_of_channels(value: object, write_config: Callable[..., Path]) -> None:
    with pytest.raises(ppxcls.ConfigError, match="Arch.in_channels: expected an integer at least 1"):
        ppxcls.load_config(write_config(), [f"Arch.in_channels={value}"])


@pytest.mark.parametrize(
    "name", ["Xception41", "Xception41_deeplab", "xception65", "legacy_xception", "Xception"]
)
def test_every_family(name: str) -> None:
    ops = [{"DecodeImage": {}}, {"ResizeImage": {"size": 71}}]
    settings: dict[str, Any] = {"Arch": {"name": name, "in_channels": 1}, "Infer": {"transforms": ops}}
    with pytest.raises(ppxcls.ConfigError, match=r"Arch.in_channels: expected 3, because Infer.transforms"):
        ppxcls.load_config(settings)
    settings["Arch"]["in_channels"] = 3
    assert ppxcls.load_config(settings).Arch.in_channels == 3


@pytest.mark.parametrize(
    ("transform", "channels", "is_right"),
    [
        ("GreyImage", 1, True),
        ("GreyImage", 4, False),
        ("FourChannels", 4, True),
        ("FourChannels", 1, False),
        ("Particular", 5, True),
    ],
)
def test_a_user_s_own_transforms_are_tried(
    transform: str, channels: int, is_right: bool, tmp_path: Path
) -> None:
    names = ppxcls.TRANSFORMS.registered()
    plugin = tmp_path / f"channels_{transform}_{channels}.py"
    plugin.write_text(PLUGIN)
    settings: dict[str, Any] = {
        "Global": {"plugins": [str(plugin)]},
        "Arch": {"name": "Xception41", "in_channels": channels},
        "Infer": {"transforms": ["DecodeImage", {"ResizeImage": {"size": 71}}, transform]},
    }
    try:
        if is_right:
            assert ppxcls.load_config(settings).Arch.in_channels == channels
            return
        with pytest.raises(
            ppxcls.ConfigError, match=rf"Arch.in_channels: expected \d, .*received {channels}"
        ):
            ppxcls.load_config(settings)
    finally:
        ppxcls.TRANSFORMS.forget(ppxcls.TRANSFORMS.registered() - names)


@pytest.mark.parametrize("verb", ["train", "eval", "infer", "export", "check"])
def test_every_verb_says_it_in_one_line(verb: str, write_config: Callable[..., Path]) -> None:
    result = run_tool(verb, "-c", str(write_config()), "-o", "Arch.in_channels=1")
    assert result.returncode == 2
    assert result.stderr.startswith("config error: -o Arch.in_channels=1: Arch.in_channels: expected 3, ")
    assert result.stderr.count("\n") == 1
