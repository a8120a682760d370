"""Files that are no weights, under the names of weights: each message tells what the file is."""

from __future__ import annotations

import functools
import gzip
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from paddle import nn

import ppxcls
from ppxcls.checkpoints.wrong_files import wrong_kind
from ppxcls.deploy.runners import onnx_runner
from ppxcls.models.weights import load_weights
from tests.conftest import ROOT

EXTENSIONS = (".pdparams", ".pth", ".safetensors", ".h5", ".hdf5", ".keras", ".onnx", "")


def zip_file() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.txt", "a")
    return stream.getvalue()


CONTENTS = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 3\n": "a pointer of Git LFS",
    b"<!DOCTYPE html><html>": "an HTML page, such as an error page of a download",
    gzip.compress(b"abc"): "a gzip archive",
    zip_file(): "a ZIP archive",
    b"hello there\n": "a text",
    b'{"message": "Not Found"}': "a JSON text",
    b"": "an empty file",
}


def message_of(file: Path) -> str:
    read = onnx_runner if file.suffix == ".onnx" else functools.partial(load_weights, nn.Linear(2, 2))
    with pytest.raises(ppxcls.CheckpointError) as caught:
        read(file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_each_kind_of_file_is_told(extension: str, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    pytest.importorskip("safetensors")
    pytest.importorskip("onnxruntime")
    file = tmp_path / f"w{extension}"
    form = "an ONNX model" if extension == ".onnx" else "a file of weights"
    for content, kind in CONTENTS.items():
        file.write_bytes(content)
        expected = f"{file}: not {form}, but {kind}"
        if kind == "a ZIP archive" and extension in (".pth", ""):
            expected = f"{file}: refused, not a file of weights: it is an archive without torch's data"
        if kind == "a ZIP archive" and extension == ".keras":
            expected = f"{file}: not a file of weights, but an archive without model.weights.h5"
        assert message_of(file).startswith(expected)


def test_weights_under_the_name_of_another_format(tmp_path: Path) -> None:
    numpy_weights = {"weight": np.zeros((2, 2), np.float32)}
    safetensors = pytest.importorskip("safetensors.numpy")
    (tmp_path / "a.pdparams").write_bytes(safetensors.save(numpy_weights))
    assert message_of(tmp_path / "a.pdparams").endswith("but a safetensors file; name it .safetensors")
    (tmp_path / "b.safetensors").write_bytes(pickle.dumps(numpy_weights))
    assert message_of(tmp_path / "b.safetensors").endswith(
        "but a pickle; name it .pdparams, or .pth if torch wrote it"
    )
    (tmp_path / "c.pdparams").write_bytes((ROOT / "tests/fixtures/timm_checkpoint.pth.tar").read_bytes())
    assert message_of(tmp_path / "c.pdparams").endswith("but a file of torch; name it .pth")


@pytest.mark.parametrize("extension", [".h5", ".hdf5", ".keras"])
def test_hdf5_is_the_right_format_of_keras(extension: str) -> None:
    assert wrong_kind(b"\x89HDF\r\n\x1a\n", extension) is None
    assert wrong_kind(b"\x89HDF\r\n\x1a\n", ".pth") == "an HDF5 file"


def test_a_damaged_file_of_its_own_format_keeps_the_reason(tmp_path: Path) -> None:
    whole = (ROOT / "tests/fixtures/timm_checkpoint.pth.tar").read_bytes()
    (tmp_path / "a.pth").write_bytes(whole[:-200])
    assert "refused, not a file of weights: it is a damaged archive" in message_of(tmp_path / "a.pth")
    (tmp_path / "t.pdparams").write_bytes(b"cos\nsystem\n(S'true'\ntR.")  # a text may begin so too
    assert "it asks for an unknown name" in message_of(tmp_path / "t.pdparams")
    (tmp_path / "b.pdparams").write_bytes(b"\x80\x02cos\nsystem\n(U\x04truetR.")
    assert "refused, not a file of weights: it asks for os.system" in message_of(tmp_path / "b.pdparams")
