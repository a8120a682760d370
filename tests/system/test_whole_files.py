"""Files are whole whoever else writes, and never written through links or into what is no file."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ppxcls.system import temporary_files
from ppxcls.system.appended_files import append_descriptor, change_descriptor, make_own_folder
from ppxcls.system.atomic_files import (
    check_own_names,
    new_file,
    read_inside,
    whole_file,
    whole_text_file,
    write_text,
)
from ppxcls.system.file_lock import locked, locked_folder
from ppxcls.system.logs import logger, set_up_logging
from ppxcls.system.open_folder import OpenFolder
from ppxcls.system.temporary_files import UnsafeFileError, remove_leftovers
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links and pipes of POSIX")
WRITES = """
import sys
from pathlib import Path
from ppxcls.system.atomic_files import write_text
for _ in range(60):
    write_text(Path(sys.argv[1]), sys.argv[2] * 200_000)
"""
KILLED = """
import sys, time
from pathlib import Path
from ppxcls.system.atomic_files import whole_file
with whole_file(Path(sys.argv[1])) as stream:
    stream.write(b"half")
    stream.flush()
    print("ready", flush=True)
    time.sleep(60)
"""


def python(program: str, *words: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def test_two_processes_that_write_one_name(tmp_path: Path) -> None:
    """Each of 120 writes is whole, none fails, and nothing is left."""
    file = tmp_path / "a.txt"
    processes = [python(WRITES, file, letter) for letter in "xy"]
    wholes = {"x" * 200_000, "y" * 200_000}
    read_count = 0
    while any(process.poll() is None for process in processes):
        with contextlib.suppress(FileNotFoundError):
            assert file.read_text() in wholes
            read_count += 1
    assert [process.communicate()[1] for process in processes] == ["", ""]
    assert [process.returncode for process in processes] == [0, 0]
    assert file.read_text() in wholes
    assert read_count
    assert [f.name for f in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.skipif(temporary_files.fcntl is None, reason="the system has no locks")
def test_what_a_killed_process_leaves_is_removed_and_a_living_one_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    processes = [python(KILLED, file) for _ in range(2)]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    names = {f.name for f in tmp_path.iterdir()}
    assert len(names) == 2
    processes[0].kill()
    processes[0].wait()
    (tmp_path / ".b.txt.0123abcd-0123456789abcdef.new").write_text("of another name")
    write_text(file, "whole")
    remaining = {f.name for f in tmp_path.iterdir()} & names
    assert len(remaining) == 1, "the file of the living process stays"
    processes[1].send_signal(signal.SIGKILL)
    processes[1].wait()
    for process in processes:
        process.communicate()
    write_text(file, "whole again")
    assert {f.name for f in tmp_path.iterdir()} == {"a.txt", ".b.txt.0123abcd-0123456789abcdef.new"}


@pytest.mark.skipif(temporary_files.fcntl is None, reason="the system has no locks")
def test_leftovers_of_another_computer_are_removed_when_they_are_old(tmp_path: Path) -> None:
    names = [f".a.{host}-0123456789abcdef.new" for host in ("00000000", "00000001", temporary_files._HOST)]
    for name in names:
        (tmp_path / name).write_text("")
    os.utime(tmp_path / names[0], (0, 0))
    (tmp_path / ".a.00000000-0123456789abcdeg.new").write_text("a user's file")
    with OpenFolder(tmp_path) as folder:
        remove_leftovers(folder)
    assert {f.name for f in tmp_path.iterdir()} == {names[1], ".a.00000000-0123456789abcdeg.new"}


def test_a_link_is_replaced_and_its_target_stays(tmp_path: Path) -> None:
    target = tmp_path / "bashrc"
    target.write_text("precious")
    (tmp_path / "run").mkdir()
    for name, place in (("a", target), ("dangling", tmp_path / "new"), ("folder", tmp_path)):
        (tmp_path / "run" / name).symlink_to(place)
        write_text(tmp_path / "run" / name, "result")
        assert not (tmp_path / "run" / name).is_symlink()
        assert (tmp_path / "run" / name).read_text() == "result"
    assert target.read_text() == "precious"
    assert not (tmp_path / "new").exists()
    os.link(target, tmp_path / "run/hard")
    write_text(tmp_path / "run/hard", "result")
    assert target.read_text() == "precious"


def test_a_user_s_own_output_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    with whole_text_file(tmp_path / "link") as stream:
        stream.write("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UnsafeFileError, match="found a pipe: '.*/pipe'"):
        write_text(tmp_path / "pipe", "result")
    with pytest.raises(OSError, match="found a folder: '.*/folder'"):
        write_text(tmp_path / "folder", "result")
    with pytest.raises(UnsafeFileError, match="found a device: '/dev/null'"):
        write_text(Path("/dev/null"), "result")
    with pytest.raises(UnsafeFileError, match="found a pipe"):
        check_own_names(tmp_path, ["a", "pipe"])
    with pytest.raises(UnsafeFileError, match="found a pipe"):
        append_descriptor(tmp_path / "pipe")
    with pytest.raises(OSError, match="folder"):
        new_file(tmp_path / "folder")
    assert {f.name for f in tmp_path.iterdir()} == {"pipe", "folder"}


def test_a_folder_that_becomes_a_link_while_a_file_is_written(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "theirs").mkdir()
    with whole_file(tmp_path / "run/a.txt") as stream:
        stream.write(b"result")
        (tmp_path / "run").rename(tmp_path / "moved")
        (tmp_path / "run").symlink_to("theirs")
    assert list((tmp_path / "theirs").iterdir()) == []
    assert (tmp_path / "moved/a.txt").read_bytes() == b"result"


def exchange_and_write(file: Path, source: Path) -> None:
    with whole_file(file) as stream:
        stream.write(b"result")
        (temporary,) = file.parent.glob(".a.txt.*.new")
        temporary.unlink()
        temporary.symlink_to(source)


def test_a_temporary_file_that_is_exchanged(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "theirs").write_text("precious")
    with pytest.raises(UnsafeFileError, match="exchanged while it was written: '.*/a.txt'"):
        exchange_and_write(tmp_path / "run/a.txt", tmp_path / "theirs")
    assert list((tmp_path / "run").iterdir()) == []
    assert (tmp_path / "theirs").read_text() == "precious"


def test_permissions(tmp_path: Path) -> None:
    earlier_mask = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "1")
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
        (tmp_path / "a").chmod(0o600)
        write_text(tmp_path / "a", "2")
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(earlier_mask)


def test_long_names(tmp_path: Path) -> None:
    name = "ü" * 127
    write_text(tmp_path / name, "1")
    assert [f.name for f in tmp_path.iterdir()] == [name]
    with whole_file(tmp_path / name):
        assert max(len(os.fsencode(f.name)) for f in tmp_path.iterdir() if f.name != name) <= 143


def test_appended_files(tmp_path: Path) -> None:
    folder, target = tmp_path / "run", tmp_path / "bashrc"
    folder.mkdir()
    target.write_text("precious")
    (folder / "link").symlink_to(target)
    (folder / "dangling").symlink_to(tmp_path / "new")
    for name in ("link", "dangling"):
        for function in (append_descriptor, change_descriptor):
            with pytest.raises(UnsafeFileError, match="a link out of its folder"):
                function(folder / name)
        with (
            pytest.raises(UnsafeFileError, match="expected a lock file, found a link"),
            locked(folder / name),
        ):
            pass
        with pytest.raises(UnsafeFileError, match="a link out of its folder"):
            set_up_logging(0, folder / name)
    (folder / "inside").symlink_to("other.log")
    os.link(target, folder / "hard")
    for name in ("inside", "hard", "plain"):
        with open(append_descriptor(folder / name), "ab") as stream:
            stream.write(b" line")
    assert (folder / "other.log").read_text() == " line"
    assert (folder / "hard").read_text() == "precious line"
    assert target.read_text() == "precious"
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_the_file_of_another_user_in_a_folder_of_everybody(tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text("theirs")
    os.chown(tmp_path / "train.log", 12345, 12345)
    os.close(append_descriptor(tmp_path / "train.log"))
    tmp_path.chmod(0o777)  # as on a network disk where root is another user
    os.close(append_descriptor(tmp_path / "train.log"))
    tmp_path.chmod(0o1777)
    with pytest.raises(UnsafeFileError, match="the file of another user"):
        append_descriptor(tmp_path / "train.log")


def test_the_log_is_opened_again_but_not_through_a_link(tmp_path: Path) -> None:
    file = tmp_path / "run/train.log"
    set_up_logging(0, file)
    logger.info("one")
    file.unlink()
    file.symlink_to(tmp_path / "new")
    logger.info("two")
    set_up_logging()
    assert not (tmp_path / "new").exists()
    assert logging.getLogger("ppxcls").handlers


def test_a_subfolder_that_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "run/tensorboard").symlink_to(tmp_path / "theirs")
    with pytest.raises(UnsafeFileError, match="a link out of its folder; remove it: '.*tensorboard'"):
        make_own_folder(tmp_path / "run/tensorboard")
    make_own_folder(tmp_path / "run/vdl")
    make_own_folder(tmp_path / "run/vdl")


def test_reading_inside_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "key").write_text("secret")
    (folder / "a").write_text("content")
    (folder / "inside").symlink_to("a")
    (folder / "outside").symlink_to(tmp_path / "key")
    (tmp_path / "link").symlink_to(folder)
    assert read_inside(folder / "inside", [tmp_path / "link"], 100) == b"content"
    for name in ("outside", "../key", "\0"):
        with pytest.raises(ValueError, match="outside of its folder|null"):
            read_inside(folder / name, [folder], 100)


def test_a_new_file_of_a_fixed_name(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "part.new").symlink_to("target")
    with new_file(tmp_path / "part.new") as stream:
        stream.write(b"part")
    assert (tmp_path / "target").read_text() == "precious"
    assert (tmp_path / "part.new").read_bytes() == b"part"


@pytest.mark.skipif(temporary_files.fcntl is None, reason="the system has no locks")
def test_a_folder_is_locked_without_a_file(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from ppxcls.system.file_lock import locked_folder\n"
        "with locked_folder(Path(sys.argv[1])): print('ready', flush=True); time.sleep(1); "
        "(Path(sys.argv[1]) / 'a').touch()"
    )
    process = python(program, tmp_path)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    with locked_folder(tmp_path, waits=True):
        assert (tmp_path / "a").exists(), "this block has waited"
    process.communicate()


@pytest.mark.skipif(temporary_files.fcntl is None, reason="the system has no locks")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EAGAIN])
def test_a_file_system_without_locks(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a lock that another process holds is tried again."""
    calls = []

    def refused(*_: object) -> None:
        calls.append(1)
        raise OSError(number, "no lock")

    monkeypatch.setattr(temporary_files.fcntl, "flock", refused)
    with whole_file(tmp_path / "file") as stream:
        stream.write(b"1")
    assert (tmp_path / "file").read_bytes() == b"1"
    assert (len(calls) > 2) == (number == errno.EAGAIN)
