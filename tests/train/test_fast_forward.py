"""Forward passes over many inputs, compiled for the CPU."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import nn

from ppxcls.models.legacy_xception import Block, SamePool
from ppxcls.ops import onednn
from ppxcls.ops.batch_norm import BatchNorm2D
from ppxcls.ops.convolution import DenseConv2D
from ppxcls.train import fast_forward
from ppxcls.train.fast_forward import FastForward
from ppxcls.train.loss_watch import TrainingError

IMAGES = np.random.default_rng(0).normal(size=(11, 3, 71, 80)).astype(np.float32)
SHAPE = (3, 71, 80)
needs_bfloat16 = pytest.mark.skipif(
    not onednn.has_bfloat16(), reason="the processor does not multiply bfloat16"
)


@pytest.fixture
def _is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_forward, "_MIN_MULTIPLICATIONS_PER_THREAD", 0)


@pytest.fixture(scope="module")
def network() -> nn.Layer:
    """The first layers of a network, because compiling a whole one takes seconds."""
    paddle.seed(3)
    return nn.Sequential(
        DenseConv2D(3, 8, kernel_size=3, stride=2), BatchNorm2D(8), Block((8, 16, 16), SamePool())
    )


def own(layer: nn.Layer, inputs: np.ndarray) -> np.ndarray:
    layer.eval()
    with paddle.no_grad():
        return layer(paddle.to_tensor(inputs)).numpy()


def function(layer: nn.Layer, shape: tuple[int, ...] = SHAPE, count: int = 1000) -> FastForward:
    return fast_forward.FastForward(layer, shape, count=count, at_once=4)


def relative_error(received: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(received - expected) / np.linalg.norm(expected))


@pytest.mark.usefixtures("_is_worth_it")
@pytest.mark.parametrize(
    ("kind", "largest"), [pytest.param("bfloat16", 0.05, marks=needs_bfloat16), ("float32", 1e-5)]
)
def test_a_compiled_layer_is_close_to_the_layer(
    kind: str, largest: float, network: nn.Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are computed in runs of 4; the last run is not full."""
    monkeypatch.setattr(onednn, "has_bfloat16", lambda: kind == "bfloat16")
    expected = own(network, IMAGES)
    forward = function(network)
    received = forward(IMAGES)
    assert forward.kind == kind
    assert received.dtype == np.float32
    assert 0 < relative_error(received, expected) <= largest
    assert forward.error <= largest
    # The same numbers, in whatever batch an image is.
    assert (forward(IMAGES[9:]) == received[9:]).all()
    assert (forward(IMAGES[5:8]) == received[5:8]).all()
    assert (function(network)(IMAGES) == received).all()


def test_few_inputs_are_not_compiled(network: nn.Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_forward, "write_program", lambda *_: pytest.fail("compiled for a few images"))
    forward = function(network, count=11)
    assert (forward(IMAGES[:3]) == own(network, IMAGES[:3])).all()
    assert forward.kind == "not compiled"


def test_multiplications_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer of 3 x 4 x 9 multiplications for each of 2 x 3 pixels, and 24 x 2 for the classifier."""
    compiled: list[Any] = []
    monkeypatch.setattr(FastForward, "_compile", lambda *arguments: compiled.append(arguments))
    monkeypatch.setattr(fast_forward, "thread_count", lambda: 2)
    monkeypatch.setattr(fast_forward, "_MIN_MULTIPLICATIONS_PER_THREAD", (108 * 6 + 48) * 50)
    layer = nn.Sequential(nn.Conv2D(3, 4, 3), nn.Flatten(), nn.Linear(24, 2))
    inputs = np.ones((10, 3, 4, 5), np.float32)
    function(layer, (3, 4, 5), count=99)(inputs)
    assert not compiled
    function(layer, (3, 4, 5), count=100)(inputs)
    assert len(compiled) == 1
    assert not any(part._forward_post_hooks for part in layer.sublayers())


@pytest.mark.usefixtures("_is_worth_it")
def test_a_program_with_large_errors_is_not_used(network: nn.Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "has_bfloat16", lambda: True)
    tolerances = {"bfloat16": 0.0, "float32": 1e-4}
    monkeypatch.setattr(fast_forward, "_TOLERANCES", tolerances)
    forward = function(network)
    forward(IMAGES[:2])
    assert forward.kind == "float32"
    tolerances["float32"] = 0.0
    forward = function(network)
    assert (forward(IMAGES[:2]) == own(network, IMAGES[:2])).all()
    assert (forward.kind, forward.error) == ("not compiled", 0.0)


class Untraceable(nn.Layer):
    """A layer that can't be traced."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        if not paddle.in_dynamic_mode():
            raise TypeError("it wants to see numbers")
        return x.mean((2, 3))


@pytest.mark.usefixtures("_is_worth_it")
def test_a_layer_that_cant_be_compiled_is_used_as_it_is() -> None:
    forward = function(Untraceable())
    assert (forward(IMAGES) == own(Untraceable(), IMAGES)).all()
    assert forward.kind == "not compiled"


@pytest.mark.usefixtures("_is_worth_it")
def test_other_devices_compile_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_forward.paddle, "get_device", lambda: "gpu:0")
    forward = function(nn.Flatten(), count=10**9)
    assert forward(IMAGES).shape == (11, math.prod(SHAPE))
    assert forward.kind == "not compiled"


def test_wrong_inputs_and_outputs_that_are_not_finite() -> None:
    layer = nn.Linear(4, 2)
    forward = function(layer, (4,))
    with pytest.raises(ValueError, match=r"expected inputs \[N, 4\], received \[3, 5\]"):
        forward(np.ones((3, 5), np.float32))
    layer.weight.set_value(paddle.full([4, 2], math.nan))
    with pytest.raises(TrainingError, match="not finite"):
        forward(np.ones((3, 4), np.float32))


@pytest.mark.usefixtures("_is_worth_it")
def test_weights_that_are_not_finite_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_forward, "write_program", lambda *_: pytest.fail("compiled"))
    layer = nn.Sequential(nn.Conv2D(3, 2, 3), nn.Flatten())
    layer[0].weight.set_value(paddle.full([2, 3, 3, 3], math.inf))
    with pytest.raises(TrainingError, match="not finite"):
        function(layer)(IMAGES)
