"""Dense convolutions by oneDNN against Paddle's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest
from paddle import nn

from ppxcls.ops import convolution, onednn, onednn_convolution
from ppxcls.ops.convolution import DenseConv2D, to_bfloat16

pytestmark = pytest.mark.skipif(not onednn.is_available(), reason="no oneDNN")
# images, input channels, output channels, kernel, stride, padding, height, width
SHAPES = [
    (2, 3, 32, 3, 2, 1, 37, 38),
    (2, 32, 64, 3, 1, 1, 19, 20),
    (3, 3, 32, 3, 2, 0, 35, 35),
    (1, 5, 7, 5, 3, 2, 17, 13),
]


def run(layer: nn.Layer, images: Any) -> list[Any]:
    x = paddle.to_tensor(images, stop_gradient=False)
    y = layer(x)
    y.backward(paddle.to_tensor(np.random.default_rng(1).normal(0, 1, y.shape).astype(np.float32)))
    return [y.numpy(), x.grad.numpy(), layer.weight.grad.numpy()]


def differences(shape: tuple[int, ...], in_bfloat16: bool = False) -> list[float]:
    images, inputs, outputs, kernel, stride, padding, *size = shape
    ours = DenseConv2D(inputs, outputs, kernel_size=kernel, stride=stride, padding=padding)
    theirs = nn.Conv2D(inputs, outputs, kernel, stride, padding, bias_attr=False)
    theirs.set_state_dict(ours.state_dict())
    if in_bfloat16:
        assert to_bfloat16(nn.Sequential(ours)) == 1
    x = np.random.default_rng(0).normal(0, 1, (images, inputs, *size)).astype(np.float32)
    pairs = zip(run(ours, x), run(theirs, x), strict=True)
    return [float(np.abs(mine - expected).max() / np.abs(expected).max()) for mine, expected in pairs]


@pytest.mark.every_paddle
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_paddles(shape: tuple[int, ...]) -> None:
    assert max(differences(shape)) < 3e-6


@pytest.mark.skipif(not onednn.has_bfloat16(), reason="no bfloat16")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bfloat16_rounds_the_factors_only(shape: tuple[int, ...]) -> None:
    assert 1e-5 < max(differences(shape, in_bfloat16=True)) < 2**-7


def test_the_same_input_gives_the_same_bits() -> None:
    layer = DenseConv2D(3, 32, kernel_size=3, stride=2, padding=1)
    images = np.random.default_rng(0).normal(0, 1, (2, 3, 41, 41)).astype(np.float32)
    first = run(layer, images)
    layer.clear_gradients()
    for one, two in zip(first, run(layer, images), strict=True):
        np.testing.assert_array_equal(one, two)


def test_it_is_used_in_training_only_and_for_what_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    plain = onednn_convolution.convolve_dense
    monkeypatch.setattr(convolution, "convolve_dense", lambda what, *a: (seen.append(what), plain(what, *a)))
    layer = DenseConv2D(3, 4, kernel_size=3)
    x = paddle.randn([1, 3, 8, 8])
    layer(x).sum().backward()  # images need no gradient
    assert seen == ["output", "kernel"]
    seen.clear()
    layer.weight.stop_gradient, x.stop_gradient = True, False
    layer(x).sum().backward()
    assert seen == ["output", "input"]
    seen.clear()
    layer.eval()
    layer(x)
    layer.train()
    layer.to(dtype="float64")
    layer(x.astype("float64"))
    assert seen == []


def test_sizes_of_memory_have_64_bits() -> None:
    shapes = (777, 32, 149, 149), (64, 32, 3, 3), (777, 64, 147, 147)
    compiled = onednn_convolution._CompiledConvolution(
        "output", shapes, onednn_convolution.Sides((1, 1), (0, 0)), onednn.FLOAT32
    )
    assert compiled._bytes[2] >= 4 * 777 * 64 * 147 * 147


def test_other_geometries_are_paddles() -> None:
    layer = DenseConv2D(3, 4, kernel_size=(3, 3), stride=(2, 1), padding=(1, 0))
    x = paddle.randn([1, 3, 9, 9])
    np.testing.assert_allclose(layer(x).numpy(), nn.Conv2D.forward(layer, x).numpy(), atol=1e-5)
    layer._dilation = [2, 2]
    np.testing.assert_array_equal(layer(x).numpy(), nn.Conv2D.forward(layer, x).numpy())
    with pytest.raises(ValueError, match="expected an input of 3 channels, received 1"):
        DenseConv2D(3, 4, kernel_size=3)(x[:, :1])
