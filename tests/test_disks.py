"""Disks that are full, unavailable or slow, folders that are removed, and two runs on one folder."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ppxcls
from ppxcls.build.disk_space import checkpoint_bytes
from ppxcls.data import read_file
from ppxcls.data.dataset import ImageNetDataset
from ppxcls.data.errors import DataError
from ppxcls.train.trackers import JsonLines
from tests.conftest import ROOT, run_tool, write_images

LARGE = {"name": "SmallNetwork", "class_num": 400_000}  # weights of 8 MB
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
has_tmpfs = pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run(
        [*NAMESPACE, "mount", "-t", "tmpfs", "none", "/mnt"], check=False, capture_output=True
    ).returncode
    != 0,
    reason="no small disk can be mounted here",
)


def on_small_disk(folder: Path, size: str, script: str) -> subprocess.CompletedProcess[str]:
    """Runs shell lines with a disk of this size mounted at ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = f"set -e\nmount -t tmpfs -o size={size} none {folder}\n{textwrap.dedent(script)}"
    return subprocess.run(
        [*NAMESPACE, "sh", "-c", lines], check=False, capture_output=True, text=True, cwd=ROOT, timeout=250
    )


@has_tmpfs
def test_full_disk_during_a_checkpoint(small: Callable[..., Path], tmp_path: Path) -> None:
    """The disk has room for one and a half checkpoints of 16 MB."""
    file = small(Arch=LARGE, **{"Global.save_interval_steps": 1, "Global.eval_during_train": False})
    disk = tmp_path / "output"
    check = (
        "from pathlib import Path; from ppxcls.checkpoints.files import "
        "check_whole as c; print(c(Path('{}'))['progress']['step'])"
    )
    result = on_small_disk(
        disk,
        "25m",
        f"""
        {sys.executable} tools/train.py -c {file} && exit 9 || echo "exit code $?"
        {sys.executable} -c "{check.format(disk / "SmallNetwork/latest")}"
        ls {disk}/SmallNetwork
        """,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "exit code 1\n1\n" in result.stdout
    assert ".new" not in result.stdout
    (line,) = [line for line in result.stderr.splitlines() if "Warning" not in line and "warn" not in line]
    assert line.startswith("error: [Errno 28] can't save the checkpoint: No space left on device: ")


@has_tmpfs
def test_a_disk_of_fewer_checkpoints_than_are_kept(small: Callable[..., Path], tmp_path: Path) -> None:
    """Two checkpoints of 16 MB are kept and a third is being written, and ``best_model`` has 8 MB.

    The disk has room for 2.9 times 16 MB.
    """
    file = small(
        **{"Arch": LARGE, "Global.save_interval_steps": 1, "Global.epochs": 2, "Global.save_interval": 9}
    )
    disk = tmp_path / "output"
    result = on_small_disk(
        disk,
        "46m",
        f"""
        {sys.executable} tools/train.py -c {file} > /dev/null
        grep -c "the checkpoint is written again" {disk}/SmallNetwork/train.log
        ls {disk}/SmallNetwork
        """,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    names = result.stdout.split()
    assert int(names[0]) >= 1
    assert {"latest.pdopt", "latest.pdparams", "best_model.pdparams", "step_6.json"} <= set(names)
    assert "best_model.pdopt" not in names


@has_tmpfs
def test_full_disk_during_logs_and_curves(tmp_path: Path) -> None:
    """Training continues, and no line of metrics.jsonl is lost or torn.

    The log and the curves report what they lack.
    """
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import json, logging, os, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from ppxcls.system.logs import logger, set_up_logging
from ppxcls.train.trackers import JsonLines
from ppxcls.train.visualdl_tracker import VisualDL
folder = Path(sys.argv[1])
set_up_logging(0, folder / "train.log")
lines, curves = JsonLines(folder / "metrics.jsonl"), VisualDL(folder)
lines.append({{"step": 0}})
logger.info("before")
with open(folder / "rest", "wb", buffering=0) as rest:
    try:
        while rest.write(b"x" * 512):
            pass
    except OSError:
        pass
curves.start(None)
curves._writer._get_file_writer()._async_writer._worker._flush_secs = 0
curves._writer._get_file_writer()._async_writer._worker._next_flush_time = 0
for step in range(1, 301):
    lines.append({{"step": step, "padding": "p" * 100}})
    logger.info(f"line {{step}} " + "p" * 100)
    for _ in range(20):
        curves.log("train", {{"step": step}}, {{"loss": 1.0}})
os.unlink(folder / "rest")
lines.append({{"step": 301}})
curves.close()
assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == list(range(302))
print("went on")
"""
    )
    result = on_small_disk(
        tmp_path / "disk", "4m,nr_inodes=100", f"{sys.executable} {script} {tmp_path}/disk"
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr
    assert result.stdout.endswith("went on\n")
    assert "metrics.jsonl: No space left on device; 1 lines wait to be written" in result.stdout
    assert result.stderr.count("log lines are lost") == 1
    assert "Traceback" not in result.stderr.replace("Exception in thread", "")


def test_a_line_that_is_cut_off_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = JsonLines(tmp_path / "lines.jsonl")
    lines.append({"step": 1, "loss": float("nan")})
    lines.file.write_bytes(lines.file.read_bytes())
    with open(lines.file, "ab") as stream:
        stream.write(b'{"step": 2, "lo')  # a power failure cuts the line off
    lines.keep(lambda line: line["step"] < 9)
    lines.append({"step": 2})
    assert [json.loads(line) for line in lines.file.read_text().splitlines()] == [
        {"step": 1, "loss": None},
        {"step": 2},
    ]


def test_the_output_folder_removed_under_the_run(small: Callable[..., Path], tmp_path: Path) -> None:
    trainer = ppxcls.build_trainer(ppxcls.load_config(small(**{"Global.epochs": 2})))
    evaluation = trainer.evaluation
    assert evaluation is not None
    batches = evaluation.loader.epoch

    def removed() -> Any:
        trainer.run.folder.wait()
        if trainer.progress.epoch == 1:
            shutil.rmtree(trainer.output_dir)
        return batches()

    evaluation.loader.epoch = removed
    trainer.fit()
    names = {f.name for f in trainer.output_dir.iterdir()}
    assert {"latest.pdparams", "epoch_2.json", "run.lock", "train.log", "metrics.jsonl"} <= names
    assert "was removed during the run; it is created again" in (trainer.output_dir / "train.log").read_text()
    again = ppxcls.build_trainer(
        ppxcls.load_config(small(**{"Global.checkpoints": "auto", "Global.epochs": 2}))
    )
    assert again.progress.epoch == 3


def test_a_second_run_on_one_folder_is_refused(small: Callable[..., Path], tmp_path: Path) -> None:
    file = small()
    trainer = ppxcls.build_trainer(ppxcls.load_config(file))
    result = run_tool("tools/train.py", "-c", file)
    assert result.returncode == 1
    message = f"error: {tmp_path}/output/SmallNetwork: another run writes there (process {os.getpid()} on "
    assert result.stderr.strip().startswith(message)
    trainer.fit()
    assert run_tool("tools/train.py", "-c", file).returncode == 0  # the folder is free again


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_have_the_rights_that_the_user_wants(
    mask: int, small: Callable[..., Path], tmp_path: Path
) -> None:
    old = os.umask(mask)
    try:
        ppxcls.build_trainer(ppxcls.load_config(small())).fit()
    finally:
        os.umask(old)
    files = [f for f in (tmp_path / "output").rglob("*") if f.is_file()]
    assert len(files) > 10
    assert {f.stat().st_mode & 0o777 for f in files} == {0o666 & ~mask}


@pytest.fixture
def data(tmp_path: Path) -> ImageNetDataset:
    folder = write_images(tmp_path / "data", 3)
    return ImageNetDataset(
        str(folder), str(folder / "train_list.txt"), transform_ops=[{"DecodeImage": {}}], patience=3
    )


class Failing:
    """A replacement of ``open`` that fails on the first calls, as if the disk were unavailable."""

    def __init__(self, code: int, times: int) -> None:
        self.code, self.times, self.calls = code, times, 0

    def __call__(self, path: str, *arguments: Any) -> Any:
        self.calls += 1
        if self.calls <= self.times:
            raise OSError(self.code, os.strerror(self.code), path)
        return open(path, *arguments)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_disk_that_comes_back_is_waited_for(
    code: int, data: ImageNetDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Failing(code, 3)
    monkeypatch.setattr(read_file, "open", away, raising=False)
    assert data.load(1).shape == (80, 81, 3)
    assert away.calls == 4


def test_a_disk_that_stays_away_is_an_error_with_the_file(
    data: ImageNetDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Failing(errno.EIO, 1000)
    monkeypatch.setattr(read_file, "open", away, raising=False)
    pauses: list[float] = []
    monkeypatch.setattr(read_file.time, "sleep", pauses.append)
    monkeypatch.setattr(read_file.time, "monotonic", lambda: sum(pauses))
    with pytest.raises(DataError, match=r"0001.png \(.*:2\): Input/output error, tried again for 3 s"):
        data.load(1)
    assert pauses == [0.1, 0.2, 0.4, 0.8]  # the next pause would end after the limit of 3 s
    monkeypatch.setattr(read_file, "open", Failing(errno.EACCES, 1000), raising=False)
    pauses.clear()
    with pytest.raises(DataError, match="Permission denied"):
        data.load(1)
    assert not pauses, "what does not pass is not waited for"


def test_a_file_that_shrinks(data: ImageNetDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    data.check_files()
    file = Path(data.path(1))
    size = file.stat().st_size
    os.truncate(file, size // 2)
    with pytest.raises(DataError, match=r"0001.png \(.*:2\): "):
        data.load(1)
    stat = os.fstat

    def before(descriptor: int) -> Any:
        result = list(stat(descriptor))
        result[6] = size
        return os.stat_result(result)

    monkeypatch.setattr(read_file.os, "fstat", before)
    with pytest.raises(
        DataError,
        match=rf"expected {size:,} bytes, read {size // 2:,}; another program may be writing the file",
    ):
        data.load(1)


def test_limits(data: ImageNetDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_file, "MAX_IMAGE_FILE_BYTES", 100)
    with pytest.raises(DataError, match="bytes; an image file may have 100"):
        data.load(0)


@pytest.mark.parametrize(
    "path", ["../elsewhere/0000.png", "train/../../x.png", "/etc/passwd", "train/..", ".."]
)
@pytest.mark.parametrize("before", ["train/0000.png 0\n", "train/..0001.png 0\ntrain/a..b.png 0\n"])
def test_paths_that_leave_the_folder_are_refused(path: str, before: str, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(f"{before}{path} 1\ntrain/0001.png 0\n")
    line = before.count("\n") + 1
    with pytest.raises(
        DataError, match=rf"list.txt:{line}: expected a path inside image_root, .*, received '{path}'"
    ):
        ImageNetDataset(str(tmp_path / "data"), str(listed))


def test_paths_inside_the_folder_and_links_are_taken(data: ImageNetDataset, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    shutil.move(data.path(0), tmp_path / "elsewhere/moved.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "data/link")
    listed = tmp_path / "list.txt"
    listed.write_text(f"link/moved.png 0\n{tmp_path}/data/train/0001.png 1\ntrain/..odd.png 1\n")
    dataset = ImageNetDataset(str(tmp_path / "data"), str(listed), transform_ops=[{"DecodeImage": {}}])
    assert dataset.load(0).shape == (80, 80, 3)
    assert dataset.load(1).shape == (80, 81, 3)


@pytest.mark.parametrize(
    ("optimizer", "average"), [("Momentum", None), ("AdamW", {"decay": 0.9}), ("SGD", None)]
)
def test_the_room_that_checkpoints_need_is_said(
    optimizer: str,
    average: dict[str, float] | None,
    small: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"name": optimizer, "lr": {"name": "ConstLR", "learning_rate": 0.01}}
    config = ppxcls.load_config(
        small(
            Arch={**LARGE, "class_num": 1_200_000}, Optimizer=settings, EMA=average, **{"Global.epochs": 3}
        ),
        ["Global.save_interval=2"],
    )
    trainer = ppxcls.build_trainer(config)
    log = tmp_path / "output/SmallNetwork/train.log"
    assert "GB each need up to " in log.read_text()
    trainer.fit()
    files = [log.parent / f"latest{extension}" for extension in (".pdparams", ".pdopt", ".pdema")]
    written = sum(file.stat().st_size for file in files if file.exists())
    weights, state = checkpoint_bytes(config, trainer.learner.network)
    assert weights + state == pytest.approx(written, rel=0.02)
    best = sum(f.stat().st_size for f in log.parent.glob("best_model.pd*"))
    assert weights == pytest.approx(best, rel=0.02), "best_model has no optimizer's state"
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**8))
    trainer.run.folder.release()
    ppxcls.build_trainer(config)
    count = 2 + 1 + 1  # keep_last, the one being written, epoch_2
    line = (
        f"need up to {(count * (weights + state) + weights) / 1e9:.3g} "
        f"GB at {log.parent}: 4, and best_model of "
    )
    assert line in log.read_text()
    assert (
        " GB; only 0.1 GB are free; Global.save_interval and Global.keep_last decide how many are kept"
        in log.read_text()
    )


@pytest.mark.parametrize("name", ["run.lock", "train.log", "config.yaml", "metrics.jsonl", "latest.json"])
def test_links_out_of_the_folder_are_not_written_through(
    name: str, small: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "output/SmallNetwork"
    folder.mkdir(parents=True)
    target = tmp_path / "theirs.txt"
    target.write_text("precious")
    (folder / name).symlink_to(target)
    with pytest.raises(ppxcls.RunFolderError, match=f"{name} is a link out of the run's folder"):
        ppxcls.build_trainer(ppxcls.load_config(small()))
    assert target.read_text() == "precious"
    assert {f.name for f in folder.iterdir()} == {name}


def test_lines_that_two_threads_write_are_there_once(tmp_path: Path) -> None:
    """The loop appends lines while the saving thread flushes."""
    lines = JsonLines(tmp_path / "metrics.jsonl")
    done = threading.Event()

    def flush() -> None:
        while not done.is_set():
            lines.flush()

    thread = threading.Thread(target=flush)
    thread.start()
    for i in range(5000):
        lines.append({"i": i})
    done.set()
    thread.join()
    written = [json.loads(line)["i"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert written == list(range(5000))
