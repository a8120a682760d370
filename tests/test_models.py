"""The networks against PaddleClas's own, run on weights drawn from a formula."""

from __future__ import annotations

import json
import math

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn

import ppxcls
from tests.conftest import SHARED, needs_shared

NAMES = ["Xception41", "Xception41_deeplab", "Xception65", "Xception65_deeplab", "Xception71"]


def formula_weights(state: dict[str, list[int]], seed: int) -> dict[str, np.ndarray]:
    weights = {}
    for i, key in enumerate(sorted(state)):
        shape = state[key]
        rng = np.random.default_rng([seed, i])
        if key.endswith("_variance"):
            value = rng.uniform(0.5, 1.5, shape)
        elif key.endswith("_mean"):
            value = rng.normal(0, 0.1, shape)
        elif len(shape) == 4:
            value = rng.normal(0, (2 / math.prod(shape[1:])) ** 0.5, shape)
        elif len(shape) == 2:
            value = rng.normal(0, shape[0] ** -0.5, shape)
        elif key.endswith("weight"):
            value = rng.uniform(0.2, 0.6, shape)
        else:
            value = rng.normal(0, 0.1, shape)
        weights[key] = value.astype(np.float32)
    return weights


def test_registry_lists_the_five() -> None:
    assert ppxcls.list_models() == NAMES


@needs_shared
@pytest.mark.parametrize("name", NAMES)
def test_parity_with_paddleclas(name: str) -> None:
    facts = json.loads((SHARED / "parity/xception.json").read_text())
    expected = np.load(SHARED / "parity/xception.npz")
    reference = facts["models"][name] if "models" in facts else facts[name]
    model = ppxcls.build_model(name, class_num=facts["class_num"])
    state = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert state == reference["state"]
    # As PaddleClas counts: batch norm's statistics are parameters that do not train.
    assert sum(math.prod(p.shape) for p in model.parameters()) == reference["parameters"]

    weights = formula_weights(state, facts["seed"])
    model.set_state_dict({key: paddle.to_tensor(value) for key, value in weights.items()})
    size = facts["image_size"]
    images = np.random.default_rng(facts["seed"]).normal(0, 1, (facts["batch"], 3, size, size)).astype(np.float32)
    model.eval()
    with paddle.no_grad():
        logits = model(paddle.to_tensor(images)).numpy()
    assert np.abs(logits - expected[f"{name}/logits"]).max() <= 1e-4 * np.abs(expected[f"{name}/logits"]).max()

    model.train()
    for layer in model.sublayers():
        if isinstance(layer, nn.Dropout):
            layer.eval()
            layer.p = 0.0
    loss = F.cross_entropy(model(paddle.to_tensor(images)), paddle.arange(facts["batch"]))
    loss.backward()
    norm = math.sqrt(sum(float((p.grad.astype("float64") ** 2).sum()) for p in model.parameters() if p.grad is not None))
    assert float(loss) == pytest.approx(float(expected[f"{name}/train_loss"]), rel=1e-4)
    assert norm == pytest.approx(float(expected[f"{name}/grad_norm"]), rel=1e-4)


@pytest.mark.parametrize("size", [(71, 71), (96, 130)])
def test_any_size_from_71(size: tuple[int, int]) -> None:
    for name in ("Xception41", "Xception41_deeplab"):
        model = ppxcls.build_model(name, class_num=5)
        model.eval()
        assert model(paddle.randn([2, 3, *size])).shape == [2, 5]


def test_two_models_in_one_process_share_nothing() -> None:
    first, second = (ppxcls.build_model("Xception41", class_num=2) for _ in range(2))
    names = [{p.name for p in model.parameters()} for model in (first, second)]
    assert not names[0] & names[1]
    before = second.state_dict()["_exit_flow._out.weight"].numpy()
    first.state_dict()["_exit_flow._out.weight"].set_value(paddle.zeros([2048, 2]))
    assert np.array_equal(second.state_dict()["_exit_flow._out.weight"].numpy(), before)


def test_initial_kernels_are_paddles() -> None:
    """Normal with variance 2 / (kernel area times input channels), which for depthwise counts all channels; PaddleClas keeps it."""
    paddle.seed(0)
    state = ppxcls.build_model("Xception41").state_dict()
    for key, fan in [
        ("_middle_flow._conv_0._conv_0._pointwise_conv._conv.weight", 728),
        ("_middle_flow._conv_0._conv_0._depthwise_conv._conv.weight", 9 * 728),
    ]:
        values = state[key].numpy()
        assert values.std() == pytest.approx((2 / fan) ** 0.5, rel=0.03)
        assert abs(values.mean()) < 0.05 * values.std()
    out = state["_exit_flow._out.weight"].numpy()
    assert np.abs(out).max() <= 2048**-0.5
    assert out.std() == pytest.approx(2048**-0.5 / 3**0.5, rel=0.02)
