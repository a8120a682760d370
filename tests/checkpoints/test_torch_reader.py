"""torch's files: two that torch 2.13 has written, and others that are damaged or hostile."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppxcls.checkpoints.pickle_whitelist import RefusedError
from ppxcls.checkpoints.torch_reader import OpaqueValue, read_torch
from tests.conftest import ROOT

FILES = ("timm_checkpoint.pth.tar", "timm_checkpoint_of_old_torch.pth.tar")
SHAPES = {
    "0.weight": (2, 3, 1, 1),
    "0.bias": (2,),
    "1.weight": (2,),
    "1.bias": (2,),
    "1.running_mean": (2,),
    "1.running_var": (2,),
    "3.weight": (2, 2),
    "3.bias": (2,),
}


def content(name: str) -> bytes:
    return (ROOT / "tests/fixtures" / name).read_bytes()


def expected_state() -> dict[str, np.ndarray]:
    """The file's numbers are 0, 1/8, 2/8 and so on, in the order of the keys."""
    state, start = {}, 0
    for key, shape in SHAPES.items():
        count = int(np.prod(shape))
        state[key] = (np.arange(start, start + count, dtype=np.float32) / 8).reshape(shape)
        start += count
    return state


@pytest.mark.parametrize("name", FILES)
def test_files_of_torch(name: str) -> None:
    tree = read_torch(content(name))
    assert tree["epoch"] == 3
    assert tree["metric"] == 77.125
    assert tree["args"] == OpaqueValue("argparse.Namespace")
    assert tree["optimizer"]["param_groups"] == [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0]}]
    assert np.array_equal(tree["optimizer"]["state"][0]["exp_avg"], np.array([30, 31], np.float32) / 8)
    for part, offset in (("state_dict", 0), ("state_dict_ema", 100)):
        state = tree[part]
        assert state.pop("1.num_batches_tracked") == 5
        assert state.keys() == SHAPES.keys()
        for key, value in expected_state().items():
            assert state[key].dtype == np.float32
            assert np.array_equal(state[key], value + offset), key


class Call:
    """An object whose pickle calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def archive(root: Any, storages: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    """An archive as torch writes it. The text ``storage KEY`` in the root becomes a storage."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, part: Any) -> Any:
            if isinstance(part, str) and part.startswith("storage "):
                key = part.removeprefix("storage ")
                return "storage", FloatStorage, key, "cpu", len(storages.get(key, b"")) // 4
            return None

    stream, buffer = io.BytesIO(), io.BytesIO()
    Pickler(buffer, 2).dump(root)
    with zipfile.ZipFile(stream, "w", compression) as target:
        target.writestr("archive/data.pkl", buffer.getvalue())
        for key, data in storages.items():
            target.writestr(f"archive/data/{key}", data)
    return stream.getvalue()


def _rebuild_tensor_v2(*arguments: Any) -> None:
    raise AssertionError("called")


class FloatStorage:
    """Stands for torch's class of this name."""


FloatStorage.__module__ = _rebuild_tensor_v2.__module__ = "torch"


@pytest.fixture(autouse=True)
def torch_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module ``torch`` with the names that the pickles refer to."""
    import sys
    import types

    module = types.ModuleType("torch")
    module._rebuild_tensor_v2, module.FloatStorage = _rebuild_tensor_v2, FloatStorage  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", module)


def tensor(offset: Any, shape: Any, strides: Any, key: str = "0") -> Call:
    return Call(_rebuild_tensor_v2, f"storage {key}", offset, shape, strides, False, {})


NUMBERS = np.arange(12, dtype=np.float32)


@pytest.mark.parametrize(
    ("offset", "shape", "strides", "expected"),
    [
        (0, (3, 4), (4, 1), NUMBERS.reshape(3, 4)),
        (0, (4, 3), (1, 4), NUMBERS.reshape(3, 4).T),
        (6, (2, 3), (3, 1), NUMBERS[6:].reshape(2, 3)),
        (5, (), (), np.float32(5)),
        (0, (0, 4), (4, 1), np.zeros((0, 4), np.float32)),
    ],
)
def test_views_of_a_storage(offset: int, shape: Any, strides: Any, expected: Any) -> None:
    tree = read_torch(archive({"w": tensor(offset, shape, strides)}, {"0": NUMBERS.tobytes()}))
    assert np.array_equal(tree["w"], expected)


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(0, (13,), (1,)), (1, (12,), (1,)), (-1, (2,), (1,)), (0, (2, 2), (11, 1)), (0, (1 << 40,), (0,))],
)
def test_views_that_do_not_fit(offset: int, shape: Any, strides: Any) -> None:
    with pytest.raises(RefusedError, match="does not fit its storage"):
        read_torch(archive({"w": tensor(offset, shape, strides)}, {"0": NUMBERS.tobytes()}))


@pytest.mark.parametrize("shape", [(-1,), ("a",), [3], (True,), (1,) * 9])
def test_shapes_that_are_none(shape: Any) -> None:
    tree = read_torch(archive({"w": tensor(0, shape, shape)}, {"0": NUMBERS.tobytes()}))
    assert isinstance(tree["w"], OpaqueValue)


def test_nothing_is_called(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    root = {
        "w": tensor(0, (12,), (1,)),
        "a": Call(os.mkdir, str(mark)),
        "b": Call(eval, "1 + 1"),
        "c": os.mkdir,
    }
    tree = read_torch(archive(root, {"0": NUMBERS.tobytes()}))
    assert not mark.exists()
    assert tree["a"] == tree["c"] == OpaqueValue("posix.mkdir")
    assert tree["b"] == OpaqueValue("__builtin__.eval")
    assert np.array_equal(tree["w"], NUMBERS)


def test_archives_that_are_none() -> None:
    plain = io.BytesIO()
    with zipfile.ZipFile(plain, "w") as target:
        target.writestr("photos/a.jpg", b"a")
    program = io.BytesIO()
    with zipfile.ZipFile(program, "w") as target:
        target.writestr("net/constants.pkl", b"a")
        target.writestr("net/data.pkl", pickle.dumps({}, 2))
    root = {"w": tensor(0, (12,), (1,))}
    for data, message in (
        (plain.getvalue(), "an archive without torch's data"),
        (program.getvalue(), "a TorchScript program"),
        (archive(root, {}), "the part 'archive/data/0' is missing"),
        (archive(root, {"0": bytes(48)}, compression=zipfile.ZIP_DEFLATED), "a compressed archive"),
        (archive(root, {"0": bytes(8)}), "does not fit its storage"),
        (
            archive({f"w{i}": tensor(0, (9000,), (1,)) for i in range(40)}, {"0": bytes(36000)}),
            "again and ag",
        ),
        (pickle.dumps({"a": 1}, 2), "not written by torch.save"),
        (b"", "ends too early"),
        (b"PK\x03\x04", "a damaged archive"),
    ):
        with pytest.raises(RefusedError, match=message):
            read_torch(data)


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_refused_or_read(name: str) -> None:
    """Any outcome but an error of another kind, or a call, is right."""
    original = content(name)
    rng = np.random.default_rng(0)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(400):
        data = bytearray(original)
        for _ in range(int(rng.integers(1, 6))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        end = len(data) if rng.random() < 0.8 else int(rng.integers(len(data)))
        try:
            read_torch(bytes(data[:end]))
            outcomes["read"] += 1
        except RefusedError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20, outcomes
