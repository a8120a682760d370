"""Verbs on a disk that is full: the message names the file, and no half file is left."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ppxcls
from ppxcls.system.atomic_files import named_errors, whole_file, whole_text_file, write_output
from tests.conftest import ROOT, run_tool
from tests.test_disks import has_tmpfs, on_small_disk

NO_SPACE = "[Errno 28] No space left on device: "
needs_full_device = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")


@pytest.fixture
def run(small: Callable[..., Path]) -> Path:
    """The folder of a run."""
    trainer = ppxcls.build_trainer(ppxcls.load_config(small()))
    trainer.fit()
    return trainer.output_dir


def root_of(run: Path) -> Path:
    config = ppxcls.load_config(run)
    assert config.DataLoader
    assert config.DataLoader.Train
    return Path(config.DataLoader.Train.dataset["image_root"])


@has_tmpfs
@pytest.mark.parametrize(
    ("words", "file"),
    [
        ("infer -c {run} {root}/val --format csv --output {disk}/out.csv", "out.csv"),
        ("infer -c {run} {root}/val --format jsonl --output {disk}/out.jsonl", "out.jsonl"),
        ("check -c {run} --json {disk}/report.json", "report.json"),
        ("pack {root}/train_list.txt -o {disk}/pack", "pack/"),
        ("pack --unpack {pack} -o {disk}/images", "images/"),
        (
            "export -c {run} --format paddle -o Global.save_inference_dir={disk}/inference",
            "inference/inference.",
        ),
        (
            "export -c {run} --format onnx -o Global.save_inference_dir={disk}/inference",
            "inference/inference.",
        ),
        ("lists {folder} -o {disk}/lists", "lists/"),
        ("report {run} {run} --output {disk}/page.html", "page.html"),
        ("train -c {config} -o Global.output_dir={disk}/output", "output/"),
    ],
)
def test_a_full_disk(words: str, file: str, run: Path, tmp_path: Path) -> None:
    disk, root = tmp_path / "disk", root_of(run)
    if "{pack}" in words:
        assert run_tool("pack", root / "train_list.txt", "-o", tmp_path / "pack").returncode == 0
    if "{folder}" in words:
        for name in ("a", "b"):
            (tmp_path / "folder" / name).mkdir(parents=True)
            for i in range(150):  # the lists are longer than a page
                (tmp_path / "folder" / name / f"{'long_name_' * 9}{i}.png").write_bytes(b"x")
    words = words.format(
        run=run,
        root=root,
        disk=disk,
        config=tmp_path / "config.yaml",
        pack=tmp_path / "pack",
        folder=tmp_path / "folder",
    )
    result = on_small_disk(
        disk,
        "16k",
        f"""
        head -c 20000 /dev/zero > {disk}/fill 2> /dev/null || true
        {sys.executable} -m ppxcls {words} > {tmp_path}/out && exit 9 || echo "exit code $?"
        cd {disk}
        find . -type f ! -name fill
        """,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.startswith("exit code 1\n"), result.stdout + result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert "No space left on device" in errors[0]
    assert f"{disk}/{file}" in errors[0]
    assert "Traceback" not in result.stderr
    left_files = result.stdout.splitlines()[1:]
    assert [line for line in left_files if not line.endswith((".lock", "train.log"))] == []


@needs_full_device
@pytest.mark.parametrize("is_buffered", [False, True])
@pytest.mark.parametrize("words", [["list"], ["--help"], ["fit", "--help"], ["infer", "-c", "RUN", "IMAGE"]])
def test_a_full_disk_behind_standard_output(words: list[str], is_buffered: bool, run: Path) -> None:
    image = next((root_of(run) / "val").glob("*.png"))
    command = [sys.executable, "-m", "ppxcls", *words]
    command = [str(run) if word == "RUN" else str(image) if word == "IMAGE" else word for word in command]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    if not is_buffered:
        environment["PYTHONUNBUFFERED"] = "1"
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            command, check=False, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
        )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "error: [Errno 28] No space left on device: standard output"
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr


@needs_full_device
def test_a_device_is_written_directly() -> None:
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        write_output(Path("/dev/full"), "text")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)
    with whole_text_file(Path(os.devnull)) as stream:
        stream.write("text")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    assert not Path("/dev/full.new").exists()


def test_predictions_to_a_pipe_and_through_a_link(run: Path, tmp_path: Path) -> None:
    image = next((root_of(run) / "val").glob("*.png"))
    target, link = tmp_path / "target.csv", tmp_path / "link.csv"
    link.symlink_to(target)
    for output in (link, "/dev/stdout"):
        result = run_tool("infer", "-c", run, image, "--format", "csv", "--output", output)
        assert result.returncode == 0, result.stderr
    assert link.is_symlink()
    assert target.read_text() == result.stdout
    assert result.stdout.startswith("file_name,rank,class_id,label_name,score\n")


def write_and_raise(file: Path, error: BaseException) -> None:
    with whole_text_file(file) as stream:
        stream.write("new")
        raise error


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    for error in (ValueError("x"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")):
        with pytest.raises(type(error)):
            write_and_raise(file, error)
        assert [f.name for f in tmp_path.iterdir()] == ["a.txt"]
        assert file.read_text() == "old"
    with whole_text_file(file) as stream:
        stream.write("né\n")
    assert file.read_bytes() == b"n\xc3\xa9\n"


def test_errors_have_the_name_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    with pytest.raises(OSError, match="No space left") as caught, whole_file(file):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(file)
    for number in (errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS):
        with pytest.raises(OSError, match=os.strerror(number)) as caught, whole_file(file):
            raise OSError(number, os.strerror(number))
        assert (caught.value.errno, caught.value.filename) == (number, str(file))
    with pytest.raises(FileNotFoundError) as caught, whole_file(tmp_path / "missing/a.txt"):
        pass
    assert caught.value.filename == str(tmp_path / "missing/a.txt")
    with pytest.raises(PermissionError) as caught, named_errors(file):
        raise PermissionError(errno.EACCES, "Permission denied", "another file")
    assert caught.value.filename == "another file"
    with pytest.raises(OSError, match="without a number"), named_errors(file):
        raise OSError("without a number")


@pytest.mark.parametrize("number", [errno.ECONNRESET, errno.ETIMEDOUT, errno.EPIPE, errno.ENOMEM])
def test_an_error_of_reading_has_no_name_of_the_output(number: int, tmp_path: Path) -> None:
    """As a store's connection that ends while its images are packed."""
    with pytest.raises(OSError, match=os.strerror(number)) as caught, whole_file(tmp_path / "shard"):
        raise OSError(number, os.strerror(number))
    assert caught.value.filename is None
    assert list(tmp_path.iterdir()) == []
