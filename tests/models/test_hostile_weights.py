"""Files of other formats that attack their readers.

Links out of an HDF5 file, and safetensors headers with invalid entries.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ppxcls
from ppxcls.models.foreign_weights import read_foreign_weights

h5py = pytest.importorskip("h5py")
pytest.importorskip("safetensors")


def external_link(stored: Any, other: Path) -> None:
    stored["layers/conv2d/vars/0"] = h5py.ExternalLink(str(other), "/secret")


def soft_link(stored: Any, other: Path) -> None:
    stored["secret"] = np.zeros(3, np.float32)
    stored["layers/conv2d/vars/0"] = h5py.SoftLink("/secret")


def linked_group(stored: Any, other: Path) -> None:
    stored["layers/conv2d"] = h5py.ExternalLink(str(other), "/")


def linked_layers(stored: Any, other: Path) -> None:
    del stored["layers"]
    stored["layers"] = h5py.ExternalLink(str(other), "/")


def external_storage(stored: Any, other: Path) -> None:
    stored["layers/conv2d/vars"].create_dataset("0", (8,), "u1", external=[(str(other), 0, 8)])


def virtual(stored: Any, other: Path) -> None:
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource(str(other), "secret", (3,))
    stored["layers/conv2d/vars"].create_virtual_dataset("0", layout)


def text(stored: Any, other: Path) -> None:
    stored["layers/conv2d/vars/0"] = "a text"


def enormous(stored: Any, other: Path) -> None:
    stored["layers/conv2d/vars"].create_dataset("0", (1 << 40,), "f4", chunks=(1 << 20,))


def no_group(stored: Any, other: Path) -> None:
    stored["layers/conv2d/vars/0"] = np.zeros(3, np.float32)
    stored["layers/dense"] = np.zeros(3, np.float32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (external_link, "refused, 0 is a link to .*other.h5"),
        (soft_link, "refused, 0 is a link to another place"),
        (linked_group, "refused, conv2d is a link to .*other.h5"),
        (linked_layers, "refused, layers is a link to .*other.h5"),
        (external_storage, "refused, a variable's numbers are not in the file"),
        (virtual, "refused, a variable's numbers are not in the file"),
        (text, "refused, a variable of object"),
        (enormous, "refused, a variable of float32 and 1,099,511,627,776 numbers"),
        (no_group, "vars is expected in a group"),
    ],
)
def test_only_what_is_in_the_file_is_read(
    make: Callable[[Any, Path], None], message: str, tmp_path: Path
) -> None:
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as stored:
        stored["secret"] = np.arange(3, dtype=np.float32)
    file = tmp_path / "w.h5"
    with h5py.File(file, "w") as stored:
        stored.create_group("layers/conv2d/vars") if make not in (linked_group,) else stored.create_group(
            "layers"
        )
        make(stored, other)
    with pytest.raises(ppxcls.CheckpointError, match=f"w.h5: {message}"):
        read_foreign_weights(file)


def tensor(offsets: list[int], dtype: str = "F32", shape: list[int] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [2] if shape is None else shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"a": tensor([0, 8]), "b": tensor([4, 12])}, bytes(12)),  # overlapping
        ({"a": tensor([0, 8]), "b": tensor([0, 8])}, bytes(8)),
        ({"a": tensor([8, 16])}, bytes(8)),  # outside
        ({"a": tensor([0, 1 << 62])}, bytes(8)),
        ({"a": tensor([8, 0])}, bytes(8)),
        ({"a": tensor([0, 8], shape=[3])}, bytes(8)),
        ({"a": tensor([0, 8], shape=[-2])}, bytes(8)),
        ({"a": tensor([0, 8], dtype="O")}, bytes(8)),
        ({"a": tensor([0, 8], shape=[1 << 40, 1 << 40])}, bytes(8)),
        ({"a": 3}, b""),
        ([], b""),
    ],
)
def test_headers_that_lie(header: Any, data: bytes, tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    file = tmp_path / "w.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    with pytest.raises(ppxcls.CheckpointError, match="w.safetensors: ") as caught:
        read_foreign_weights(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [0, 5, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_a_header_of_any_size(length: int, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(ppxcls.CheckpointError, match="w.safetensors: "):
        read_foreign_weights(file)
