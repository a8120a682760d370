"""The parts of the networks: trunk, exit flow and classifier."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import nn

import ppxcls
from ppxcls.config.checks import ConfigError
from ppxcls.models.parts import Flow, NetworkParts, split_network

# Share of the exit flow in the multiplications of a 299 px image, in percent.
SHARES = {
    "Xception": 12,
    "Xception41": 12,
    "Xception41_deeplab": 15,
    "Xception65": 8,
    "Xception65_deeplab": 10,
    "Xception71": 6,
    "legacy_xception": 12,
    "xception41": 15,
    "xception41p": 15,
    "xception65": 10,
    "xception65p": 10,
    "xception71": 8,
}


def images(size: int = 75, count: int = 2) -> paddle.Tensor:
    rng = np.random.default_rng(0)
    return paddle.to_tensor(rng.normal(size=(count, 3, size, size)).astype(np.float32))


def parts_of(model: nn.Layer) -> NetworkParts:
    parts = split_network(model)
    assert parts is not None
    return parts


def multiplications(layer: nn.Layer, x: paddle.Tensor) -> tuple[int, paddle.Tensor]:
    """Returns the multiply-adds of convolutions and linear layers, and the output."""
    total = 0

    def count(layer: Any, _: Any, output: paddle.Tensor) -> None:
        nonlocal total
        outputs = layer.weight.shape[1 if isinstance(layer, nn.Linear) else 0]
        total += math.prod(output.shape[1:]) * layer.weight.size // outputs

    kinds = nn.Conv2D | nn.Linear
    layers = [part for part in layer.sublayers(include_self=True) if isinstance(part, kinds)]
    hooks = [part.register_forward_post_hook(count) for part in layers]
    with paddle.no_grad():
        y = layer(x)
    for hook in hooks:
        hook.remove()
    return total, y


@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
@pytest.mark.parametrize("name", ppxcls.list_models())
def test_parts_are_the_network(name: str, data_format: str) -> None:
    drop_rate = 0.5 if "deeplab" in name else 0.25
    model = ppxcls.build_model(name, class_num=7, drop_rate=drop_rate, data_format=data_format)
    model.eval()
    parts = parts_of(model)
    with paddle.no_grad():
        expected = model(images())
        activations = parts.trunk(images())
        features = parts.exit_flow(activations)
        assert (parts.classifier(features).numpy() == expected.numpy()).all()
    assert features.shape == [2, 2048]
    assert activations.shape[1 if data_format == "NCHW" else 3] == 728
    numbers = [id(parameter) for part in parts for parameter in part.parameters()]
    assert len(numbers) == len(set(numbers))
    assert set(numbers) == {id(parameter) for parameter in model.parameters()}


@pytest.mark.parametrize("name", ppxcls.list_models())
def test_share_of_the_exit_flow(name: str) -> None:
    model = ppxcls.build_model(name, class_num=1)
    model.eval()
    parts = parts_of(model)
    trunk, activations = multiplications(parts.trunk, images(299, count=1))
    exit_flow, _ = multiplications(parts.exit_flow, activations)
    assert round(100 * exit_flow / (trunk + exit_flow)) == SHARES[name]


@pytest.mark.parametrize("name", ["Xception", "Xception41_deeplab", "xception41p"])
def test_exit_flow_learns_alone(name: str) -> None:
    model = ppxcls.build_model(name, class_num=3)
    parts = parts_of(model)
    model.eval()
    with paddle.no_grad():
        activations = parts.trunk(images())
    parts.exit_flow.train()
    parts.classifier(parts.exit_flow(activations)).sum().backward()
    with_gradient = {id(parameter) for parameter in model.parameters() if parameter.grad is not None}
    learning = [*parts.exit_flow.parameters(), *parts.classifier.parameters()]
    assert with_gradient == {id(parameter) for parameter in learning if not parameter.stop_gradient}


class Small(nn.Layer):
    """A user's network."""

    def __init__(self, class_num: int) -> None:
        super().__init__()
        self.conv = nn.Conv2D(3, 4, 3)
        self.pool = nn.AdaptiveAvgPool2D(1)
        self.fc = nn.Linear(4, class_num) if class_num else nn.Identity()

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.fc(paddle.flatten(self.pool(self.conv(x)), start_axis=1))


class Declared(Small):
    """A user's network that declares its parts."""

    def network_parts(self) -> NetworkParts:
        return NetworkParts(Flow([self.conv]), Flow([self.pool, nn.Flatten()]), self.fc)


class Wrong(Small):
    """A user's network with another method of this name."""

    def network_parts(self) -> int:
        return 3


def test_a_network_of_the_user() -> None:
    model = Declared(5)
    parts = parts_of(model)
    logits = parts.classifier(parts.exit_flow(parts.trunk(images())))
    assert (logits.numpy() == model(images()).numpy()).all()
    assert split_network(Small(5)) is None
    assert split_network(Declared(0)) is None
    with pytest.raises(ConfigError, match="the network Wrong: .* returns a NetworkParts, received int"):
        split_network(Wrong(5))
