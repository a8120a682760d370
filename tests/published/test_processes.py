"""Several processes that fetch the same weights, and processes that end before they have them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hostility.servers.files import FileServer, send, stall

from ppxcls.published import find
from ppxcls.system import file_lock
from ppxcls.system.file_lock import locked
from tests.conftest import ROOT

DATA = bytes(range(256)) * 4000
NAME = "xception65.ra3_in1k"
PATH = f"/timm/{NAME}/resolve/main/model.safetensors"


def left(cache: Path) -> set[str]:
    return {file.name for file in cache.iterdir()} if cache.is_dir() else set()


def test_a_disk_that_becomes_full(server: FileServer, cache: Path) -> None:
    """The message names the file. What was fetched stays as a part, and the next command goes on with it."""
    server.files[PATH] = DATA
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))\n"
    process = started(NAME, before=limit)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode
    assert f"{cache}/{NAME}.safetensors.part" in errors.splitlines()[-1]
    assert f"{NAME}.safetensors" not in left(cache)
    assert find.weights_path(NAME).read_bytes() == DATA
    assert "range" in server.requests[-1].headers


FETCH = """
import sys
from ppxcls.published import fetch, find
from ppxcls.system.logs import set_up_logging
fetch.content_problem = lambda *_, **__: None
set_up_logging()
print(find.weights_path(sys.argv[1]))
"""


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **variables}


def started(name: str, *, before: str = "", **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", before + FETCH, name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**variables),
    )


RANKS = [{"PADDLE_TRAINERS_NUM": "4", "PADDLE_TRAINER_ID": str(rank)} for rank in range(4)]


@pytest.mark.parametrize("variables", [[{}] * 3, RANKS], ids=["programs", "ranks"])
def test_several_processes_fetch_once(variables: list[dict[str, str]], server: FileServer) -> None:
    def wait(handler: object, owner: FileServer) -> None:
        owner.release.wait(1.0)  # meanwhile, the others come
        send(handler, 200, DATA)  # type: ignore[arg-type]

    server.tricks = [wait]
    processes = [started(NAME, **values) for values in variables]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    assert len({output.splitlines()[-1] for output, _ in outputs}) == 1
    assert len(server.requests) == 1


def test_a_rank_fetches_if_the_one_before_it_has_not_tried(
    server: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting for the lock is no sign that another process has failed."""
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    server.files[PATH] = DATA
    cache.mkdir(parents=True, mode=0o700)
    (cache.parent).chmod(0o700)
    has_lock, has_waited = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(cache / f".{NAME}.safetensors.lock", is_kept=False):
            has_lock.set()
            has_waited.wait(30)

    sleep = time.sleep

    def noted_sleep(seconds: float) -> None:
        has_waited.set()
        sleep(seconds)

    monkeypatch.setattr(file_lock.time, "sleep", noted_sleep)
    holder = threading.Thread(target=hold)
    holder.start()
    assert has_lock.wait(30)
    assert find.weights_path(NAME).read_bytes() == DATA
    assert has_waited.is_set()
    holder.join()


AT_THE_LOCK = """
import contextlib
from ppxcls.published import fetch
take = fetch.locked
def tell_and_take(*arguments, **settings):
    print("at the lock", flush=True)
    return take(*arguments, **settings)
fetch.locked = tell_and_take
"""


def test_ranks_do_not_wait_for_one_that_fails(server: FileServer, cache: Path) -> None:
    """Each rank ends with an error. Those that have waited do not ask the server again."""

    def refuse(handler: object, owner: FileServer) -> None:
        owner.release.wait(60)
        send(handler, 404, b"")  # type: ignore[arg-type]

    server.tricks, server.is_last_kept = [refuse], True
    ranks = [started(NAME, before=AT_THE_LOCK, **values) for values in RANKS]
    for rank in ranks:
        assert rank.stdout is not None
        assert rank.stdout.readline() == "at the lock\n"
    server.release.set()
    errors = [rank.communicate(timeout=60)[1].splitlines()[-1] for rank in ranks]
    assert all(rank.returncode for rank in ranks)
    assert sum("the server has no such file" in error for error in errors) == 1
    assert (
        sum("another process has just tried to fetch it, without success" in error for error in errors) == 3
    )
    assert len(server.requests) == 1
    server.tricks = []
    server.files[PATH] = DATA
    later = [started(NAME, **values) for values in RANKS[:2]]  # an earlier failure stops nobody
    assert [process.communicate(timeout=60) and process.returncode for process in later] == [0, 0]
    assert left(cache) == {f"{NAME}.safetensors", f"{NAME}.safetensors.source"}


def test_a_killed_process_leaves_a_part_and_no_lock(server: FileServer, cache: Path) -> None:
    server.files[PATH] = DATA
    server.tricks = [stall]
    process = started(NAME)
    part = cache / f"{NAME}.safetensors.part"
    while not (part.exists() and part.stat().st_size >= len(DATA) // 2):
        assert process.poll() is None
    process.kill()
    process.wait()
    assert find.weights_path(NAME).read_bytes() == DATA


def test_a_process_that_is_killed_in_the_check_leaves_no_weights(server: FileServer, cache: Path) -> None:
    server.files[PATH] = DATA
    kill = "lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)"
    script = FETCH.replace("lambda *_, **__: None", kill)
    command = [sys.executable, "-c", f"import os, signal\n{script}", NAME]
    result = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert f"{NAME}.safetensors" not in left(cache)
    assert find.cached_weights("xception65") is None
    assert find.weights_path(NAME).read_bytes() == DATA
    assert left(cache) == {f"{NAME}.safetensors", f"{NAME}.safetensors.source"}
