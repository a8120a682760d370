"""Layers computed as one operator on the CPU, against Paddle's layers one by one."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn

import ppxcls
from ppxcls.models.common_keys import freeze_norms
from ppxcls.ops import cpu, in_order, onednn
from ppxcls.ops.batch_norm import BatchNorm2D, NormReLU, ReLU, relu
from ppxcls.ops.channelwise import Chain
from ppxcls.ops.depthwise import DepthwiseConv2D
from ppxcls.ops.pointwise import PointwiseConv2D
from ppxcls.system import kernels
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(not kernels.HAS_NUMBA, reason="numba is not installed")
CHAINS = list(itertools.product((False, True), (False, True), (False, True), (False, True)))
# Stride, dilation, size.
GEOMETRIES = [
    (1, 1, (9, 7)),
    (2, 1, (9, 8)),
    (1, 2, (6, 11)),
    (2, 2, (1, 5)),
    (1, 1, (96, 90)),
]


def norm_of(channels: int, seed: int, *, is_frozen: bool = False) -> nn.BatchNorm2D:
    rng = np.random.default_rng(seed)
    layer = BatchNorm2D(channels, momentum=0.8, epsilon=1e-3, use_global_stats=is_frozen or None)
    layer.set_state_dict(
        {key: rng.uniform(0.5, 2, channels).astype(np.float32) for key in layer.state_dict()}
    )
    return layer


def by_paddle(chain: Chain, x: paddle.Tensor) -> tuple[paddle.Tensor, list[Any], float]:
    """Computes each layer by itself in float64.

    Returns the output, the running statistics, and the smallest distance of a ReLU's input from zero.
    """
    statistics, distance = [], math.inf
    stages = (
        (chain.norm, chain.is_rectified, chain.depthwise),
        (chain.last_norm, chain.is_last_rectified, None),
    )
    for norm, is_rectified, conv in stages:
        if norm is not None:
            running = [tensor.astype("float64") for tensor in (norm._mean, norm._variance)]
            parameters = [parameter.astype("float64") for parameter in (norm.weight, norm.bias)]
            x = F.batch_norm(
                x,
                *running,
                *parameters,
                training=True,
                momentum=norm._momentum,
                epsilon=norm._epsilon,
                use_global_stats=norm._use_global_stats,
            )
            statistics += running
        if is_rectified:
            distance = min(distance, float(x[x != 0].abs().min()))  # zeros agree on both sides
            x = F.relu(x)
        if conv is not None:
            x = F.conv2d(
                x,
                conv.weight.astype("float64"),
                None,
                conv._stride,
                conv._padding,
                conv._dilation,
                x.shape[1],
            )
    return x, [tensor.numpy() for tensor in statistics], distance


def gradients(y: paddle.Tensor, x: paddle.Tensor, chain: Chain, upstream: Any) -> list[Any]:
    for tensor in chain.parameters():
        tensor.clear_grad()
    (y * paddle.to_tensor(upstream.astype(y.numpy().dtype))).sum().backward()
    return [x.grad.numpy(), *[parameter.grad.numpy() for parameter in chain.parameters()]]


@pytest.mark.every_paddle
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("layouts", [(False, False), (True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize("frozen", [(False, False), (True, True), (True, False)], ids=str)
def test_a_chain_is_its_layers(geometry: Any, layouts: tuple[bool, bool], frozen: tuple[bool, bool]) -> None:
    stride, dilation, size = geometry
    paddle.seed(0)
    rng = np.random.default_rng(0)
    for has_norm, is_rectified, has_last, is_last_rectified in CHAINS:
        norms = (
            norm_of(5, 1, is_frozen=frozen[0]) if has_norm else None,
            norm_of(5, 2, is_frozen=frozen[1]) if has_last else None,
        )
        conv = DepthwiseConv2D(5, 3, stride=stride, padding=dilation, dilation=dilation)
        chain = Chain(
            norms[0],
            is_rectified=is_rectified,
            depthwise=conv,
            last_norm=norms[1],
            is_last_rectified=is_last_rectified,
            layouts=layouts,
        )
        distance = 0.0
        while distance < 1e-5:  # in float32 the input may be on the other side of zero
            images = rng.normal(0.3, 1, (3, 5, *size)).astype(np.float32)
            exact = paddle.to_tensor(images.astype(np.float64), stop_gradient=False)
            expected, running, distance = by_paddle(chain, exact)
        upstream = rng.normal(0, 1, expected.shape)
        wanted = [expected.numpy(), *gradients(expected, exact, chain, upstream), *running]

        x = paddle.to_tensor(images.swapaxes(0, 1).copy() if layouts[0] else images, stop_gradient=False)
        y = chain(x)
        own = gradients(y, x, chain, upstream.swapaxes(0, 1) if layouts[1] else upstream)
        statistics = [
            tensor.numpy() for norm in norms if norm is not None for tensor in (norm._mean, norm._variance)
        ]
        found = [
            y.numpy().swapaxes(0, 1) if layouts[1] else y.numpy(),
            own[0].swapaxes(0, 1) if layouts[0] else own[0],
        ]
        # Rounding error of gradients that are sums over a channel.
        sums = 1e-7 * float(np.abs(upstream).sum()) / 5
        for mine, theirs in zip([*found, *own[1:], *statistics], wanted, strict=True):
            np.testing.assert_allclose(
                mine, theirs, atol=max(2e-5 * max(1.0, float(np.abs(theirs).max())), sums)
            )


def test_the_number_of_threads_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(0, 1, (3, 9, 21, 22)).astype(np.float32)
    results = []
    for threads in ("1", "2", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        paddle.seed(0)
        chain = Chain(
            norm_of(9, 1),
            is_rectified=True,
            depthwise=DepthwiseConv2D(9),
            last_norm=norm_of(9, 2),
            is_last_rectified=True,
        )
        x = paddle.to_tensor(images, stop_gradient=False)
        y = chain(x)
        results.append([y.numpy(), *gradients(y, x, chain, images)])
    for first, *others in zip(*results, strict=True):
        for other in others:
            np.testing.assert_array_equal(first, other)


def test_a_kernel_from_the_cache_gives_the_same_bits(tmp_path: Path) -> None:
    """A cached kernel must give the same bits as a newly compiled one.

    Otherwise a resumed run would differ from an uninterrupted one.
    """
    code = """
import ppxcls, paddle, hashlib
from ppxcls.ops.batch_norm import BatchNorm2D
from ppxcls.ops.channelwise import Chain
from ppxcls.ops.depthwise import DepthwiseConv2D
paddle.seed(0)
chain = Chain(BatchNorm2D(16), is_rectified=True, depthwise=DepthwiseConv2D(16), last_norm=BatchNorm2D(16), is_last_rectified=True)
x = paddle.randn([6, 16, 19, 19])
x.stop_gradient = False
y = chain(x)
y.backward(paddle.randn(y.shape))
print(hashlib.sha256(b"".join(t.numpy().tobytes() for t in (y, x.grad, *(p.grad for p in chain.parameters())))).hexdigest())
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        for _ in range(2)
    ]
    assert any(tmp_path.rglob("*.nbc"))
    assert runs[0].stdout == runs[1].stdout


def operators(monkeypatch: pytest.MonkeyPatch, layers: list[Any], x: paddle.Tensor) -> list[str]:
    """Returns the names of the kernels and products that a forward pass runs."""
    calls: list[str] = []
    run, multiply = kernels.run, onednn.multiply
    monkeypatch.setattr(kernels, "run", lambda kernel, *a: (calls.append(kernel.__name__), run(kernel, *a)))
    monkeypatch.setattr(onednn, "multiply", lambda *a: (calls.append("product"), multiply(*a)))
    in_order.in_order(layers, x)
    return calls


def separable() -> list[Any]:
    first = nn.Sequential(PointwiseConv2D(4, 6), BatchNorm2D(6))
    return [
        relu,
        first,
        relu,
        nn.Sequential(DepthwiseConv2D(6), NormReLU(6), PointwiseConv2D(6, 5)),
        BatchNorm2D(5),
        ReLU(),
    ]


@pytest.mark.skipif(not onednn.is_available(), reason="no oneDNN")
def test_layers_between_products_are_one_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    assert operators(monkeypatch, separable(), paddle.randn([2, 4, 8, 8])) == [
        "forward",
        "product",
        "forward",
        "product",
        "forward",
    ]


@pytest.mark.parametrize("watched", ["container", "norm", "depthwise"])
def test_hooks_see_their_layers(watched: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = separable()
    seen: list[list[int]] = []
    layer = {"container": layers[1], "norm": layers[1][1], "depthwise": layers[3][0]}[watched]
    layer.register_forward_post_hook(lambda layer, inputs, output: seen.append(output.shape))
    x = paddle.randn([2, 4, 8, 8])
    state = [
        {key: value.numpy() for key, value in part.state_dict().items()}
        for part in layers
        if isinstance(part, nn.Layer)
    ]
    y = in_order.in_order(layers, x)
    assert seen == [[2, 6, 8, 8]]
    for part, values in zip([part for part in layers if isinstance(part, nn.Layer)], state, strict=True):
        part.set_state_dict(values)
    expected = x
    for part in layers:
        expected = part(expected)
    np.testing.assert_allclose(y.numpy(), expected.numpy(), atol=1e-5)


def test_frozen_batch_norms_use_their_own_statistics() -> None:
    layers = separable()
    norm = layers[1][1]
    norm._use_global_stats = True
    before = [tensor.numpy() for tensor in (norm._mean, norm._variance)]
    y = in_order.in_order(layers, paddle.randn([2, 4, 8, 8]))
    assert y.shape == [2, 5, 8, 8]
    for tensor, values in zip((norm._mean, norm._variance), before, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), values)


@pytest.mark.parametrize("is_frozen", [False, True])
@pytest.mark.parametrize(
    "name", ["Xception41", "xception41", "xception41p", "legacy_xception", "Xception41_deeplab"]
)
def test_networks_train_as_layer_by_layer(
    name: str, is_frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(fused: bool) -> tuple[float, dict[str, Any], dict[str, Any]]:
        paddle.seed(0)
        model = ppxcls.build_model(name, class_num=10)
        model.train()
        if is_frozen:
            freeze_norms(model)
        rng = np.random.default_rng(0)
        for value in model.state_dict().values():
            if value.ndim == 1:
                value.set_value(rng.uniform(0.5, 1.5, value.shape).astype(np.float32))
        if not fused:
            monkeypatch.setattr(cpu, "applies_to", lambda *_: False)
        images = paddle.to_tensor(rng.normal(0, 1, (2, 3, 75, 75)).astype(np.float32))
        loss = F.cross_entropy(model(images), paddle.to_tensor([1, 2]))
        loss.backward()
        grads = {key: p.grad.numpy() for key, p in model.named_parameters() if p.grad is not None}
        return float(loss), grads, {key: value.numpy() for key, value in model.state_dict().items()}

    mine, theirs = train(True), train(False)
    assert mine[0] == pytest.approx(theirs[0], rel=1e-3)
    assert mine[1].keys() == theirs[1].keys()
    for found, expected in ((mine[2], theirs[2]), (mine[1], theirs[1])):
        for key, value in expected.items():
            assert np.linalg.norm(found[key] - value) <= 0.02 * np.linalg.norm(value) + 1e-5, key


def one_by_one(layers: list[Any], x: paddle.Tensor) -> paddle.Tensor:
    for layer in layers:
        x = layer(x)
    return x


class Cast(nn.Layer):
    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return x.astype("float64")


@pytest.mark.every_paddle
def test_what_does_not_fit_is_called_as_usual() -> None:
    act, norm = ReLU(), BatchNorm2D(4)
    x = paddle.randn([2, 4, 6, 6])
    for layers in (
        [nn.Sequential(PointwiseConv2D(4, 4), act, PointwiseConv2D(4, 4), act)],  # a layer that occurs twice
        [Cast(), ReLU()],
        [ReLU(), nn.Flatten(), ReLU()],
        [nn.Sequential()],
        [],
        [DepthwiseConv2D(4, 3, stride=1, padding=4), ReLU()],  # more padding than the kernels have
        [in_order.Stack(PointwiseConv2D(4, 3, 2)), relu],
        [nn.BatchNorm2D(4, weight_attr=False, bias_attr=False), ReLU()],
        [BatchNorm2D(4, weight_attr=False, bias_attr=False), ReLU()],
    ):
        found, expected = in_order.in_order(layers, x), one_by_one(layers, x)
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-5)
    in_order.in_order([norm, DepthwiseConv2D(4), norm], x)
    once = norm._mean.numpy().copy()
    norm._mean.set_value(np.zeros(4, np.float32))
    in_order.in_order([norm, DepthwiseConv2D(4)], x)
    assert np.abs(once - norm._mean.numpy()).max() > 1e-6  # the statistics include both inputs


@pytest.mark.parametrize(
    "layer",
    [BatchNorm2D(3), DepthwiseConv2D(3), PointwiseConv2D(3, 4), PointwiseConv2D(3, 4, 2), NormReLU(3)],
)
def test_another_number_of_channels_is_an_error(layer: nn.Layer) -> None:
    with pytest.raises(ValueError, match="expected an input of 3 channels, received 64"):
        layer(paddle.randn([2, 64, 5, 5]))


@pytest.mark.every_paddle
@pytest.mark.parametrize("layer", [ReLU(), BatchNorm2D(3), DepthwiseConv2D(3)])
def test_a_change_in_place_before_the_backward_pass_is_an_error(layer: nn.Layer) -> None:
    x = paddle.randn([2, 3, 5, 5])
    x.stop_gradient = False
    z = x * 1.0
    y = layer(z)
    z.add_(paddle.ones([1]))
    with pytest.raises((OSError, RuntimeError), match="modified by an inplace operation"):  # Paddle wraps it
        y.sum().backward()
