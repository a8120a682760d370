"""Locks are files that only this user can open, and nobody waits for ever."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ppxcls.system import file_lock
from ppxcls.system.file_lock import LockedError, locked
from ppxcls.system.temporary_files import UnsafeFileError

fcntl = pytest.importorskip("fcntl")
Texts = Callable[[], list[str]]
HOLD = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); sys.stdin.read()"


def holder(lock: Path) -> subprocess.Popen[str]:
    """Returns a process that holds a lock until its input is closed."""
    command = [sys.executable, "-c", HOLD, str(lock)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def release(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait()


@pytest.mark.parametrize("mask", [0, 0o022, 0o777 & ~0o600])
def test_only_this_user_can_open_it(mask: int, tmp_path: Path) -> None:
    previous_mask = os.umask(mask)
    try:
        with locked(tmp_path / "lock"):
            pass
    finally:
        os.umask(previous_mask)
    assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o600


def test_the_lock_of_an_older_version_is_closed_to_others(tmp_path: Path) -> None:
    (tmp_path / "lock").touch(0o644)
    (tmp_path / "lock").chmod(0o644)
    with locked(tmp_path / "lock"):
        assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o600


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "target")
    with pytest.raises(UnsafeFileError, match="found a link"), locked(tmp_path / "lock"):
        raise AssertionError("the block ran")
    assert not (tmp_path / "target").exists()


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(UnsafeFileError, match="found a pipe"), locked(tmp_path / "lock"):
        raise AssertionError("the block ran")


@pytest.mark.parametrize("kind", ["folder", "missing folder"])
def test_what_is_no_file_is_passed_over(kind: str, tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    if kind == "folder":
        lock.mkdir()
    else:
        lock = tmp_path / "nowhere/lock"
    blocks = []
    with locked(lock):
        blocks.append(1)
    assert blocks


def test_an_error_instead_of_waiting(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    process = holder(tmp_path / "lock")
    with pytest.raises(LockedError), locked(tmp_path / "lock", waits=False):
        raise AssertionError("the block ran")
    release(process)
    with locked(tmp_path / "lock", waits=False):
        pass


def test_the_lock_file_of_another_user(
    tmp_path: Path, new_warnings: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """root opens the files of all users, so the system's refusal is imitated."""

    def refused(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    lock = tmp_path / "lock"
    lock.touch()
    monkeypatch.setattr(file_lock.os, "open", refused)
    with locked(tmp_path / "other", waits=False):
        pass  # the folder can't be written to, and there is no lock
    monkeypatch.setattr(file_lock, "_other_owner", lambda _: "user bob")
    with pytest.raises(LockedError, match=f"^{lock} belongs to user bob$"), locked(lock, waits=False):
        raise AssertionError("the block ran")
    blocks = []
    with locked(lock):
        blocks.append(1)
    assert blocks
    assert new_warnings() == [f"{lock} belongs to user bob, so this process does not wait for others"]


@pytest.mark.parametrize("is_kept", [True, False])
def test_threads_take_turns(tmp_path: Path, is_kept: bool) -> None:
    """Also if the lock file does not stay between them."""
    lock = tmp_path / "lock"
    inside: list[int] = []
    counts: list[int] = []

    def work() -> None:
        for _ in range(50):
            with locked(lock, is_kept=is_kept):
                inside.append(1)
                counts.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [1] * 200
    assert lock.exists() == is_kept


def test_a_wait_is_explained_and_ends(
    tmp_path: Path, new_warnings: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lock").touch()
    process = holder(tmp_path / "lock")
    monkeypatch.setattr(file_lock, "_SILENT_SECONDS", 0.1)
    blocks = []
    with locked(tmp_path / "lock", max_seconds=1.0):
        blocks.append(1)
    release(process)
    assert blocks
    first_line, last_line = new_warnings()
    name = Path(f"/proc/{os.getpid()}/comm")
    who = f"process {process.pid} (python" if name.exists() else "another process"
    assert first_line.startswith(f"waiting for {who}")
    assert first_line.endswith(f"which holds {tmp_path / 'lock'}")
    assert last_line.startswith(f"{tmp_path / 'lock'}: ")
    assert last_line.endswith("; not waiting longer")
