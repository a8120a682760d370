"""Temporary folders where disks are read-only."""

from __future__ import annotations

import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from ppxcls.data.decode import decode_image
from ppxcls.system import temporary_folder as module
from ppxcls.system.temporary_folder import temporary_folder


def no_folder() -> str:
    raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")


def test_it_is_private_and_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with temporary_folder() as folder:
        assert (folder.parent, folder.stat().st_mode & 0o777) == (tmp_path, 0o700)
        (folder / "file").touch()
    assert list(tmp_path.iterdir()) == []


def test_without_a_disk_it_is_in_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", no_folder)
    monkeypatch.setattr(module, "_SHARED_FOLDER", tmp_path)
    picture = cv2.imencode(".hdr", np.ones((4, 5, 3), np.float32))[1].tobytes()
    with temporary_folder() as folder:
        assert folder.parent == tmp_path
        assert decode_image(picture).shape == (4, 5, 3)
    monkeypatch.setattr(module, "_SHARED_FOLDER", tmp_path / "nowhere")
    with pytest.raises(OSError, match="set TMPDIR to one"), temporary_folder():
        pass
    with pytest.raises(ValueError, match="a Radiance picture must be written to a file: .*set TMPDIR"):
        decode_image(picture)
