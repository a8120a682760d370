"""The CPU's depthwise convolution and max pooling against Paddle's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest
from paddle import nn

from ppxcls.ops import cpu
from ppxcls.ops.depthwise import DepthwiseConv2D
from ppxcls.ops.max_pool import MaxPool2D
from ppxcls.system import kernels

GEOMETRIES = [
    # kernel, stride, padding, dilation, (height, width)
    (3, 1, 1, 1, (19, 19)),
    (3, 1, 1, 1, (1, 5)),
    (3, 1, 0, 1, (8, 9)),
    (3, 2, 1, 1, (19, 20)),
    (3, 2, 1, 1, (38, 37)),
    (3, 1, 2, 2, (10, 10)),
    (3, 2, 2, 2, (11, 11)),
    (3, 3, 1, 1, (12, 10)),
    (5, 1, 2, 1, (17, 9)),
    (5, 2, 0, 1, (17, 16)),
    (7, 3, 3, 2, (30, 31)),
    (1, 1, 0, 1, (5, 5)),
    ((3, 5), (2, 1), (1, 2), (1, 1), (13, 14)),
]

pytestmark = pytest.mark.skipif(not kernels.HAS_NUMBA, reason="numba is not installed")


def run(layer: nn.Layer, x: np.ndarray, upstream: np.ndarray | None) -> list[np.ndarray]:
    images = paddle.to_tensor(x, stop_gradient=False)
    out = layer(images)
    out.backward(paddle.ones_like(out) if upstream is None else paddle.to_tensor(upstream))
    return [out.numpy(), images.grad.numpy(), layer.weight.grad.numpy()]


@pytest.mark.every_paddle
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_values_and_gradients(geometry: tuple[Any, ...]) -> None:
    kernel, stride, padding, dilation, size = geometry
    rng = np.random.default_rng(0)
    ours = DepthwiseConv2D(6, kernel, stride=stride, padding=padding, dilation=dilation)
    theirs = nn.Conv2D(6, 6, kernel, stride, padding, dilation, groups=6, bias_attr=False)
    theirs.set_state_dict(ours.state_dict())
    x = rng.normal(0, 1, (3, 6, *size)).astype(np.float32)
    upstream = rng.normal(0, 1, theirs(paddle.to_tensor(x)).shape).astype(np.float32)
    for mine, expected in zip(run(ours, x, upstream), run(theirs, x, upstream), strict=True):
        assert mine.shape == expected.shape
        assert np.abs(mine - expected).max() <= 3e-6 * max(1, np.abs(expected).max())


def test_kernels_are_what_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    original = kernels.run
    monkeypatch.setattr(
        kernels, "run", lambda kernel, *a: (calls.append(kernel.__name__), original(kernel, *a))
    )
    layer = DepthwiseConv2D(4)
    run(layer, np.ones((1, 4, 5, 5), np.float32), None)
    assert calls == ["forward", "backward"]
    calls.clear()
    assert not cpu.applies_to(paddle.ones([1, 4, 5, 5], "float64"), layer.weight)
    paddle.enable_static()
    try:
        assert not cpu.applies_to(paddle.static.data("x", [1, 4, 5, 5]), layer.weight)
    finally:
        paddle.disable_static()


def test_frozen_weight_and_plain_input_cost_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    needed: list[list[bool]] = []
    original = kernels.run

    def noted(kernel: Any, *arguments: Any) -> None:
        if kernel.__name__ == "backward":
            needed.append(list(arguments[-1]))
        original(kernel, *arguments)

    monkeypatch.setattr(kernels, "run", noted)
    layer = DepthwiseConv2D(4)
    layer.weight.stop_gradient = True
    x = paddle.ones([1, 4, 5, 5])
    x.stop_gradient = False
    layer(x).sum().backward()
    assert needed.pop() == [True, False]
    assert x.grad is not None
    assert layer.weight.grad is None
    layer.weight.stop_gradient = False
    layer(paddle.ones([1, 4, 5, 5])).sum().backward()
    assert needed.pop() == [False, True]


def test_nan_and_infinity_pass_through() -> None:
    layer = DepthwiseConv2D(2)
    x = np.ones((1, 2, 6, 6), np.float32)
    x[0, 0, 3, 3], x[0, 1, 2, 2] = np.nan, np.inf
    out = layer(paddle.to_tensor(x)).numpy()
    assert np.isnan(out[0, 0, 2:5, 2:5]).all()
    assert np.isfinite(out[0, 0, 0]).all()
    assert not np.isfinite(out[0, 1, 1:4, 1:4]).any()


def test_not_contiguous_input() -> None:
    layer = DepthwiseConv2D(3)
    x = np.random.default_rng(0).normal(0, 1, (2, 7, 8, 3)).astype(np.float32)
    turned = layer(paddle.to_tensor(x).transpose([0, 3, 1, 2]))
    straight = layer(paddle.to_tensor(np.ascontiguousarray(x.transpose(0, 3, 1, 2))))
    assert np.array_equal(turned.numpy(), straight.numpy())


def test_from_several_threads_at_once() -> None:
    from concurrent.futures import ThreadPoolExecutor

    layer = DepthwiseConv2D(8)
    x = paddle.randn([2, 8, 20, 20])
    expected = layer(x).numpy()
    with ThreadPoolExecutor(4) as pool:
        for out in pool.map(lambda _: layer(x).numpy(), range(40)):
            assert np.array_equal(out, expected)


@pytest.mark.every_paddle
@pytest.mark.parametrize("geometry", [(3, 2, 1), (3, 1, 1), (2, 2, 0), (3, 3, 0), (5, 2, 2)], ids=str)
@pytest.mark.parametrize("size", [(19, 19), (18, 20), (5, 7), (150, 11)])
def test_max_pool(geometry: tuple[int, int, int], size: tuple[int, int]) -> None:
    """The images have few distinct values, so that windows have ties."""
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 3, (3, 4, *size)).astype(np.float32)
    results = []
    for layer in (MaxPool2D(*geometry), nn.MaxPool2D(*geometry)):
        images = paddle.to_tensor(x, stop_gradient=False)
        out = layer(images)
        out.backward(paddle.to_tensor(np.random.default_rng(1).normal(0, 1, out.shape).astype(np.float32)))
        results.append((out.numpy(), images.grad.numpy()))
    for mine, expected in zip(*results, strict=True):
        assert np.array_equal(mine, expected)


def test_windows_that_the_kernels_do_not_number_are_paddles() -> None:
    x = paddle.randn([1, 2, 30, 30])
    x.stop_gradient = False
    MaxPool2D(17, 2, 8)(x).sum().backward()
    mine = x.grad.numpy()
    x.clear_grad()
    nn.MaxPool2D(17, 2, 8)(x).sum().backward()
    np.testing.assert_array_equal(mine, x.grad.numpy())


def test_max_pool_of_infinities_and_nan() -> None:
    """The gradient of a window without a finite value goes to a pixel of the same plane.

    NaN stays NaN.
    """
    x = np.full((1, 2, 5, 5), -np.inf, np.float32)
    x[0, 1, 2, 2] = np.nan
    images = paddle.to_tensor(x, stop_gradient=False)
    out = MaxPool2D(3, 2, 1)(images)
    out.backward(paddle.ones_like(out))
    assert (out.numpy()[0, 0] == -np.inf).all()
    assert np.isnan(out.numpy()[0, 1, 1, 1])
    assert images.grad.numpy().sum((2, 3)).tolist() == [[9, 9]]
    assert images.grad.numpy()[0, 1, 2, 2] == 1
