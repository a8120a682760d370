"""Weights in every layout in which people publish Xception, written from a network's own state."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import nn

import ppxcls
from ppxcls.models.foreign_weights import foreign_weights
from ppxcls.models.weights_network import weights_network
from tests.models import written_files as files

h5py = pytest.importorskip("h5py")
Array = np.ndarray
RANDOM = np.random.default_rng(0)
HEAD = [
    files.dense("dense", np.zeros((2048, 100), np.float32), np.zeros(100, np.float32)),
    files.dense("dense_1", np.zeros((100, 6), np.float32), np.zeros(6, np.float32)),
]


@pytest.fixture(scope="module")
def network() -> nn.Layer:
    paddle.seed(7)
    network = ppxcls.build_model("legacy_xception", class_num=3)
    for key, tensor in network.state_dict().items():
        if len(tensor.shape) == 1:  # otherwise all batch norms are equal
            tensor.set_value(
                paddle.uniform(tensor.shape, min=0.5 if "weight" in key or "_var" in key else 0, max=1)
            )
    return network


@pytest.fixture(scope="module")
def state(network: nn.Layer) -> dict[str, Array]:
    return {key: tensor.numpy() for key, tensor in network.state_dict().items()}


def trunk_of(state: Mapping[str, Array]) -> dict[str, Array]:
    return {key: value for key, value in state.items() if not key.startswith("fc.")}


def predictions(state: Mapping[str, Array], name: str = "predictions") -> files.Layer:
    return files.dense(name, state["fc.weight"], state["fc.bias"])


def legacy_whole(path: Path, state: Mapping[str, Array]) -> None:
    with h5py.File(path, "w") as file:
        files.write_legacy(file, [*files.trunk_layers(state), predictions(state)])


def legacy_of_keras_1(path: Path, state: Mapping[str, Array]) -> None:
    with h5py.File(path, "w") as file:
        files.write_legacy(file, [*files.trunk_layers(state), predictions(state)], is_keras_1=True)


def legacy_of_several_gpus(path: Path, state: Mapping[str, Array]) -> None:
    """A model of several GPUs: the whole network is one layer, and each name begins with the network's."""
    layers = [*files.trunk_layers(state), predictions(state)]
    with h5py.File(path, "w") as file:
        files.write_nested_legacy(file, "xception", layers, is_frozen=False, scope="xception/")
        for name in ("lambda_1", "lambda_2", "predictions"):
            files.write_named(file, name, {})
        file.attrs["layer_names"] = [b"input_1", b"lambda_1", b"lambda_2", b"xception", b"predictions"]
        files.write_named(file, "input_1", {})


def keras_of_older_tensorflow(path: Path, state: Mapping[str, Array]) -> None:
    """tf.keras before 2.12 wrote HDF5 under the name ``.keras``."""
    with h5py.File(path, "w") as file:
        group = file.create_group("model_weights")
        files.write_legacy(group, [*files.trunk_layers(state), predictions(state)])


def weights_h5_after_training(path: Path, state: Mapping[str, Array]) -> None:
    with h5py.File(path, "w") as file:
        layers = [*files.trunk_layers(state), predictions(state, "dense")]
        files.write_numbered(file, "", layers, container="_layer_checkpoint_dependencies")
        files.write_training(file)


def legacy_notop(path: Path, state: Mapping[str, Array]) -> None:
    with h5py.File(path, "w") as file:
        files.write_legacy(file, files.trunk_layers(state))


def saved_model(path: Path, state: Mapping[str, Array], *, is_frozen: bool = False) -> None:
    with h5py.File(path, "w") as file:
        group = file.create_group("model_weights")
        files.write_nested_legacy(group, "xception", files.trunk_layers(state), is_frozen=is_frozen)
        files.write_legacy(group, HEAD)
        group.attrs["layer_names"] = [b"xception", b"dense", b"dense_1", b"avg_pool"]
        files.write_named(file, "optimizer_weights", {"Adam/iter:0": np.zeros(1)})


def saved_frozen_model(path: Path, state: Mapping[str, Array]) -> None:
    saved_model(path, state, is_frozen=True)


def keras_3_nested(path: Path, state: Mapping[str, Array]) -> None:
    """The layout of a model that was trained on a frozen trunk, and saved by Keras 3 of 2024."""
    layers = files.trunk_layers(state)

    def write(file: Any) -> None:
        files.write_numbered(file, "layers/functional/", layers)
        files.write_numbered(file, "", HEAD)
        files.write_training(file)
        files.write_training(file, "layers/functional/")  # it was trained before it became a part

    config = files.config_of(HEAD, name="functional_1")
    config["config"]["layers"].insert(1, files.config_of(layers))
    files.write_keras(path, files.hdf5_bytes(write), config)


def keras_3_reordered(path: Path, state: Mapping[str, Array]) -> None:
    """Groups in another order than Keras's own: only ``config.json`` tells which layer is which."""
    layers = files.trunk_layers(state)[::-1]
    data = files.hdf5_bytes(lambda file: files.write_numbered(file, "", [*layers, predictions(state)]))
    files.write_keras(path, data, files.config_of([*layers, predictions(state)]))


def weights_h5_without_config(path: Path, state: Mapping[str, Array]) -> None:
    with h5py.File(path, "w") as file:
        files.write_numbered(file, "layers/sequential/layers/functional/", files.trunk_layers(state))
        files.write_numbered(file, "", HEAD)


def weights_h5_with_names(path: Path, state: Mapping[str, Array]) -> None:
    with h5py.File(path, "w") as file:
        layers = [*files.trunk_layers(state), predictions(state, "dense_7")]
        files.write_numbered(file, "", layers, has_names=True)


def weights_h5_of_2023(path: Path, state: Mapping[str, Array]) -> None:
    container = "_layer_checkpoint_dependencies"
    with h5py.File(path, "w") as file:
        files.write_numbered(file, f"{container}/functional/", files.trunk_layers(state), container=container)
        files.write_numbered(file, "", HEAD, container=container)


def flat_with_norm_in_head(path: Path, state: Mapping[str, Array]) -> None:
    norm = files.Layer("head_bn", "BatchNormalization", {str(i): np.ones(2048, np.float32) for i in range(4)})
    with h5py.File(path, "w") as file:
        files.write_numbered(file, "", [*files.trunk_layers(state), norm, *HEAD])


WHOLE = [
    *(legacy_whole, legacy_of_keras_1, legacy_of_several_gpus, keras_of_older_tensorflow),
    *(keras_3_reordered, weights_h5_with_names, weights_h5_after_training),
]
TRUNKS = [
    *(legacy_notop, saved_model, saved_frozen_model, keras_3_nested, weights_h5_without_config),
    *(weights_h5_of_2023, flat_with_norm_in_head),
]


@pytest.mark.parametrize("write", [*WHOLE, *TRUNKS])
def test_files_of_keras(
    write: Callable[[Path, Mapping[str, Array]], None], state: dict[str, Array], tmp_path: Path
) -> None:
    file = tmp_path / ("a.keras" if write.__name__.startswith("keras") else "a.h5")
    write(file, state)
    try:
        weights = foreign_weights(file)
        assert weights_network(file) == "Xception"
    finally:
        file.unlink()
    expected = state if write in WHOLE else trunk_of(state)
    assert weights.state.keys() == expected.keys()
    assert all(np.array_equal(weights.state[key], expected[key]) for key in expected)
    assert ("dense (2048x100, 100), dense_1 (100x6, 6)" in weights.head) == (write in TRUNKS[1:])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_of_keras(dtype: str, state: dict[str, Array], tmp_path: Path) -> None:
    file = tmp_path / "a.weights.h5"
    bits = {key: (value.view(np.uint32) >> 16).astype(np.uint16) for key, value in state.items()}
    rounded = {key: (value.astype(np.uint32) << 16).view(np.float32) for key, value in bits.items()}
    layers = files.trunk_layers({key: value.view("V2") for key, value in bits.items()})
    if dtype == "float16":
        layers = files.trunk_layers({key: value.astype(np.float16) for key, value in state.items()})
        rounded = {key: value.astype(np.float16).astype(np.float32) for key, value in state.items()}
    with h5py.File(file, "w") as stored:
        files.write_numbered(stored, "", layers)
    model = ppxcls.build_model("Xception", class_num=0)
    ppxcls.load_weights(model, file, keep_trunk=True)
    loaded = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    assert all(np.array_equal(loaded[key], rounded[key]) for key in loaded)


def cadene(path: Path, state: dict[str, Array]) -> None:
    """The oldest files of torch for Xception: pointwise weights have two dimensions."""
    flat = {
        key: value[:, :, 0, 0] if key.endswith("pointwise.weight") else value
        for key, value in files.torch_state(state).items()
    }
    files.write_torch(path, flat, is_legacy=True)


def in_a_detector(path: Path, state: dict[str, Array]) -> None:
    """A detector of forgeries: the network is its backbone, and has further layers."""
    named = {f"module.backbone.{key}": value for key, value in files.torch_state(state).items()}
    named = {key.replace("fc.", "last_linear.1."): value for key, value in named.items()}
    files.write_torch(path, {"epoch": 3, "model_state_dict": named})


def of_deepfakebench(path: Path, state: dict[str, Array]) -> None:
    """A detector that always has a layer for other detectors, which the classifier does not use."""
    named = {f"backbone.{key}": value for key, value in files.torch_state(state).items()}
    named = {key.replace("fc.", "last_linear.1."): value for key, value in named.items()}
    named["backbone.adjust_channel.0.weight"] = np.ones((512, 2048, 1, 1), np.float32)
    named["backbone.adjust_channel.1.running_mean"] = np.ones(512, np.float32)
    files.write_torch(path, named)


def average(path: Path, state: dict[str, Array]) -> None:
    weights = files.torch_state(state)
    other = {key: np.zeros(1, np.float32) for key in weights}
    ema = {f"_orig_mod.{key}": value for key, value in weights.items()}
    files.write_torch(path, {"state_dict": other, "state_dict_ema": ema})


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("xception-b5690688.pth", cadene),
        ("CKPT.PTH", in_a_detector),
        ("pytorch_model.bin", average),
        ("xception_best.pth", of_deepfakebench),
    ],
)
def test_files_of_torch(
    name: str, write: Callable[[Path, dict[str, Array]], None], network: nn.Layer, tmp_path: Path
) -> None:
    file = tmp_path / name
    write(file, {key: tensor.numpy() for key, tensor in network.state_dict().items()})
    model = ppxcls.build_model("legacy_xception", class_num=3)
    try:
        assert ppxcls.load_weights(model, file) == []
        assert weights_network(file) == "legacy_xception"
    finally:
        file.unlink()
    images = paddle.to_tensor(RANDOM.normal(size=(1, 3, 71, 71)).astype(np.float32))
    model.eval()
    network.eval()
    with paddle.no_grad():
        assert np.array_equal(model(images).numpy(), network(images).numpy())


def small_network() -> nn.Layer:
    return nn.Sequential(nn.Conv2D(3, 2, 1), nn.BatchNorm2D(2), nn.Flatten(), nn.Linear(2, 2))


def small_state() -> dict[str, Array]:
    return {
        "0.weight": np.full((2, 3, 1, 1), 1.5, np.float32),
        "0.bias": np.ones(2, np.float32),
        "1.weight": np.ones(2, np.float32),
        "1.bias": np.ones(2, np.float32),
        "1.running_mean": np.ones(2, np.float32),
        "1.running_var": np.ones(2, np.float32),
        "3.weight": np.ones((2, 2), np.float32),
        "3.bias": np.ones(2, np.float32),
    }


@pytest.mark.parametrize("is_legacy", [False, True])
@pytest.mark.parametrize(("kind", "dtype"), [("Half", np.float16), ("BFloat16", np.uint16)])
def test_half_precision_of_torch(kind: str, dtype: type, is_legacy: bool, tmp_path: Path) -> None:
    bits = {key: (value.view(np.uint32) >> 16).astype(np.uint16) for key, value in small_state().items()}
    halves = {key: value.astype(np.float16) for key, value in small_state().items()}
    arrays = halves if dtype is np.float16 else bits
    files.write_torch(tmp_path / "a.pt", {"model": arrays}, kind=kind, is_legacy=is_legacy)
    model = small_network()
    ppxcls.load_weights(model, tmp_path / "a.pt")
    assert (model.state_dict()["0.weight"].numpy() == 1.5).all()


def test_safetensors_of_the_hub(tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.numpy").save_file
    file = tmp_path / "MODEL.SAFETENSORS"
    wrapped = {f"model.{key}": value for key, value in small_state().items()}
    save_file(wrapped, file, metadata={"format": "pt", "StructuredToParameterName@": "x"})
    assert ppxcls.load_weights(small_network(), file) == []
    part = tmp_path / "model-00001-of-00003.safetensors"
    part.write_bytes(file.read_bytes())
    with pytest.raises(ppxcls.CheckpointError, match="one of 3 parts of a model; parts are not joined"):
        ppxcls.load_weights(small_network(), part)


def test_the_content_tells_the_format_of_keras(state: dict[str, Array], tmp_path: Path) -> None:
    legacy_whole(tmp_path / "download", state)
    keras_3_nested(tmp_path / "0a1b2c", state)
    for name in ("download", "0a1b2c"):
        assert weights_network(tmp_path / name) == "Xception"
        assert np.array_equal(foreign_weights(tmp_path / name).state["bn4.bias"], state["bn4.bias"])


def test_keras_errors_name_layers(state: dict[str, Array], tmp_path: Path) -> None:
    layers = files.trunk_layers(state)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        files.write_legacy(file, [layer for layer in layers if layer.name != "block5_sepconv2"])
    with pytest.raises(
        ppxcls.CheckpointError, match="1 of 80 layers of Xception are missing: block5_sepconv2"
    ):
        foreign_weights(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for model in ("functional", "functional_1"):
            files.write_numbered(file, f"layers/{model}/", layers[:8], has_names=True)
    with pytest.raises(
        ppxcls.CheckpointError, match="expected one network, received 2: functional, functional_1"
    ):
        foreign_weights(tmp_path / "a.h5")
    wrong = [files.Layer(layer.name, layer.class_name, dict(layer.variables)) for layer in layers[:4]]
    wrong[2].variables = {"kernel": np.zeros((5, 5, 32, 64), np.float32)}
    with h5py.File(tmp_path / "a.h5", "w") as file:
        files.write_numbered(file, "", wrong, has_names=True)
    with pytest.raises(
        ppxcls.CheckpointError, match="block1_conv2 has the shapes 5x5x32x64; that of Xception has 3x3x32x64"
    ):
        foreign_weights(tmp_path / "a.h5")


def test_real_weights() -> None:
    """A file that somebody has published, if it is at hand."""
    path = os.environ.get("PPXCLS_REAL_WEIGHTS")
    if not path:
        pytest.skip("PPXCLS_REAL_WEIGHTS names no file of real weights")
    name = weights_network(path)
    model = ppxcls.build_model(name, class_num=12)
    fresh = {key: tensor.numpy().copy() for key, tensor in model.state_dict().items()}
    ppxcls.load_weights(model, path, keep_trunk=True)
    loaded = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    trunk = [key for key, array in loaded.items() if array.shape[-1:] != (12,)]
    assert len(trunk) >= 234
    # Keras trained without scales in the batch norms: all of them are one, as in a fresh network.
    scales = {key for key in trunk if loaded[key].ndim == 1 and key.endswith(".weight")}
    assert not [key for key in trunk if key not in scales and np.array_equal(fresh[key], loaded[key])]
    assert all(np.isfinite(array).all() for array in loaded.values())
