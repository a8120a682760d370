"""1x1 convolutions on the CPU against Paddle's own, values and gradients; and AMP in bfloat16."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn

import ppxcls
from ppxcls.ops import onednn, pointwise
from ppxcls.ops.convolution import DenseConv2D, to_bfloat16
from ppxcls.ops.pointwise import PointwiseConv2D
from ppxcls.system import kernels
from ppxcls.train import precision
from tests.conftest import ROOT

needs_onednn = pytest.mark.skipif(not onednn.is_available(), reason="this Paddle brings no oneDNN 3")
needs_bfloat16 = pytest.mark.skipif(
    not onednn.has_bfloat16(), reason="this processor has no bfloat16 products"
)

SHAPES = [
    (3, 7, 5, 9, 1),
    (3, 7, 5, 9, 2),
    (2, 8, 6, 25, 1),
    (2, 8, 6, 25, 2),
    (1, 16, 4, 41, 2),
    (5, 3, 9, 1, 1),
]


def pair(inputs: int, outputs: int, stride: int) -> tuple[nn.Conv2D, PointwiseConv2D]:
    paddle.seed(inputs)
    theirs, ours = (
        nn.Conv2D(inputs, outputs, 1, stride, bias_attr=False),
        PointwiseConv2D(inputs, outputs, stride),
    )
    ours.set_state_dict(theirs.state_dict())
    return theirs, ours


def differences(theirs: nn.Layer, ours: nn.Layer, images: int, size: int) -> list[float]:
    """Returns the largest differences of the output and of the gradients of input and kernel.

    They are relative to the largest value.
    """
    data = (
        np.random.default_rng(0).normal(size=(images, ours.weight.shape[1], size, size + 1)).astype("float32")
    )
    found = []
    for layer in (theirs, ours):
        x = paddle.to_tensor(data, stop_gradient=False)
        y = layer(x)
        upstream = np.random.default_rng(1).normal(size=y.shape).astype("float32")
        y.backward(paddle.to_tensor(upstream))
        found.append([y.numpy(), x.grad.numpy(), layer.weight.grad.numpy()])
        layer.clear_gradients()
    return [float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(*found, strict=True)]


@needs_onednn
@pytest.mark.every_paddle
@pytest.mark.parametrize(("images", "inputs", "outputs", "size", "stride"), SHAPES)
def test_values_and_gradients_are_paddles(
    images: int, inputs: int, outputs: int, size: int, stride: int
) -> None:
    theirs, ours = pair(inputs, outputs, stride)
    assert max(differences(theirs, ours, images, size)) < 2e-6


@needs_onednn
def test_a_stride_without_numba_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "HAS_NUMBA", False)
    for size, stride in ((7, 2), (8, 2), (9, 3)):
        theirs, ours = pair(5, 6, stride)
        assert max(differences(theirs, ours, 2, size)) < 2e-6


@needs_bfloat16
@pytest.mark.parametrize(("images", "inputs", "outputs", "size", "stride"), SHAPES)
def test_bfloat16_rounds_the_factors_only(
    images: int, inputs: int, outputs: int, size: int, stride: int
) -> None:
    theirs, ours = pair(inputs, outputs, stride)
    assert to_bfloat16(nn.Sequential(ours)) == 1
    assert 1e-5 < max(differences(theirs, ours, images, size)) < 2**-7


@needs_onednn
def test_it_is_used_for_small_maps_in_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(pointwise._Product, "apply", lambda x, *_: seen.append(tuple(x.shape)) or x)
    _, layer = pair(3, 3, 1)
    small, large = paddle.randn([2, 3, 20, 20]), paddle.randn([2, 3, 21, 20])
    layer(small)
    layer(large)
    layer.eval()
    layer(small)
    layer.train()
    layer.to(dtype="float64")
    layer(small.astype("float64"))
    assert seen == [(2, 3, 20, 20)]


@needs_onednn
@pytest.mark.parametrize("frozen", ["kernel", "input"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    _, layer = pair(3, 4, 2)
    layer.weight.stop_gradient = frozen == "kernel"
    x = paddle.randn([2, 3, 6, 6])
    x.stop_gradient = frozen == "input"
    layer(x).sum().backward()
    assert (layer.weight.grad is None) == (frozen == "kernel")
    assert (x.grad is None) == (frozen == "input")


@needs_onednn
@pytest.mark.parametrize("channels", [(2, 2), (1, 3), (3, 1), (1, 1), (4, 8)])
@pytest.mark.parametrize(("images", "size"), [(1, 1), (1, 2), (2, 1), (3, 2)])
def test_axes_of_size_one(channels: tuple[int, int], images: int, size: int) -> None:
    """Memory that was freed has values that are not finite, and none of it is read."""
    layer = PointwiseConv2D(*channels)
    reference = nn.Conv2D(*channels, 1, bias_attr=False)
    reference.weight.set_value(layer.weight)
    values = np.random.default_rng(0).standard_normal((images, channels[0], 1, size)).astype(np.float32)
    results = []
    for convolution in (layer, reference):
        x = paddle.to_tensor(values, stop_gradient=False)
        freed = [paddle.full([n], float("nan")) for n in (1, 2, 3, 4, 8, 16, 32, 64) for _ in range(6)]
        del freed
        y = convolution(x)
        (y * y).sum().backward()
        results.append([array.numpy().copy() for array in (y, x.grad, convolution.weight.grad)])
    for received, expected in zip(*results, strict=True):
        np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-6)


@needs_onednn
def test_many_shapes_do_not_pile_up() -> None:
    layer = PointwiseConv2D(2, 2)
    for size in range(1, 20):
        for images in range(1, 12):
            x = paddle.randn([images, 2, 1, size])
            x.stop_gradient = False
            layer(x).sum().backward()
    assert onednn._product.cache_info().currsize <= 512
    assert np.isfinite(layer.weight.grad.numpy()).all()


@needs_bfloat16
def test_amp_in_bfloat16_takes_effect_on_the_cpu(
    write_config: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The losses are similar but not bit-identical.

    The trained network is evaluated in float32.
    """
    losses = []
    for name, block in (("plain", {"use_amp": False}), ("short", {"dtype": "bfloat16"})):
        file, output = write_config(AMP=block), f"Global.output_dir={tmp_path / name}"
        trainer = ppxcls.build_trainer(ppxcls.load_config(file, [output]))
        trainer.fit()
        rows = [json.loads(line) for line in (trainer.output_dir / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows if row["kind"] == "train"])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1] != losses[0]
    layers = [
        layer
        for layer in trainer.learner.network.sublayers()
        if isinstance(layer, PointwiseConv2D | DenseConv2D)
    ]
    assert all(layer.in_bfloat16 for layer in layers)
    assert (
        f"AMP: {len(layers)} dense convolutions are trained with bfloat16 products" in capfd.readouterr().out
    )
    results = ppxcls.evaluate(ppxcls.load_config(trainer.output_dir))
    assert results["num_samples"] == 7


@pytest.mark.parametrize(
    ("dtype", "needs"),
    [("float16", "AMP.dtype: bfloat16"), ("bfloat16", "a processor with AVX512-BF16 or AMX")],
)
def test_amp_without_effect_is_said(
    write_config: Callable[..., Path],
    dtype: str,
    needs: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(precision.onednn, "has_bfloat16", lambda: False)
    trainer = ppxcls.build_trainer(ppxcls.load_config(write_config(AMP={"dtype": dtype})))
    assert not any(getattr(layer, "in_bfloat16", False) for layer in trainer.learner.network.sublayers())
    text = capfd.readouterr().out
    assert f"AMP has no effect here, everything is computed in float32: on a CPU it needs {needs}" in text


@needs_onednn
def test_it_needs_no_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "HAS_NUMBA", False)
    seen: list[int] = []
    monkeypatch.setattr(pointwise._Product, "apply", lambda x, *_: seen.append(1) or x)
    pair(3, 3, 1)[1](paddle.randn([2, 3, 5, 5]))
    assert seen == [1]


@needs_bfloat16
@pytest.mark.parametrize("limit", ["AVX2", "ALL"])
def test_a_limit_of_onednn_is_kept(limit: str) -> None:
    code = "import ppxcls, paddle; from ppxcls.ops import onednn; print(onednn.has_bfloat16())"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": limit, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    )
    assert result.stdout.split()[-1] == str(limit == "ALL")
