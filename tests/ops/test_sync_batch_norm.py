"""The synchronised batch norm for devices without Paddle's kernel, on two equal parts of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest
from paddle import nn

from ppxcls.ops import sync_batch_norm

SHAPE = (8, 4, 32, 32)


@pytest.fixture(autouse=True)
def two_equal_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a sum over processes that of two processes with the same images."""
    monkeypatch.setattr(sync_batch_norm, "_sum_over_processes", lambda values: values + values)


def expected_values(x: np.ndarray, gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns output and input gradient of a batch norm without weights, in float64."""
    axes = (0, 2, 3)
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    scores = (x - mean) / np.sqrt(variance + 1e-5)
    shared = gradient.mean(axes, keepdims=True) + scores * (gradient * scores).mean(axes, keepdims=True)
    return scores, (gradient - shared) / np.sqrt(variance + 1e-5)


@pytest.mark.every_paddle
@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 1e-5), ("float16", 2e-3), ("bfloat16", 1.6e-2)])
def test_half_precision_has_float32_statistics(dtype: str, rounding: float) -> None:
    """A channel's sum, 819,200, is beyond float16, and its squares are too coarse for bfloat16."""
    rng = np.random.default_rng(0)
    x = paddle.to_tensor(rng.normal(100, 8, SHAPE).astype(np.float32)).astype(dtype)
    x.stop_gradient = False
    gradient = paddle.to_tensor(rng.normal(0, 1, SHAPE).astype(np.float32)).astype(dtype)
    layer = nn.BatchNorm2D(4)
    y = sync_batch_norm.synchronized_batch_norm(layer, x)
    y.backward(gradient)
    assert y.dtype == x.dtype == x.grad.dtype
    assert layer.weight.grad.dtype == layer._mean.dtype == paddle.float32
    exact_x, exact_gradient = (value.astype("float32").numpy().astype(np.float64) for value in (x, gradient))
    output, input_gradient = expected_values(exact_x, exact_gradient)
    for received, expected in ((y, output), (x.grad, input_gradient)):
        difference = np.abs(received.astype("float32").numpy() - expected).max()
        assert difference <= rounding * np.abs(expected).max()
    mean = 0.1 * exact_x.mean((0, 2, 3))
    assert np.allclose(layer._mean.numpy(), mean, rtol=1e-5)


@pytest.mark.every_paddle
def test_the_host_reads_no_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read would make the host wait for all queued operators of an accelerator."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a tensor is read")

    layer = nn.BatchNorm2D(4)
    x = paddle.rand(SHAPE)
    x.stop_gradient = False
    for name in ("__float__", "__int__", "__bool__", "item", "numpy", "tolist"):
        monkeypatch.setattr(paddle.Tensor, name, refuse)
    sync_batch_norm.synchronized_batch_norm(layer, x).sum().backward()
