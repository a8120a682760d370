"""The processes of a job find one another, and nobody else counts. ``scripts/hostility/peers.py`` has the attacks."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ppxcls.system import job_secret, private_files
from ppxcls.system.job_secret import JobError
from ppxcls.system.rendezvous import wait_for_all_ranks


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])


def meeting(masters: list[str], timeout: float = 5.0) -> list[str]:
    """Lets a process for each master meet the others. Returns their errors."""
    errors: list[str] = []

    def meet(rank: int) -> None:
        try:
            wait_for_all_ranks(masters[rank], rank, len(masters), timeout)
        except JobError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=meet, args=(rank,)) for rank in range(len(masters))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    return errors


def test_processes_of_one_host_need_no_secret_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert meeting([f"{host}:{free_port()}" for host in ("127.0.0.1",)]) == []
    port = free_port()
    assert meeting([f"127.0.0.1:{port}", f"localhost:{port}", f"127.0.0.1:{port}"]) == []
    key = tmp_path / "ppxcls/job_key"
    assert len(key.read_bytes()) == 32
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    monkeypatch.setenv("PADDLE_LOCAL_SIZE", "2")  # the launcher gives the host's own address
    address = f"{socket.gethostbyname(socket.gethostname())}:{port}"
    assert meeting([address, address]) == []


def test_a_key_that_others_can_write_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    first_key = job_secret.job_secret(is_one_host=True)
    assert first_key == job_secret.job_secret(is_one_host=True)
    (tmp_path / "state/ppxcls").chmod(0o777)
    second_key = job_secret.job_secret(is_one_host=True)
    assert second_key not in (first_key, None)
    assert (tmp_path / "runtime/ppxcls/job_key").read_bytes() == second_key


def test_two_nodes_share_a_file_or_accept_each_other_s_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second node is this host under another address, because ``PADDLE_LOCAL_SIZE`` says that there are two."""
    monkeypatch.setenv("PADDLE_LOCAL_SIZE", "1")
    port = free_port()
    own_address = socket.gethostbyname(socket.gethostname())
    masters = [f"{own_address}:{port}"] * 2
    (error, _) = meeting(masters, timeout=0.5)
    assert error.startswith("the processes of this job can't know one another: set PPXCLS_JOB_SECRET_FILE")
    monkeypatch.setenv("PADDLE_TRAINER_ENDPOINTS", f"{own_address}:{port},{own_address}:{port + 1}")
    assert meeting(masters) == []
    monkeypatch.setenv("PADDLE_TRAINER_ENDPOINTS", f"192.0.2.1:{port},192.0.2.2:{port}")
    errors = meeting(masters, timeout=0.7)
    assert any(f"rank 1 of 2 did not connect to port {port}" in error for error in errors)
    (tmp_path / "secret").write_text("sixteen bytes or more\n")
    monkeypatch.setenv("PPXCLS_JOB_SECRET_FILE", str(tmp_path / "secret"))
    assert meeting(masters) == []


def test_a_process_that_ends_while_the_others_come_is_missing_again(
    new_warnings: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    port = free_port()
    errors: list[str] = []

    def lead() -> None:
        try:
            wait_for_all_ranks(f"127.0.0.1:{port}", 0, 3, 3.0)
        except JobError as error:
            errors.append(str(error))

    thread = threading.Thread(target=lead)
    thread.start()
    with pytest.raises(JobError, match=r"rank 0 at .* can't be reached within 1 s"):
        wait_for_all_ranks(f"127.0.0.1:{port}", 1, 3, 1.0)
    socket.create_connection(("127.0.0.1", port)).close()
    thread.join(10)
    assert errors == [f"rank 1, 2 of 3 did not connect to port {port} within 3 s"]
    assert [text for text in new_warnings() if "from 127.0.0.1" in text] == [
        f"a connection from 127.0.0.1 to port {port} is refused: it closed the connection before it proved "
        "that it belongs to this job"
    ]


def test_a_full_disk_leaves_no_private_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = tmp_path / "a"
    monkeypatch.setattr(private_files, "_write", refused)
    with pytest.raises(OSError, match="No space left"):
        private_files.create_private(folder, "name", b"1")
    assert os.listdir(folder) == []


def test_private_files(tmp_path: Path) -> None:
    folder = tmp_path / "a/b"
    assert private_files.create_private(folder, "name", b"1")
    assert not private_files.create_private(folder, "name", b"2")
    assert private_files.read_private(folder, "name") == b"1"
    assert os.listdir(folder) == private_files.private_names(folder) == ["name"]
    (folder / "name").chmod(0o666)
    assert private_files.read_private(folder, "name") is None
    (folder / "link").symlink_to(tmp_path / "other")
    (tmp_path / "other").write_bytes(b"3")
    assert private_files.read_private(folder, "link") is None
    (tmp_path / "alias").symlink_to(folder)
    assert private_files.private_names(tmp_path / "alias") == []
    folder.chmod(0o777)
    with pytest.raises(OSError, match="somebody else can write to it"):
        private_files.create_private(folder, "other", b"")
