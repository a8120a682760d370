"""Operators on all parameters at once: the same numbers as one parameter after the other."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import nn

from ppxcls.train.clipping import ClipGradByGlobalNorm, ClipGradByValue
from ppxcls.train.ema import WeightAverage
from ppxcls.train.flat_tensors import FlatTensors
from ppxcls.train.optimizer_state import load_optimizer_state, optimizer_state
from ppxcls.train.optimizers import build_optimizer


def small_model() -> nn.Layer:
    paddle.seed(3)
    return nn.Sequential(
        nn.Conv2D(3, 8, 3, bias_attr=False),
        nn.BatchNorm2D(8),
        nn.AdaptiveAvgPool2D(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def train(model: nn.Layer, optimizer: Any, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        rng = np.random.default_rng(step)
        images = paddle.to_tensor(rng.normal(size=(4, 3, 9, 9)).astype(np.float32))
        loss = nn.functional.cross_entropy(model(images), paddle.to_tensor(rng.integers(0, 4, 4)))
        loss.backward()
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)


def test_vectors_follow_tensors_that_change_or_get_new_memory() -> None:
    tensors = [paddle.randn([2, 3]), paddle.randn([4]), paddle.randn([1]).astype("float16")]
    flat = FlatTensors(tensors)
    for _ in range(2):
        expected = np.concatenate([tensor.astype("float32").numpy().ravel() for tensor in tensors])
        vector = flat.concatenated()
        np.testing.assert_array_equal(vector.numpy(), expected)
        tensors[0].scale_(2.0)
        tensors[1].get_tensor().set(np.arange(4, dtype=np.float32), paddle.CPUPlace())
    views = flat.split(vector)
    assert [list(view.shape) for view in views] == [[2, 3], [4], [1]]
    vector.scale_(0.0)
    assert not any(view.any() for view in views)
    paddle.randn([4])._share_buffer_to(tensors[1])
    np.testing.assert_array_equal(flat.concatenated().numpy()[6:10], tensors[1].numpy())


@pytest.mark.parametrize("warmup", [False, True])
def test_average_is_that_of_each_tensor(warmup: bool) -> None:
    model = small_model()
    average = WeightAverage(model, 0.75, warmup=warmup)
    expected = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    optimizer = paddle.optimizer.Momentum(0.1, parameters=model.parameters())
    for step in (1, 2, 3):
        train(model, optimizer, 1, step)
        average.update(step)
        decay = np.float32(min(0.75, (1 + step) / (10 + step)) if warmup else 0.75)
        for key, tensor in model.state_dict().items():
            expected[key] = expected[key] * decay + tensor.numpy() * (1 - decay)
    weights = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    state = average.state_dict()
    assert list(state) == list(weights)
    with average.applied():
        for key, tensor in model.state_dict().items():
            np.testing.assert_allclose(tensor.numpy(), expected[key], rtol=1e-6, atol=1e-7)
            np.testing.assert_array_equal(tensor.numpy(), state[key])
    for key, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), weights[key])
    other = WeightAverage(small_model(), 0.75)
    other.load_state_dict(state)
    for key, value in other.state_dict().items():
        np.testing.assert_array_equal(value, state[key])


@pytest.mark.parametrize("norm", [0.01, 1e6])
def test_clipping_is_paddles(norm: float) -> None:
    shapes = [[3, 4], [5], [2, 2, 2]]
    parameters = [paddle.create_parameter(shape, "float32") for shape in shapes]
    gradients = [paddle.randn(shape) for shape in shapes]
    pairs = list(zip(parameters, gradients, strict=True))
    for ours, theirs in (
        (ClipGradByGlobalNorm(norm), nn.ClipGradByGlobalNorm(norm)),
        (ClipGradByValue(norm / 10), nn.ClipGradByValue(norm / 10)),
    ):
        for (one, mine), (other, expected) in zip(ours(pairs), theirs(pairs), strict=True):
            assert one is other
            np.testing.assert_allclose(mine.numpy(), expected.numpy(), rtol=1e-5)


def test_norm_of_half_precision_gradients_is_computed_in_float32() -> None:
    parameter = paddle.create_parameter([2], "float32")
    gradient = paddle.to_tensor([300.0, 400.0]).astype("float16")  # squares beyond 65,504
    ((_, clipped),) = ClipGradByGlobalNorm(1.0)([(parameter, gradient)])
    np.testing.assert_allclose(clipped.astype("float32").numpy(), [0.6, 0.8], rtol=1e-3)
    gradient = paddle.to_tensor([3e-5, 4e-5]).astype("float16")  # squares below 6e-8
    ((_, clipped),) = ClipGradByGlobalNorm(1e-5)([(parameter, gradient)])
    np.testing.assert_allclose(clipped.astype("float32").numpy(), [0.6e-5, 0.8e-5], rtol=2e-2)


def test_strided_and_empty_tensors() -> None:
    base = paddle.arange(12, dtype="float32").reshape([3, 4])
    tensors = [paddle.transpose(base, [1, 0]), paddle.zeros([0, 2]), paddle.ones([2])]
    flat = FlatTensors(tensors)
    for _ in range(2):
        values = [tensor.numpy().ravel() for tensor in tensors]
        np.testing.assert_array_equal(flat.concatenated().numpy(), np.concatenate(values))
        tensors[0].scale_(2.0)
        base.scale_(3.0)
    assert [list(view.shape) for view in flat.split(flat.concatenated())] == [[4, 3], [0, 2], [2]]
    parameter = paddle.create_parameter([4, 3], "float32")
    ((_, clipped),) = ClipGradByValue(3.0)([(parameter, base.t())])
    np.testing.assert_array_equal(clipped.numpy(), np.minimum(base.numpy().T, 3.0))


@pytest.mark.parametrize("name", ["Momentum", "Adam"])
def test_parameters_that_take_turns(name: str) -> None:
    """A network uses one of two branches in each step."""
    weights = []
    for use_multi_tensor in (False, True):
        paddle.seed(0)
        branches = nn.LayerList([nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1)])
        spec = {"name": name, "lr": {"name": "ConstLR", "learning_rate": 0.1}}
        optimizer, _ = build_optimizer(
            {**spec, "use_multi_tensor": use_multi_tensor},
            dict(branches.named_parameters()),
            lr_at=lambda step: 0.1,
        )
        for number in (0, 1, 2, 0, 0):
            (branches[number](paddle.ones([2, 3])) ** 2).sum().backward()
            optimizer.step()
            optimizer.clear_grad(set_to_zero=False)
        weights.append([parameter.numpy() for parameter in branches.parameters()])
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("name", ["Momentum", "Adam"])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"regularizer": {"name": "L2", "coeff": 0.01}},
        {
            "weight_decay": 0.01,
            "one_dim_param_no_weight_decay": True,
            "groups": [{"params": "^4", "lr_mult": 0.1}, {"params": "^0", "weight_decay": 0.1}],
        },
        {"clip_norm_global": 0.05},
    ],
)
def test_one_operator_for_all_parameters_gives_the_same_weights(name: str, keys: dict[str, Any]) -> None:
    weights = []
    for use_multi_tensor in (False, True):
        model = small_model()
        spec = {"name": name, "lr": {"name": "ConstLR", "learning_rate": 0.05}, **copy.deepcopy(keys)}
        optimizer, _ = build_optimizer(
            {**spec, "use_multi_tensor": use_multi_tensor},
            dict(model.named_parameters()),
            lr_at=lambda step: 0.05,
        )
        train(model, optimizer, 3)
        weights.append({key: tensor.numpy() for key, tensor in model.state_dict().items()})
        if use_multi_tensor:  # saved, restored into another optimizer, and continued
            again = small_model()
            restored, _ = build_optimizer(
                {**spec, "use_multi_tensor": True}, dict(again.named_parameters()), lr_at=lambda step: 0.05
            )
            state = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
            names = {key: tensor.name for key, tensor in model.state_dict().items()}
            again.set_state_dict({key: paddle.to_tensor(value) for key, value in state.items()})
            load_optimizer_state(
                restored,
                optimizer_state(optimizer),
                weights={**state, "StructuredToParameterName@@": names},
                model=again,
                file=None,  # type: ignore[arg-type]
            )
            for one in ((model, optimizer), (again, restored)):
                train(*one, 2, first=3)
            for key, tensor in model.state_dict().items():
                np.testing.assert_array_equal(tensor.numpy(), again.state_dict()[key].numpy())
    for key, value in weights[0].items():
        np.testing.assert_allclose(value, weights[1][key], rtol=1e-6, atol=1e-7, err_msg=key)
