"""An export is whole or not at all, and its parts are compared with their digests."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import ppxcls
from ppxcls.deploy.metadata import MAX_METADATA_BYTES, METADATA_FILE, ExportMetadata, read_metadata
from ppxcls.deploy.whole_export import (
    ReplacedError,
    check_parts,
    commit_export,
    has_part,
    metadata_beside,
    read_export_part,
    staging_folder,
)
from tests.conftest import run_tool


def write(folder: Path, model: str, *names: str) -> None:
    """Writes an export whose parts contain the name of their model."""
    metadata = ExportMetadata(model, f"{model}.pdparams (epoch 3)", [{"DecodeImage": {}}], ["a"], 1)
    with staging_folder(folder) as staging:
        for name in names:
            (staging / name).write_bytes(f"{model} {name}".encode())
        commit_export(folder, staging, metadata.as_dict())


def test_the_metadata_has_the_size_and_digest_of_each_part(tmp_path: Path) -> None:
    write(tmp_path, "A", "inference.onnx", "inference.yml")
    values = json.loads((tmp_path / METADATA_FILE).read_text())
    data = b"A inference.onnx"
    assert values["parts"]["inference.onnx"] == {"size": 16, "sha256": hashlib.sha256(data).hexdigest()}
    assert sorted(values["parts"]) == ["inference.onnx", "inference.yml"]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["inference.onnx", "inference.yml", METADATA_FILE]
    assert read_export_part(tmp_path, "inference.onnx", read_metadata(tmp_path)) == data


def test_the_same_parts_give_the_same_metadata(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write(tmp_path / folder, "A", "inference.onnx")
    contents = [(tmp_path / folder / METADATA_FILE).read_bytes() for folder in ("a", "b")]
    assert contents[0] == contents[1]


def test_a_part_that_is_not_yet_moved_is_read(tmp_path: Path) -> None:
    write(tmp_path, "A", "inference.onnx", "inference.pdiparams")
    write(tmp_path / "other", "B", "inference.onnx", "inference.pdiparams")
    digests = "".join(
        f"{name} {hashlib.sha256(f'B {name}'.encode()).hexdigest()}\n"
        for name in ("inference.onnx", "inference.pdiparams")
    )
    save_folder = tmp_path / f".export-{hashlib.sha256(digests.encode()).hexdigest()[:16]}"
    (tmp_path / "other").rename(save_folder)
    (save_folder / METADATA_FILE).rename(
        tmp_path / METADATA_FILE
    )  # the moment at which the export becomes valid
    metadata = read_metadata(tmp_path)
    assert read_export_part(tmp_path, "inference.onnx", metadata) == b"B inference.onnx"
    assert (tmp_path / "inference.onnx").read_bytes() == b"A inference.onnx"
    write(tmp_path, "C", "inference.onnx")
    assert sorted(f.name for f in tmp_path.iterdir() if f.name.startswith(".")) == []


def test_a_format_that_a_user_removed_is_not_missed(tmp_path: Path) -> None:
    write(tmp_path, "A", "inference.onnx", "inference.pdiparams")
    (tmp_path / "inference.onnx").unlink()
    metadata = read_metadata(tmp_path)
    check_parts(tmp_path, metadata)
    assert not has_part(tmp_path, "inference.onnx", metadata)
    with pytest.raises(ppxcls.CheckpointError, match=r"inference\.onnx: is missing; export again"):
        read_export_part(tmp_path, "inference.onnx", metadata)


def test_an_export_of_an_earlier_version_has_no_digests(tmp_path: Path) -> None:
    metadata = ExportMetadata("A", "a.pdparams", [{"DecodeImage": {}}], ["a"], 1)
    (tmp_path / METADATA_FILE).write_text(json.dumps(metadata.as_dict()))
    for name in ("inference.onnx", "inference.pdiparams"):
        (tmp_path / name).write_bytes(b"earlier")
    assert read_export_part(tmp_path, "inference.onnx", read_metadata(tmp_path)) == b"earlier"
    write(tmp_path, "B", "inference.onnx")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["inference.onnx", METADATA_FILE]


def test_the_export_of_another_model_is_replaced_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr("ppxcls.deploy.whole_export.logger.warning", warnings.append)
    write(tmp_path, "A", "inference.onnx")
    write(tmp_path, "A", "inference.onnx")
    assert warnings == []
    write(tmp_path, "B", "inference.onnx")
    assert warnings == [f"{tmp_path}: replaces the export of A from A.pdparams"]
    (tmp_path / "inference.onnx").write_bytes(b"simplified")
    write(tmp_path, "B", "inference.onnx")
    assert warnings[1:] == [
        f"{tmp_path}/inference.onnx: is replaced, although it was changed after its export"
    ]


def test_after_an_error_nothing_remains(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"other\.onnx"):
        write(tmp_path / "new/export", "A", "inference.onnx", "other.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_export_is_one_line_of_the_command(tmp_path: Path) -> None:
    write(tmp_path, "A", "inference.onnx")
    (tmp_path / "inference.onnx").write_bytes(b"B inference.onnx")
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((9, 9, 3), np.uint8))
    result = run_tool("infer", "--exported", tmp_path, tmp_path / "a.png")
    assert result.returncode == 1
    message = f"is damaged: its size or SHA-256 is not the one in {METADATA_FILE}; export again"
    assert result.stderr == f"error: {tmp_path}/inference.onnx: {message}\n"
    assert result.stdout == ""


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"model": "x"}', None])
def test_damaged_metadata_do_not_switch_off_the_digests(content: str | None, tmp_path: Path) -> None:
    write(tmp_path, "A", "inference.onnx")
    file = tmp_path / METADATA_FILE
    file.write_text(file.read_text().replace('"size"', '"sizf"') if content is None else content)
    message = r"inference_config\.json: .*; inference\.onnx alone can be used in another folder"
    with pytest.raises(ppxcls.DataError, match=message):
        ppxcls.load(tmp_path / "inference.onnx")
    assert metadata_beside(tmp_path / "other.onnx") is None
    file.unlink()
    assert metadata_beside(tmp_path / "inference.onnx") is None
    file.symlink_to("nowhere")
    with pytest.raises(ppxcls.DataError, match="no inference_config.json"):
        metadata_beside(tmp_path / "inference.onnx")


def test_an_export_that_is_replaced_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its metadata were read before the new export was committed, and its parts after that."""
    write(tmp_path, "A", "inference.onnx")
    metadata = read_metadata(tmp_path)
    write(tmp_path, "B", "inference.onnx")
    with pytest.raises(ReplacedError, match=r"inference\.onnx: was replaced by another export"):
        read_export_part(tmp_path, "inference.onnx", metadata)
    answers = [metadata, read_metadata(tmp_path)]
    monkeypatch.setattr("ppxcls.deploy.build.read_metadata", lambda _: answers.pop(0))
    with pytest.raises(ppxcls.CheckpointError, match="not an ONNX model") as caught:
        ppxcls.load(tmp_path)
    assert answers == []
    assert not isinstance(caught.value, ReplacedError)


def test_metadata_that_no_reader_would_accept_are_not_written(tmp_path: Path) -> None:
    metadata = ExportMetadata("A", "a", [{"DecodeImage": {}}], ["a" * MAX_METADATA_BYTES], 1)
    with (
        pytest.raises(ppxcls.CheckpointError, match=r"bytes, mostly of class names, expected at most"),
        staging_folder(tmp_path / "out") as staging,
    ):
        commit_export(tmp_path / "out", staging, metadata.as_dict())
    assert not (tmp_path / "out").exists()
    metadata = ExportMetadata("A", "a", [{"DecodeImage": {}}], ["a" * 80] * 100_000, 100_000)
    with staging_folder(tmp_path / "out") as staging:
        commit_export(tmp_path / "out", staging, metadata.as_dict())
    assert len(read_metadata(tmp_path / "out").class_names) == 100_000


def test_a_description_is_short() -> None:
    """A stranger's metadata may have long names, and a log line has up to 500 characters."""
    names = ["x" * 50_000, "y" * 50_000]
    text = ExportMetadata("m" * 50_000, "w" * 50_000, [{"DecodeImage": {}}], names, 2).describe()
    assert len(text) <= 400
    text = ExportMetadata("Xception41", "best_model", [{"DecodeImage": {}}], ["cat", "dog"], 2).describe()
    assert text == "Xception41 exported from best_model, images as they are, 2 classes: cat, dog"
