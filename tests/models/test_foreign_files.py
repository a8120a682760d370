"""Files of other programs: their format by content, their network, their heads and further layers."""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from paddle import nn

import ppxcls
from tests.models import written_files as files


class Named(nn.Layer):
    """A network with names as Xception has them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2D(3, 2, 1)
        self.fc = nn.Linear(2, 2)


NUMBERS = {"conv1.weight": np.full((2, 3, 1, 1), 4, np.float32), "conv1.bias": np.ones(2, np.float32)}
NUMBERS |= {"fc.weight": np.ones((2, 2), np.float32), "fc.bias": np.ones(2, np.float32)}


def write_safetensors(file: Path) -> None:
    pytest.importorskip("safetensors.numpy").save_file(NUMBERS, file)


@pytest.mark.parametrize(
    "write",
    [
        lambda file: files.write_torch(file, NUMBERS),
        lambda file: files.write_torch(file, NUMBERS, is_legacy=True),
        lambda file: file.write_bytes(pickle.dumps(NUMBERS, 4)),
        write_safetensors,
    ],
    ids=["zip", "legacy", "pdparams", "safetensors"],
)
@pytest.mark.parametrize("name", ["download", "0a1b2c", "weights", "full_c23.p", "best_model.v2"])
def test_the_content_tells_the_format_of_a_file_of_another_name(
    write: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    model = Named()
    assert ppxcls.load_weights(model, str(tmp_path / name)) == []
    assert (model.conv1.weight.numpy() == 4).all()


def test_a_file_of_another_network_says_which(tmp_path: Path) -> None:
    network = ppxcls.build_model("legacy_xception", class_num=3)
    state = {key: np.zeros(1, np.float32) for key in network.state_dict()}
    files.write_torch(tmp_path / "a.pth", files.torch_state(state))
    expected = (
        f"{tmp_path}/a.pth does not fit the model: it has the weights of legacy_xception, and the model is "
        "Xception41; name the file's network (Arch.name, --network, --model)"
    )
    for has_new_classifier in (False, True):
        model = ppxcls.build_model("Xception41", class_num=3)
        with pytest.raises(ppxcls.CheckpointError) as caught:
            ppxcls.load_weights(model, tmp_path / "a.pth", keep_trunk=has_new_classifier)
        assert str(caught.value) == expected
    # It has the same keys as Keras's network, so only shapes can differ.
    with pytest.raises(ppxcls.CheckpointError, match=r"conv1.weight is \[1\] in the file"):
        ppxcls.load_weights(ppxcls.build_model("Xception", class_num=3), tmp_path / "a.pth")


def whole_module(*, is_legacy: bool) -> bytes:
    """A pickled module of a detector, as torch writes it: its class, then its state."""
    kind = b"cnetwork.models\nTransferModel\n"
    if is_legacy:  # with the source code of the class
        text = b"".join(
            b"X" + struct.pack("<I", len(part)) + part for part in (b"models.py", b"class T: ...")
        )
        kind = b"(X\x06\0\0\0module" + kind + text + b"tQ"
    return b"\x80\x02" + kind + b")\x81}X\x08\0\0\0training\x88sb."


@pytest.mark.parametrize("is_legacy", [False, True])
@pytest.mark.parametrize("name", ["full_c23.p", "detector.pth"])
def test_a_whole_module_is_refused_in_one_line(is_legacy: bool, name: str, tmp_path: Path) -> None:
    files.write_torch(tmp_path / name, {}, is_legacy=is_legacy)
    data = (tmp_path / name).read_bytes()
    if is_legacy:
        (tmp_path / name).write_bytes(data.replace(b"\x80\x02}(u.", whole_module(is_legacy=True)))
    else:
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("archive/data.pkl", whole_module(is_legacy=False))
    with pytest.raises(ppxcls.CheckpointError) as caught:
        ppxcls.load_weights(Named(), tmp_path / name)
    assert str(caught.value) == (
        f"{tmp_path / name}: expected arrays by state key, received an object of "
        "network.models.TransferModel; save its state_dict() instead"
    )


HEADS = {
    "none": ({}, "the file has no classifier"),
    "another": (
        {"last_linear.0.weight": np.ones((5, 2), np.float32), "last_linear.2.weight": np.ones((9, 5), np.float32)},
        r"the file has another head, which is left out: last_linear.0.weight \[2, 5\], last_linear.2.weight \[5, 9\]",
    ),
    "of another size": (
        {"head.fc.weight": np.ones((7, 2), np.float32), "head.fc.bias": np.ones(7, np.float32)},
        r"fc.weight is \[2, 7\] in the file, \[2, 2\] in the model",
    ),
}  # fmt: skip


@pytest.mark.parametrize("head", HEADS)
def test_a_trunk_is_enough_to_start_a_training(head: str, tmp_path: Path) -> None:
    arrays, message = HEADS[head]
    trunk = {"conv1.weight": np.full((2, 3, 1, 1), 4, np.float32), "conv1.bias": np.ones(2, np.float32)}
    files.write_torch(tmp_path / "a.pth", {"state_dict": trunk | arrays})
    model = Named()
    before = model.fc.weight.numpy().copy()
    (note, *rest) = ppxcls.load_weights(model, tmp_path / "a.pth", keep_trunk=True)
    assert re.search(message, note)
    assert len(rest) == (head == "of another size")
    assert (model.conv1.weight.numpy() == 4).all()
    assert np.array_equal(model.fc.weight.numpy(), before)
    words = (
        "does not fit the model" if head == "of another size" else "has no classifier, so it can only start"
    )
    with pytest.raises(ppxcls.CheckpointError, match=words):
        ppxcls.load_weights(model, tmp_path / "a.pth")


def test_further_layers_are_named_if_they_are_left_out(tmp_path: Path) -> None:
    further = {"aux_head.weight": np.ones((5, 2), np.float32), "projector.bias": np.ones(2, np.float32)}
    files.write_torch(tmp_path / "a.pth", NUMBERS | further)
    model = Named()
    (note,) = ppxcls.load_weights(model, tmp_path / "a.pth", keep_trunk=True)
    assert note == (
        "the file has further layers, which are left out: aux_head.weight [2, 5], projector.bias [2]"
    )
    assert (model.fc.weight.numpy() == 1).all()
    with pytest.raises(ppxcls.CheckpointError, match="aux_head.weight is not in the model"):
        ppxcls.load_weights(Named(), tmp_path / "a.pth")


def test_a_part_of_a_classifier_is_named(tmp_path: Path) -> None:
    files.write_torch(tmp_path / "a.pth", {key: NUMBERS[key] for key in NUMBERS if key != "fc.bias"})
    model = Named()
    before = model.fc.weight.numpy().copy()
    assert ppxcls.load_weights(model, tmp_path / "a.pth", keep_trunk=True) == [
        "the file has only a part of a classifier, which is left out: fc.weight [2, 2]"
    ]
    assert np.array_equal(model.fc.weight.numpy(), before)


def test_a_wrong_trunk_is_named_even_if_the_classifier_is_new(tmp_path: Path) -> None:
    trunk = {"conv1.weight": np.ones((2, 3, 3, 3), np.float32), "conv2.bias": np.ones(2, np.float32)}
    files.write_torch(tmp_path / "a.pth", trunk)
    with pytest.raises(ppxcls.CheckpointError) as caught:
        ppxcls.load_weights(Named(), tmp_path / "a.pth", keep_trunk=True)
    for text in (
        "conv1.bias is not in the file",
        "conv2.bias is not in the model",
        "conv1.weight is [2, 3, 3, 3]",
    ):
        assert text in str(caught.value)
