"""Weights for RGB images start networks for other numbers of channels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle
import pytest

import ppxcls
from ppxcls.checkpoints.files import CheckpointError
from ppxcls.models.first_convolution import channel_weights, input_channels
from ppxcls.models.weights import load_weights, save_weights, set_weights


def test_grey_weights_are_sums_and_others_repeat() -> None:
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    grey = np.random.default_rng(1).normal(size=(3, 3))
    assert np.tensordot(channel_weights(weight, 1)[:, 0], grey, 2) == pytest.approx(
        np.tensordot(weight, np.stack([grey] * 3), 3), rel=1e-5
    )
    five = channel_weights(weight, 5)
    for channel, colour in enumerate((0, 1, 2, 0, 1)):
        assert five[:, channel] == pytest.approx(weight[:, colour] * 0.6, rel=1e-6)
    six = channel_weights(weight, 6)  # each colour twice at half its weight: the same outputs
    assert np.tensordot(six, np.stack([grey] * 6), 3) == pytest.approx(
        np.tensordot(weight, np.stack([grey] * 3), 3), rel=1e-5
    )


def test_weights_in_bfloat16_are_fitted_too(small: Callable[..., Path]) -> None:
    """Paddle stores them as the upper halves of float32."""
    state = {
        key: (tensor.numpy().view(np.uint32) >> 16).astype(np.uint16)
        for key, tensor in ppxcls.build_model("SmallNetwork").state_dict().items()
    }
    grey = ppxcls.build_model("SmallNetwork", in_channels=1)
    (text,) = set_weights(grey, state, Path("rgb.pdparams"), keep_trunk=True)
    assert text.startswith("the first convolution, conv.weight, takes 1 channel")
    weight = (state["conv.weight"].astype(np.uint32) << 16).view(np.float32)
    assert grey.conv.weight.numpy()[:, 0] == pytest.approx(weight.sum(axis=1), rel=1e-6, abs=1e-6)


def test_a_training_starts_and_an_evaluation_refuses(small: Callable[..., Path], tmp_path: Path) -> None:
    colours = ppxcls.build_model("SmallNetwork")
    file = tmp_path / "rgb.pdparams"
    save_weights(colours, file)
    grey = ppxcls.build_model("SmallNetwork", in_channels=1)
    assert input_channels(grey) == 1
    with pytest.raises(
        CheckpointError, match=r"conv.weight is \[4, 3, 3, 3\] in the file, \[4, 1, 3, 3\] in"
    ):
        load_weights(grey, file)
    texts = load_weights(grey, file, keep_trunk=True)
    assert texts == [
        "the first convolution, conv.weight, takes 1 channel: its weights are the sums over the colours"
    ]
    pixels = np.random.default_rng(0).normal(size=(2, 1, 16, 16)).astype(np.float32)
    colours.eval()
    grey.eval()
    expected = colours(paddle.to_tensor(np.repeat(pixels, 3, axis=1))).numpy()
    assert grey(paddle.to_tensor(pixels)).numpy() == pytest.approx(expected, abs=1e-6)
    assert load_weights(ppxcls.build_model("SmallNetwork"), file, keep_trunk=True) == []
    save_weights(grey, tmp_path / "grey.pdparams")
    with pytest.raises(CheckpointError, match=r"\[4, 1, 3, 3\] in the file, \[4, 4, 3, 3\] in the model"):
        load_weights(
            ppxcls.build_model("SmallNetwork", in_channels=4), tmp_path / "grey.pdparams", keep_trunk=True
        )
