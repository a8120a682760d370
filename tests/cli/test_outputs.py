"""Every verb checks where its results go before it works, and writes nothing if that can't be written."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ppxcls
from ppxcls.system.atomic_files import whole_text_file, write_output
from ppxcls.system.output_paths import check_output_file, check_output_folder
from tests.conftest import ROOT, run_tool, write_images


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images and a file where a folder is expected."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "data", 6)
    (tmp_path / "file").touch()
    return tmp_path


@pytest.mark.parametrize("name", ["file", "file/a", "file/a/b"])
def test_a_file_in_the_way_of_a_folder(name: str, place: Path) -> None:
    with pytest.raises(NotADirectoryError, match=f"expected a folder for the results: '{place}/file'"):
        check_output_folder(name)
    with pytest.raises(NotADirectoryError):
        check_output_file(f"{name}/result.csv")


def test_a_folder_that_can_not_be_written(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError) as raised:
        check_output_folder("new/deeper")
    assert (raised.value.errno, raised.value.filename) == (errno.EACCES, str(place))
    with pytest.raises(PermissionError):
        check_output_file("new/result.csv")


def test_devices_and_pipes_need_no_writable_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary user can't create files in ``/dev``."""
    os.mkfifo(place / "pipe")
    monkeypatch.setattr(os, "access", lambda path, _: not Path(path).is_dir())
    for name in ("pipe", place / "pipe", "/dev/null", os.devnull):
        check_output_file(name)
    with pytest.raises(PermissionError, match="nothing can be written to this folder"):
        check_output_file("file")
    with pytest.raises(IsADirectoryError):
        check_output_file("/dev")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="the file can't be written: 'pipe'"):
        check_output_file("pipe")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system has no names of open files")
def test_the_name_of_an_open_file_stays(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``/dev/stdout`` of ``ppxcls infer --output /dev/stdout >> file``."""
    monkeypatch.setattr(os, "access", lambda path, _: not Path(path).is_dir())
    (place / "file").write_text("earlier\n")
    with open(place / "file", "a") as stream:
        name = Path(f"/proc/self/fd/{stream.fileno()}")
        check_output_file(name)
        write_output(name, "new\n")
        with whole_text_file(name) as text_stream:
            text_stream.write("newer\n")
    assert (place / "file").read_text() == "earlier\nnew\nnewer\n"


def test_nothing_is_written_by_the_check_of_a_folder(place: Path) -> None:
    check_output_folder("new/deeper")
    assert not (place / "new").exists()
    check_output_file("other/result.csv")
    assert (place / "other").is_dir()
    with pytest.raises(
        IsADirectoryError, match="expected a file for the results, received a folder: 'other'"
    ):
        check_output_file("other")


@pytest.mark.parametrize(
    "words",
    [
        ["lists", "data", "-o", "file/lists"],
        ["pack", "data/train_list.txt", "--image-root", "data", "-o", "file/packed"],
        ["check", "-c", "CONFIG", "--json", "file/report.json"],
        ["infer", "-c", "CONFIG", "data", "--output", "file/answers.csv"],
        ["export", "-c", "CONFIG", "-o", "Global.save_inference_dir=file/inference"],
        ["report", "a", "b", "--output", "file/page.html"],
        ["convert", "gone.pdparams", "--model", "Xception41", "-o", "file/weights.pdparams"],
    ],
    ids=lambda words: words[0],
)
def test_a_verb_looks_at_its_output_first(
    words: list[str], place: Path, write_config: Callable[..., Path]
) -> None:
    """The other arguments may be wrong too: the output is looked at before any work."""
    config = str(write_config())
    before = sorted(place.rglob("*"))
    words = [config if word == "CONFIG" else word for word in words]
    code = f"import os, sys; os.chdir({str(place)!r}); from ppxcls.cli.verbs import main; main()"
    result = run_tool_in(code, words)
    assert result.returncode == 1, result.stdout + result.stderr
    assert result.stderr.splitlines()[-1].endswith(f"expected a folder for the results: '{place}/file'")
    assert sorted(place.rglob("*")) == before


def run_tool_in(code: str, words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_a_report_of_a_check_gets_its_folder(place: Path, write_config: Callable[..., Path]) -> None:
    result = run_tool("check", "-c", write_config(), "--json", place / "new/report.json")
    assert result.returncode in (0, 1), result.stderr
    assert "found" in json.loads((place / "new/report.json").read_text(encoding="utf-8"))


def test_an_earlier_run_stays_if_the_new_one_can_not_start(
    small: Callable[..., Path], tmp_path: Path
) -> None:
    """The first batch of the new run is read before anything is moved."""
    run = ppxcls.build_trainer(ppxcls.load_config(small()))
    run.fit()
    before = {
        file.name: file.stat().st_mtime_ns for file in run.output_dir.iterdir() if file.suffix != ".log"
    }
    for key in ("cls_label_path", "image_root"):
        overrides = [f"DataLoader.Train.dataset.{key}={tmp_path / 'gone'}"]
        with pytest.raises(ppxcls.DataError, match="gone"):
            ppxcls.build_trainer(ppxcls.load_config(small(), overrides)).fit()
        names = {file.name: file.stat().st_mtime_ns for file in run.output_dir.iterdir()}
        assert {name: time for name, time in names.items() if not name.endswith((".log", ".lock"))} == {
            name: time for name, time in before.items() if not name.endswith(".lock")
        }
    ppxcls.build_trainer(ppxcls.load_config(small())).fit()
    assert (run.output_dir / "earlier_1/latest.json").exists()
