"""Weights in other types than the network's, and weights that are not finite."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import nn

import ppxcls
from ppxcls.checkpoints.files import write_checkpoint, write_state
from ppxcls.checkpoints.progress import read_snapshot
from ppxcls.models.number_types import as_float32_array
from ppxcls.system.logs import set_up_logging

State = dict[str, np.ndarray]


def network() -> nn.Layer:
    return nn.Sequential(nn.Conv2D(3, 4, 3), nn.BatchNorm2D(4), nn.Flatten(), nn.Linear(4, 2))


@pytest.fixture
def state() -> State:
    rng = np.random.default_rng(0)
    return {
        key: rng.normal(size=tensor.shape).astype(np.float32)
        for key, tensor in network().state_dict().items()
    }


def truncated_bits(value: np.ndarray) -> np.ndarray:
    """The upper half of each float32, which is a bfloat16 number."""
    return (value.view(np.uint32) >> 16).astype(np.uint16)


def without_lower_half(value: np.ndarray) -> np.ndarray:
    return (value.view(np.uint32) & 0xFFFF0000).view(np.float32)


def write_safetensors(file: Path, state: State, type_name: str) -> None:
    """Writes the format by hand, because safetensors's writer has no bfloat16 for numpy."""
    header: dict[str, Any] = {}
    data = b""
    for key, value in state.items():
        offsets = [len(data), len(data) + value.nbytes]
        header[key] = {"dtype": type_name, "shape": list(value.shape), "data_offsets": offsets}
        data += value.tobytes()
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


CASES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str, Callable[[np.ndarray], np.ndarray]]] = {
    "float16": (lambda v: v.astype(np.float16), "F16", lambda v: v.astype(np.float16).astype(np.float32)),
    "float64": (lambda v: v.astype(np.float64), "F64", lambda v: v),
    "bfloat16": (truncated_bits, "BF16", without_lower_half),
}


@pytest.mark.parametrize("extension", ["pdparams", "safetensors"])
@pytest.mark.parametrize("name", CASES)
def test_other_floating_point_types_are_converted_and_that_is_said_once(
    name: str, extension: str, state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert, type_name, expected = CASES[name]
    file = tmp_path / f"w.{extension}"
    values = {key: convert(value) for key, value in state.items()}
    if extension == "pdparams":
        file.write_bytes(pickle.dumps(values, 4))
    else:
        write_safetensors(file, values, type_name)
    set_up_logging()
    model = network()
    assert ppxcls.load_weights(model, file) == []
    for key, tensor in model.state_dict().items():
        assert tensor.dtype == paddle.float32
        assert np.array_equal(tensor.numpy(), expected(state[key])), key
    lines = [line for line in capsys.readouterr().out.splitlines() if "converted" in line]
    assert len(lines) == 1
    assert lines[0].endswith(f"w.{extension}: 8 of 8 tensors are converted from {name} to float32")


def test_bfloat16_as_paddle_writes_it(state: State, tmp_path: Path) -> None:
    file = tmp_path / "w.pdparams"
    tensors = {key: paddle.to_tensor(value).astype("bfloat16") for key, value in state.items()}
    paddle.save(tensors, str(file))
    model = network()
    ppxcls.load_weights(model, file)
    for key, tensor in model.state_dict().items():
        assert np.array_equal(tensor.numpy(), tensors[key].astype("float32").numpy())


def test_bfloat16_of_another_package(state: State, tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    file = tmp_path / "w.pdparams"
    values = {key: value.astype(ml_dtypes.bfloat16) for key, value in state.items()}
    file.write_bytes(pickle.dumps(values, 4))
    model = network()
    ppxcls.load_weights(model, file)
    for key, tensor in model.state_dict().items():
        assert np.array_equal(tensor.numpy(), values[key].astype(np.float32))


@pytest.mark.parametrize(
    ("dtype", "type_name"), [(np.int32, "I32"), (np.int64, "I64"), (np.uint8, "U8"), (np.uint16, "U16")]
)
def test_integers_are_no_weights(dtype: type, type_name: str, state: State, tmp_path: Path) -> None:
    values = {key: np.abs(value).astype(dtype) for key, value in state.items()}
    pickled_file, file = tmp_path / "w.pdparams", tmp_path / "w.safetensors"
    write_safetensors(file, values, type_name)
    message = r"8 of 8 tensors are u?int\d+ in the file, float32 in the model: 0.weight, 0.bias, "
    with pytest.raises(ppxcls.CheckpointError, match=rf"w.safetensors: {message}"):
        ppxcls.load_weights(network(), file)
    if dtype is not np.uint16:  # Paddle writes bfloat16 as such integers
        pickled_file.write_bytes(pickle.dumps(values, 4))
        with pytest.raises(ppxcls.CheckpointError, match=rf"w.pdparams: {message}"):
            ppxcls.load_weights(network(), pickled_file)


def test_types_that_numpy_does_not_have(state: State, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    write_safetensors(file, {key: value.astype(np.uint8) for key, value in state.items()}, "F8_E4M3")
    with pytest.raises(ppxcls.CheckpointError, match=r"has the type F8_E4M3; expected one of F64, F3"):
        ppxcls.load_weights(network(), file)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_weights_that_are_not_finite(number: float, dtype: type, state: State, tmp_path: Path) -> None:
    values = {key: value.astype(dtype) for key, value in state.items()}
    values["0.weight"][1, 2, 0, 0] = number
    values["1._mean"][3] = number
    file = tmp_path / "w.pdparams"
    write_state(file, values)
    model = network()
    weights = model.state_dict()["3.weight"].numpy()
    with pytest.raises(ppxcls.CheckpointError) as caught:
        ppxcls.load_weights(model, file)
    reason = "2 of 8 tensors have values that are not finite (NaN or infinity): 0.weight, 1._mean"
    assert str(caught.value) == f"{file}: {reason}"
    assert np.array_equal(model.state_dict()["3.weight"].numpy(), weights), "nothing is set"


def test_numbers_beyond_float32(state: State, tmp_path: Path) -> None:
    values = {key: value.astype(np.float64) for key, value in state.items()}
    values["3.bias"][0] = 1e300
    write_state(tmp_path / "w.pdparams", values)
    with pytest.raises(ppxcls.CheckpointError, match=r"1 of 8 tensors .* not finite .*: 3.bias$"):
        ppxcls.load_weights(network(), tmp_path / "w.pdparams")


def test_a_classifier_that_is_left_out_may_have_any_values(state: State, tmp_path: Path) -> None:
    state["3.weight"], state["3.bias"] = np.full((4, 9), np.nan, np.float32), np.zeros(9, np.int64)
    write_state(tmp_path / "w.pdparams", state)
    model = network()
    assert len(ppxcls.load_weights(model, tmp_path / "w.pdparams", keep_trunk=True)) == 2
    assert np.array_equal(model.state_dict()["0.weight"].numpy(), state["0.weight"])


def test_numbers_of_an_optimizer() -> None:
    value = np.array([1.5, -2.25, 0.0], np.float32)
    for converted in (value.astype(np.float16), value.astype(np.float64), truncated_bits(value)):
        assert as_float32_array(converted).dtype == np.float32
        assert np.array_equal(as_float32_array(converted), value)
    assert as_float32_array(np.array([3], np.int64)).dtype == np.int64


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_a_checkpoint_in_another_type_is_resumed(
    dtype: type, small: Callable[..., Path], tmp_path: Path
) -> None:
    """Weights, their average, and the optimizer's state."""
    keys = {
        "EMA": {"decay": 0.9},
        "Optimizer": {"name": "AdamW", "lr": {"name": "ConstLR", "learning_rate": 0.01}},
    }
    trainer = ppxcls.build_trainer(ppxcls.load_config(small(**keys)))
    trainer.fit()
    snapshot, manifest = read_snapshot(trainer.output_dir / "latest")
    parts = {
        part: {
            key: value.astype(dtype) if isinstance(value, np.ndarray) else value
            for key, value in state.items()
        }
        for part, state in snapshot.parts.items()
    }
    assert parts.keys() == {".pdparams", ".pdopt", ".pdema"}
    facts = {key: value for key, value in manifest.items() if key not in ("parts", "format", "progress")}
    write_checkpoint([tmp_path / "other"], parts, manifest=snapshot.manifest(facts))
    keys |= {"Global.checkpoints": str(tmp_path / "other"), "Global.epochs": 3}
    config = ppxcls.load_config(small(**keys), [f"Global.output_dir={tmp_path}/again"])
    resumed = ppxcls.build_trainer(config)
    learner = resumed.learner
    assert learner.average
    for key, tensor in learner.network.state_dict().items():
        assert np.array_equal(tensor.numpy(), parts[".pdparams"][key].astype(np.float32)), key
        average = learner.average.state_dict()[key]
        assert np.array_equal(average, parts[".pdema"][key].astype(np.float32)), key
    resumed.fit()
    assert resumed.progress.epoch == 4
