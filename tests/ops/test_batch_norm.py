"""The CPU's batch norm and ReLU against Paddle's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn

from ppxcls.ops.batch_norm import BatchNorm2D, ReLU, relu
from ppxcls.system import kernels

pytestmark = pytest.mark.skipif(not kernels.HAS_NUMBA, reason="numba is not installed")
SHAPES = [(4, 7, 19, 18), (1, 3, 5, 5), (32, 16, 3, 3), (2, 1, 1, 2), (3, 5, 1, 1), (2, 64, 37, 37)]


def run(layer: nn.Layer, images: Any, upstream: Any) -> dict[str, Any]:
    x = paddle.to_tensor(images, stop_gradient=False)
    y = layer(x)
    y.backward(paddle.to_tensor(upstream))
    found = {
        "y": y,
        "x": x.grad,
        "weight": layer.weight.grad,
        "bias": layer.bias.grad,
        "mean": layer._mean,
        "var": layer._variance,
    }
    return {name: tensor.numpy() for name, tensor in found.items()}


def pair(channels: int, **keys: Any) -> tuple[nn.Layer, nn.Layer]:
    rng = np.random.default_rng(1)
    layers = BatchNorm2D(channels, **keys), nn.BatchNorm2D(channels, **keys)
    state = {
        name: rng.uniform(0.5, 2, tensor.shape).astype(np.float32)
        for name, tensor in layers[0].state_dict().items()
    }
    for layer in layers:
        layer.set_state_dict(state)
    assert list(layers[0].state_dict()) == list(layers[1].state_dict())
    return layers


@pytest.mark.every_paddle
@pytest.mark.parametrize("is_frozen", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_gradients_and_statistics_are_paddles(shape: tuple[int, ...], is_frozen: bool) -> None:
    rng = np.random.default_rng(0)
    images, upstream = (rng.normal(3, 2, shape).astype(np.float32) for _ in range(2))
    ours, paddles = pair(shape[1], momentum=0.8, epsilon=1e-3, use_global_stats=is_frozen or None)
    before = ours._mean.numpy(), ours._variance.numpy()
    found, expected = run(ours, images, upstream), run(paddles, images, upstream)
    if is_frozen:
        for name, values in zip(("mean", "var"), before, strict=True):
            np.testing.assert_array_equal(found[name], values)
    for name, value in expected.items():
        scale = max(1.0, float(np.abs(value).max()))
        np.testing.assert_allclose(found[name], value, atol=3e-5 * scale, err_msg=name)


def test_against_the_formula_in_float64() -> None:
    """The mean is large compared with the deviation.

    A sum of squares would lose all digits.
    """
    rng = np.random.default_rng(0)
    images = (1000 + rng.normal(0, 0.1, (4, 3, 40, 41))).astype(np.float32)
    layer = BatchNorm2D(3)
    y = layer(paddle.to_tensor(images)).numpy()
    exact = images.astype(np.float64)
    mean, variance = exact.mean((0, 2, 3), keepdims=True), exact.var((0, 2, 3), keepdims=True)
    np.testing.assert_allclose(y, (exact - mean) / np.sqrt(variance + 1e-5), atol=2e-3)
    np.testing.assert_allclose(layer._variance.numpy(), 0.9 + 0.1 * variance.ravel(), rtol=1e-4)


def test_evaluation_and_frozen_parameters_are_paddles() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(0, 1, (2, 4, 5, 5)).astype(np.float32)
    ours, paddles = pair(4)
    for layer in (ours, paddles):
        layer.eval()
    np.testing.assert_array_equal(
        ours(paddle.to_tensor(images)).numpy(), paddles(paddle.to_tensor(images)).numpy()
    )
    ours, _ = pair(4)
    ours.weight.stop_gradient = True
    x = paddle.to_tensor(images, stop_gradient=False)
    ours(x).sum().backward()
    assert ours.weight.grad is None
    assert ours.bias.grad is not None
    assert x.grad is not None


def test_the_number_of_threads_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    images, upstream = (rng.normal(0, 1, (3, 9, 21, 22)).astype(np.float32) for _ in range(2))
    results = []
    for threads in ("1", "2", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        results.append(run(pair(9)[0], images, upstream))
    for name, first in results[0].items():
        for other in results[1:]:
            np.testing.assert_array_equal(first, other[name])


def test_an_input_that_is_not_contiguous() -> None:
    rng = np.random.default_rng(0)
    images = paddle.to_tensor(rng.normal(0, 1, (2, 5, 6, 4)).astype(np.float32))
    ours, paddles = pair(4)
    turned = images.transpose([0, 3, 1, 2])
    np.testing.assert_allclose(ours(turned).numpy(), paddles(turned).numpy(), atol=1e-5)


def test_not_a_number_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.zeros((2, 3, 4, 4), np.float32)
    images[0, 1, 2, 3] = np.nan
    y = BatchNorm2D(3)(paddle.to_tensor(images)).numpy()
    assert np.isnan(y[:, 1]).all()
    assert np.isfinite(y[:, [0, 2]]).all()
    assert np.isnan(relu(paddle.to_tensor(images)).numpy()).sum() == 1


@pytest.mark.parametrize("shape", [*SHAPES, (3, 10)])
def test_relu_is_paddles(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    images, upstream = (rng.normal(0, 1, shape).astype(np.float32) for _ in range(2))
    images.flat[0] = 0.0
    results = []
    for function in (relu, F.relu, ReLU()):
        x = paddle.to_tensor(images, stop_gradient=False)
        y = function(x)
        y.backward(paddle.to_tensor(upstream))
        results.append((y.numpy(), x.grad.numpy()))
    for found in results[1:]:
        np.testing.assert_array_equal(results[0][0], found[0])
        np.testing.assert_array_equal(results[0][1], found[1])
    assert np.array_equal(
        relu(paddle.to_tensor(images[0, 0])).numpy(), F.relu(paddle.to_tensor(images[0, 0])).numpy()
    )


def test_other_types_run_paddles_operators() -> None:
    x = paddle.to_tensor(np.random.default_rng(0).normal(0, 1, (2, 3, 4, 4)))
    assert relu(x).dtype == paddle.float64
    layer = BatchNorm2D(3).to(dtype="float64")
    assert layer(x).dtype == paddle.float64
