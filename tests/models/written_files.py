"""Writes files of weights in the layouts of Keras and torch, from a network's own state."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray


@dataclass
class Layer:
    """A layer of Keras: its name, its class, and its variables by name in Keras's order."""

    name: str
    class_name: str
    variables: dict[str, Array]


def _convolution(name: str, state: Mapping[str, Array], key: str) -> Layer:
    return Layer(name, "Conv2D", {"kernel": state[f"{key}.weight"].transpose(2, 3, 1, 0)})


def _norm(name: str, state: Mapping[str, Array], key: str) -> Layer:
    names = {"gamma": "weight", "beta": "bias", "moving_mean": "_mean", "moving_variance": "_variance"}
    variables = {name: state[f"{key}.{part}"] for name, part in names.items()}
    return Layer(name, "BatchNormalization", variables)


def _separable(name: str, state: Mapping[str, Array], key: str) -> Layer:
    depthwise = state[f"{key}.conv1.weight"].transpose(2, 3, 0, 1)
    pointwise = state[f"{key}.pointwise.weight"].transpose(2, 3, 1, 0)
    return Layer(name, "SeparableConv2D", {"depthwise_kernel": depthwise, "pointwise_kernel": pointwise})


def trunk_layers(state: Mapping[str, Array]) -> list[Layer]:
    """The layers of Keras's Xception in its order, with the arrays of this package's state."""
    layers = []
    for i in (1, 2):
        layers += [
            _convolution(f"block1_conv{i}", state, f"conv{i}"),
            _norm(f"block1_conv{i}_bn", state, f"bn{i}"),
        ]
    projections = {2: "", 3: "_1", 4: "_2", 13: "_3"}
    for block in range(2, 14):
        first = 0 if block == 2 else 1
        for i in range(2 if block in projections else 3):
            name = f"block{block}_sepconv{i + 1}"
            layers.append(_separable(name, state, f"block{block - 1}.rep.{3 * i + first}"))
            layers.append(_norm(f"{name}_bn", state, f"block{block - 1}.rep.{3 * i + first + 1}"))
        if block in projections:
            layers.append(_convolution(f"conv2d{projections[block]}", state, f"block{block - 1}.skip"))
            layers.append(
                _norm(f"batch_normalization{projections[block]}", state, f"block{block - 1}.skipbn")
            )
    for i in (3, 4):
        name = f"block14_sepconv{i - 2}"
        layers += [_separable(name, state, f"conv{i}"), _norm(f"{name}_bn", state, f"bn{i}")]
    return layers


def dense(name: str, kernel: Array, bias: Array) -> Layer:
    return Layer(name, "Dense", {"kernel": kernel, "bias": bias})


def _snake_case(name: str) -> str:
    words = {"Conv2D": "conv2d", "SeparableConv2D": "separable_conv2d", "Dense": "dense"}
    return words.get(name, "batch_normalization")


def write_numbered(
    file: Any, path: str, layers: Iterable[Layer], *, has_names: bool = False, container: str = "layers"
) -> None:
    """Writes layers as Keras 3 does: in groups that are numbered by class."""
    counts: dict[str, int] = {}
    for layer in layers:
        kind = _snake_case(layer.class_name)
        number = counts.get(kind, 0)
        counts[kind] = number + 1
        name = f"{kind}_{number}" if number else kind
        group = file.create_group(f"{path}{container}/{name}/vars")
        if has_names:
            group.attrs["name"] = layer.name
        for i, array in enumerate(layer.variables.values()):
            group[str(i)] = array
    file.create_group(f"{path}{container}/add/vars")


def write_training(file: Any, path: str = "") -> None:
    """Writes what Keras saves beside the layers of a model that it has trained: optimizer and metrics."""
    file[f"{path}optimizer/vars/0"] = np.int64(3)
    file[f"{path}optimizer/vars/1"] = np.zeros((3, 3, 64, 1), np.float32)
    for metric in ("mean", "mean_metric_wrapper"):
        for i in range(2):
            file[f"{path}metrics/{metric}/vars/{i}"] = np.float32(0.5)


def config_of(layers: Iterable[Layer], *, name: str = "xception") -> dict[str, Any]:
    """The config of a functional model with these layers."""
    entries = [{"class_name": "InputLayer", "config": {"name": "input"}}]
    entries += [{"class_name": layer.class_name, "config": {"name": layer.name}} for layer in layers]
    return {"class_name": "Functional", "config": {"name": name, "layers": entries}, "name": name}


def write_keras(path: Path, weights: bytes, config: Mapping[str, Any] | None) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.3.3"}')
        if config is not None:
            archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", weights)


def write_named(group: Any, name: str, variables: Mapping[str, Array]) -> None:
    """Writes a layer of the older layout, with the names of its variables as an attribute."""
    layer_group = group.create_group(name)
    layer_group.attrs["weight_names"] = [variable.encode() for variable in variables]
    for variable, array in variables.items():
        layer_group[variable] = array


def write_legacy(group: Any, layers: Iterable[Layer], *, is_keras_1: bool = False) -> None:
    """Writes layers as Keras 2 does, or as Keras 1 did."""
    old_names = {"kernel": "W", "bias": "b", "moving_mean": "running_mean", "moving_variance": "running_std"}
    names = []
    for layer in layers:
        name = layer.name
        if is_keras_1:
            name = name.replace("conv2d", "convolution2d").replace("batch_normal", "batchnormal")
        variables = {
            f"{name}_{old_names.get(key, key)}:0" if is_keras_1 else f"{name}/{key}:0": array
            for key, array in layer.variables.items()
        }
        write_named(group, name, variables)
        names.append(name.encode())
    write_named(group, "avg_pool", {})
    # h5py 2 wrote texts of a fixed length, and h5py 3 writes texts of any length.
    all_names = [*names, b"avg_pool"]
    group.attrs["layer_names"] = np.array(all_names) if is_keras_1 else all_names
    group.attrs["backend"] = b"tensorflow"


def write_nested_legacy(
    group: Any, name: str, layers: Iterable[Layer], *, is_frozen: bool, scope: str = ""
) -> None:
    """Writes a model in a model as Keras 2 does: in one group, trained variables before all others."""
    variables = {
        f"{scope}{layer.name}/{key}:0": array for layer in layers for key, array in layer.variables.items()
    }
    moving = {key: array for key, array in variables.items() if "/moving_" in key and not is_frozen}
    write_named(group, name, {key: a for key, a in variables.items() if key not in moving} | moving)


def _encoded(value: Any, storages: list[Array], kind: str) -> bytes:
    """A value as torch pickles it."""
    if isinstance(value, Mapping):
        items = b"".join(_encoded(part, storages, kind) for pair in value.items() for part in pair)
        return b"}(" + items + b"u"
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value)) + value.encode()
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    key = str(len(storages))
    storages.append(value)
    steps = [step // value.itemsize for step in np.ascontiguousarray(value).strides]
    sizes = [
        b"(" + b"".join(_encoded(n, storages, kind) for n in numbers) + b"t"
        for numbers in (value.shape, steps)
    ]
    description = [_encoded("storage", storages, kind), f"ctorch\n{kind}Storage\n".encode()]
    description += [_encoded(part, storages, kind) for part in (key, "cpu", value.size)]
    storage = b"(" + b"".join(description) + b"tQ"
    return b"".join([b"ctorch._utils\n_rebuild_tensor_v2\n(", storage, b"K\0", *sizes, b"\x89}tR"])


def write_torch(
    path: Path, content: Mapping[str, Any], *, kind: str = "Float", is_legacy: bool = False
) -> None:
    """Writes nested dictionaries of arrays as ``torch.save`` does, or as it did before torch 1.6."""
    storages: list[Array] = []
    root = b"\x80\x02" + _encoded(content, storages, kind) + b"."
    arrays = {str(i): np.ascontiguousarray(array) for i, array in enumerate(storages)}
    if not is_legacy:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", root)
            archive.writestr("archive/byteorder", "little")
            for key, array in arrays.items():
                archive.writestr(f"archive/data/{key}", array.tobytes())
        return
    facts = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    root = root.replace(b"tQ", b"NtQ")  # a storage has a view, which is None
    with open(path, "wb") as stream:
        for part in (
            pickle.dumps(0x1950A86A20F9469CFC6C, 2),
            pickle.dumps(1001, 2),
            pickle.dumps(facts, 2),
            root,
        ):
            stream.write(part)
        stream.write(pickle.dumps(sorted(arrays), 2))
        for key in sorted(arrays):
            stream.write(struct.pack("<q", arrays[key].size) + arrays[key].tobytes())


def torch_state(state: Mapping[str, Array]) -> dict[str, Array]:
    """This package's state with torch's names and layouts."""
    names = {"._mean": ".running_mean", "._variance": ".running_var"}
    result = {}
    for key, value in state.items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)  # noqa: PLW2901
        result[key] = value.T if value.ndim == 2 else value
    return result


def hdf5_bytes(write: Any) -> bytes:
    """The bytes of an HDF5 file that a function fills."""
    import h5py

    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        write(file)
    return stream.getvalue()
