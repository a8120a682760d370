"""The networks against PaddleClas's own, with weights computed by a formula."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path

import h5py
import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from safetensors.numpy import save_file

import ppxcls
from ppxcls.models.common_keys import MODELS, channels_last, recompute_blocks
from ppxcls.models.first_convolution import input_channels
from ppxcls.models.legacy_xception import SamePool
from ppxcls.models.preprocessing import differences
from tests.conftest import ROOT, SHARED, needs_shared

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


TIMM = ["legacy_xception", "xception41", "xception41p", "xception65", "xception65p", "xception71"]


def test_registry_lists_the_twelve() -> None:
    assert {*NAMES, *TIMM, "Xception"} <= set(ppxcls.list_models())


def timm_weights(state: dict[str, list[int]], seed: int) -> dict[str, np.ndarray]:
    """Returns the formula's weights for PyTorch's names and layout."""
    named = {}
    for i, key in enumerate(sorted(state)):
        shape, rng = state[key], np.random.default_rng([seed, i])
        if key.endswith("running_var"):
            value = rng.uniform(0.5, 1.5, shape)
        elif key.endswith("running_mean"):
            value = rng.normal(0, 0.1, shape)
        elif len(shape) == 4:
            value = rng.normal(0, (2 / math.prod(shape[1:])) ** 0.5, shape)
        elif len(shape) == 2:
            value = rng.normal(0, shape[1] ** -0.5, shape)
        else:
            value = rng.uniform(0.2, 0.6, shape) if key.endswith("weight") else rng.normal(0, 0.1, shape)
        named[key] = value.astype(np.float32)
    return named


def logits_of(model: nn.Layer, images: np.ndarray) -> np.ndarray:
    model.eval()
    with paddle.no_grad():
        return model(paddle.to_tensor(images.astype(np.float32))).numpy()


@needs_shared
@pytest.mark.parametrize("name", TIMM)
def test_parity_with_timm(name: str, tmp_path: Path) -> None:
    """Loads a .safetensors file with timm's keys, and an additional key that its files may contain."""
    facts = json.loads((SHARED / "parity/timm_xception.json").read_text())
    expected = np.load(SHARED / "parity/timm_xception.npz")[f"{name}/logits"]
    weights = timm_weights(facts["models"][name]["state"], facts["seed"])
    norm = next(key for key in weights if key.endswith("running_mean")).replace(
        "running_mean", "num_batches_tracked"
    )
    save_file({**weights, norm: np.zeros((), np.int64)}, tmp_path / "timm.safetensors")
    model = ppxcls.build_model(name)
    assert ppxcls.load_weights(model, tmp_path / "timm.safetensors") == []
    trained = [p for p in model.parameters() if not p.stop_gradient]
    assert sum(math.prod(p.shape) for p in trained) == facts["models"][name]["parameters"]
    size = facts["image_size"]
    logits = logits_of(
        model, np.random.default_rng(facts["seed"]).normal(0, 1, (facts["batch"], 3, size, size))
    )
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()


def keras_file(folder: Path, state: dict[str, list[int]], seed: int, archive: bool) -> Path:
    """Writes a file as Keras 3 does.

    Each layer has a group named after its class and number, with the layer's own name as an attribute.
    """
    arrays = {}
    for i, path in enumerate(sorted(state)):
        shape, rng = state[path], np.random.default_rng([seed, i])
        if path.endswith("moving_variance"):
            value = rng.uniform(0.5, 1.5, shape)
        elif path.endswith("moving_mean"):
            value = rng.normal(0, 0.1, shape)
        elif path.endswith("depthwise_kernel"):
            value = rng.normal(0, (2 / (shape[0] * shape[1])) ** 0.5, shape)
        elif len(shape) == 4:
            value = rng.normal(0, (2 / math.prod(shape[:3])) ** 0.5, shape)
        elif len(shape) == 2:
            value = rng.normal(0, shape[0] ** -0.5, shape)
        else:
            value = rng.uniform(0.2, 0.6, shape) if path.endswith("gamma") else rng.normal(0, 0.1, shape)
        arrays[path] = value.astype(np.float32)
    stored = folder / "xception.weights.h5"
    layers: dict[str, list[str]] = {}
    for path in state:  # in the order of the model
        layers.setdefault(path.split("/")[0], []).append(path)
    with h5py.File(stored, "w") as file:
        for number, (layer, paths) in enumerate(layers.items()):
            group = file.create_group(f"layers/layer_{number}/vars")
            group.attrs["name"] = layer
            for i, path in enumerate(paths):
                group[str(i)] = arrays[path]
    if not archive:
        return stored
    with zipfile.ZipFile(folder / "xception.keras", "w") as packed:
        packed.write(stored, "model.weights.h5")
    return folder / "xception.keras"


@needs_shared
@pytest.mark.parametrize("archive", [False, True])
def test_parity_with_keras(archive: bool, tmp_path: Path) -> None:
    facts = json.loads((SHARED / "parity/keras_xception.json").read_text())
    expected = np.load(SHARED / "parity/keras_xception.npz")["logits"]
    model = ppxcls.build_model("Xception")
    ppxcls.load_weights(model, keras_file(tmp_path, facts["state"], facts["seed"], archive))
    # Keras's count includes batch norm's statistics.
    assert sum(math.prod(p.shape) for p in model.parameters()) == facts["parameters"]
    shape = facts["batch"], facts["image_size"], facts["image_size"], 3
    logits = logits_of(model, np.random.default_rng(facts["seed"]).normal(0, 1, shape).transpose(0, 3, 1, 2))
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    "name", ["legacy_xception", "xception41", "xception41p", "Xception", "Xception41", "Xception41_deeplab"]
)
def test_options_of_the_family(name: str) -> None:
    model = ppxcls.build_model(name, class_num=0, in_channels=1, drop_rate=0.5)
    assert input_channels(model) == 1
    features = logits_of(model, np.random.default_rng(0).normal(0, 1, (2, 1, 71, 80)))
    assert features.shape == (2, 2048)
    if name == "Xception41_deeplab":
        model = ppxcls.build_model(name, class_num=3, output_stride=16)
        seen = []
        model._pool.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].shape))
        assert logits_of(model, np.zeros((1, 3, 96, 96))).shape == (1, 3)
        assert seen == [[1, 2048, 6, 6]]
    if name.startswith("xception"):
        # Dilation keeps the resolution: the last feature map has the size of an output stride of 8.
        model = ppxcls.build_model(name, class_num=3, output_stride=8, drop_path_rate=0.3)
        seen = []
        model.pool.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].shape))
        assert logits_of(model, np.zeros((1, 3, 96, 96))).shape == (1, 3)
        assert seen == [[1, 2048, 12, 12]]
        rates = [layer.rate for layer in model.sublayers() if type(layer).__name__ == "DropPath"]
        assert rates == pytest.approx(np.linspace(0, 0.3, 13))


def test_drop_path_leaves_out_samples_and_keeps_the_mean() -> None:
    from ppxcls.models.layers import DropPath

    paddle.seed(0)
    layer = DropPath(0.25)
    out = layer(paddle.ones([4000, 1, 2, 2])).numpy()
    assert set(np.unique(out)) == {0.0, np.float32(1 / 0.75)}
    assert (out.reshape(4000, 4) == out[:, 0, 0, :1]).all(), "whole samples"
    assert out.mean() == pytest.approx(1, abs=0.03)
    layer.eval()
    assert (layer(paddle.ones([4, 1, 2, 2])).numpy() == 1).all()


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.safetensors", b"<html></html>"), ("a.h5", b"\x89HDF\r\n"), ("a.keras", b"PK"), ("b.keras", None)],
)
def test_foreign_files_that_are_none(name: str, data: bytes | None, tmp_path: Path) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(
        ppxcls.CheckpointError, match=f"{name}: (not a file of weights|no such file)"
    ) as caught:
        ppxcls.load_weights(ppxcls.build_model("legacy_xception", class_num=2), tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.every_paddle
@needs_shared
@pytest.mark.parametrize("name", NAMES)
def test_parity_with_paddleclas(name: str) -> None:
    facts = json.loads((SHARED / "parity/xception.json").read_text())
    expected = np.load(SHARED / "parity/xception.npz")
    reference = facts["models"][name] if "models" in facts else facts[name]
    model = ppxcls.build_model(name, class_num=facts["class_num"])
    state = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert state == reference["state"]
    # PaddleClas's count: batch norm's statistics are parameters that are not trained.
    assert sum(math.prod(p.shape) for p in model.parameters()) == reference["parameters"]

    weights = formula_weights(state, facts["seed"])
    model.set_state_dict({key: paddle.to_tensor(value) for key, value in weights.items()})
    size = facts["image_size"]
    images = (
        np.random.default_rng(facts["seed"]).normal(0, 1, (facts["batch"], 3, size, size)).astype(np.float32)
    )
    model.eval()
    with paddle.no_grad():
        logits = model(paddle.to_tensor(images)).numpy()
    assert (
        np.abs(logits - expected[f"{name}/logits"]).max() <= 1e-4 * np.abs(expected[f"{name}/logits"]).max()
    )

    model.train()
    for layer in model.sublayers():
        if isinstance(layer, nn.Dropout):
            layer.eval()
            layer.p = 0.0
    loss, norm = _loss_and_gradient_norm(model, images)
    # In float64 the values are the same on every processor. The reference is rounded to float32, which gives
    # an error of 9e-4 for Xception65_deeplab.
    exact_loss, exact_norm = _loss_and_gradient_norm(model.to(dtype="float64"), images.astype("float64"))
    assert exact_loss == pytest.approx(float(expected[f"{name}/train_loss"]), rel=1e-4)
    assert exact_norm == pytest.approx(float(expected[f"{name}/grad_norm"]), rel=1e-3)
    assert (loss, norm) == (pytest.approx(exact_loss, rel=1e-5), pytest.approx(exact_norm, rel=5e-4))


def _loss_and_gradient_norm(model: nn.Layer, images: np.ndarray) -> tuple[float, float]:
    model.clear_gradients()
    loss = F.cross_entropy(model(paddle.to_tensor(images)), paddle.arange(len(images)))
    loss.backward()
    squares = (float((p.grad.astype("float64") ** 2).sum()) for p in model.parameters() if p.grad is not None)
    return float(loss), math.sqrt(sum(squares))


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
    """Normal distribution with variance 2 / (kernel area times input channels).

    For depthwise kernels all channels count. PaddleClas keeps this initialisation.
    """
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


def test_preprocessing_facts_are_the_published_ones() -> None:
    assert all(MODELS.fact(name, "published") for name in [*NAMES, *TIMM, "Xception"])
    own = ppxcls.load_config(ROOT / "configs/Xception41.yaml").DataLoader.Eval.dataset.transform_ops
    assert differences(MODELS.fact("Xception65", "published"), own) == []
    lines = differences(MODELS.fact("xception65", "published"), own)
    assert [line.split(":")[0] for line in lines] == ["interpolation", "mean", "std"]
    assert lines[1] == "mean: (0.485, 0.456, 0.406), the weights expect (0.5, 0.5, 0.5) (timm)"
    modern = ppxcls.load_config(
        ROOT / "configs/recipes/modern_xception65.yaml"
    ).DataLoader.Eval.dataset.transform_ops
    assert differences(MODELS.fact("xception65", "published"), modern) == []
    (first, *_) = differences(MODELS.fact("Xception", "published"), modern)
    assert first.startswith("share of the crop: 0.9403, the weights expect None (Keras)")


@needs_shared
@pytest.mark.parametrize("name", TIMM)
def test_preprocessing_facts_are_timms(name: str) -> None:
    theirs = json.loads((SHARED / "parity/timm_xception.json").read_text())["models"][name]["default_cfg"]
    facts = MODELS.fact(name, "published")
    assert [3, facts.input_size, facts.input_size] == theirs["input_size"]
    assert (facts.crop_share, facts.interpolation) == (theirs["crop_pct"], theirs["interpolation"])
    assert (list(facts.mean), list(facts.std)) == (theirs["mean"], theirs["std"])


def gradients(
    model: nn.Layer, images: np.ndarray
) -> tuple[float, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns the loss, the gradients and batch norm's statistics of one step."""
    loss = F.cross_entropy(model(paddle.to_tensor(images)), paddle.arange(len(images)) % 3)
    loss.backward()
    own = {key: p.grad.numpy() for key, p in model.named_parameters() if p.grad is not None}
    return float(loss), own, {key: v.numpy() for key, v in model.state_dict().items() if v.stop_gradient}


@pytest.mark.parametrize("option", ["NHWC", "recompute"])
@pytest.mark.parametrize("name", ["Xception41", "Xception", "xception41p"])
def test_options_change_nothing_but_rounding(name: str, option: str) -> None:
    paddle.seed(0)
    plain, other = (ppxcls.build_model(name, class_num=3) for _ in range(2))
    other.set_state_dict(plain.state_dict())
    if option == "NHWC":
        channels_last(other)
        for model in (
            plain,
            other,
        ):  # statistics of three small images in float32 would amplify rounding
            model.eval()
            model.to(dtype="float64")
    else:
        assert recompute_blocks(other) == 12 + name.startswith("x")
    images = (
        np.random.default_rng(0)
        .normal(size=(3, 3, 71, 80))
        .astype("float64" if option == "NHWC" else "float32")
    )
    rounding = 1e-9 if option == "NHWC" else 1e-3
    expected, received = gradients(plain, images), gradients(other, images)
    assert received[0] == pytest.approx(expected[0], rel=rounding / 10)
    assert received[1].keys() == expected[1].keys()
    for key, value in expected[1].items():
        assert np.abs(received[1][key] - value).max() <= rounding * max(np.abs(value).max(), 1e-3), key
    for key, value in expected[2].items():
        assert np.allclose(received[2][key], value, rtol=rounding, atol=rounding / 10), key


@pytest.mark.every_paddle
@pytest.mark.parametrize("has_kernels", [True, False])
def test_the_padding_of_tensorflows_pools(has_kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients for all small sizes, against padding with minus infinity before the pool."""
    if not has_kernels:
        monkeypatch.setattr("ppxcls.ops.cpu.applies_to", lambda *_: False)
    rng = np.random.default_rng(0)
    for height in range(3, 12):
        for width in range(3, 12):
            x = rng.integers(-9, -1, (2, 3, height, width)).astype(np.float32)  # with ties; zeros would win
            results = []
            for padding in (None, [width % 2, 1, height % 2, 1]):
                images = paddle.to_tensor(x, stop_gradient=False)
                if padding is None:
                    out = SamePool()(images)
                else:
                    out = F.max_pool2d(F.pad(images, padding, value=-math.inf), 3, 2)
                (out * out).sum().backward()
                results.append((out.numpy(), images.grad.numpy()))
            for mine, expected in zip(*results, strict=True):
                assert np.array_equal(mine, expected), (height, width)
