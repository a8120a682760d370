"""Runs commands as ``subprocess.run`` does, in forks of ``fork_server.py`` if that makes no difference to them."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What the commands import. The first one imports Paddle by way of this package, which sets it up.
OBJECTS = (
    "ppxcls:load_config",
    "ppxcls.cli.verbs",
    "ppxcls.build.trainer",
    "cv2",
    "numba",
    "PIL.Image",
    "scipy.optimize",
    "scipy.stats",
    "jinja2",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "safetensors.numpy",
)
_MAX_SERVERS = 2  # each has a third of a gigabyte
# A fork that uses no processor for as long has taken over a lock of a thread that the server had. The older Paddles
# start such threads at their import.
_STUCK_SECONDS = 45.0
_lock = threading.Lock()
_uses: dict[frozenset[tuple[str, str]], int] = {}
_servers: dict[frozenset[tuple[str, str]], Server] = {}


class StuckError(Exception):
    """A fork has waited for too long without any work. The message has what it wrote, and its stacks."""


def _processor_seconds(process: int) -> float:
    """Returns the processor time of a process and of its children, 0 if it has ended."""
    try:
        with open(f"/proc/{process}/stat") as file:
            ticks = sum(int(word) for word in file.read().rpartition(")")[2].split()[11:15])
        with open(f"/proc/{process}/task/{process}/children") as file:
            children = file.read().split()
    except OSError:
        return 0.0
    return ticks / os.sysconf("SC_CLK_TCK") + sum(_processor_seconds(int(child)) for child in children)


class _Watch:
    """Notices that a process does nothing.

    Args:
        process: the process, which answers SIGUSR2 with its stacks.
    """

    def __init__(self, process: int) -> None:
        self._process = process
        self._used = 0.0
        self._since = time.monotonic()

    def is_stuck(self) -> bool:
        """Returns True if the process is there and has used less than a tenth of a second for some time."""
        used = _processor_seconds(self._process)
        if not os.path.exists(f"/proc/{self._process}"):
            return False
        if abs(used - self._used) > 0.1:
            self._used = used
            self._since = time.monotonic()
        return time.monotonic() - self._since > _STUCK_SECONDS


def _read_to_end(streams: Sequence[int], seconds: float, process: int) -> list[str]:
    """Returns what is written to pipes until every process that has them has ended.

    A process that a command leaves behind is noticed by this, as ``subprocess.run`` notices it. Raises
    TimeoutError, and StuckError if the first process does nothing.
    """
    end = time.monotonic() + seconds
    data = {stream: bytearray() for stream in streams}
    watch = _Watch(process)
    is_asked = False
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, min(2.0, end - time.monotonic())))
            if not ready and time.monotonic() >= end:
                raise TimeoutError(f"the command's streams are still open after {seconds} s")
            if not ready and is_asked:
                raise StuckError(b"".join(data.values()).decode())
            if not ready and watch.is_stuck():
                is_asked = True
                os.kill(process, signal.SIGUSR2)
            for key, _ in ready:
                piece = os.read(key.fd, 1 << 16)
                data[key.fd] += piece
                if not piece:
                    selector.unregister(key.fd)
    return [text.decode().replace("\r\n", "\n").replace("\r", "\n") for text in data.values()]


class Server:
    """A process of ``fork_server.py`` with an environment.

    Args:
        environment: variables of the server. Libraries have read some of them when its commands begin.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self._connection, other_end = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/fork_server.py"), str(other_end.fileno()), *OBJECTS],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,  # as its forks have: Python's streams note whether they are files
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=[other_end.fileno()],
        )
        other_end.close()
        self._answers = self._connection.makefile("r")

    def run(
        self, words: list[str], folder: Path, environment: dict[str, str], seconds: float
    ) -> subprocess.CompletedProcess[str]:
        """Runs ``python WORDS``.

        Raises TimeoutError, StuckError, and OSError or ValueError if the server has ended.
        """
        message = {"words": words, "folder": str(folder), "environment": environment}
        pipes = [os.pipe(), os.pipe()]
        readers, writers = ([pipe[end] for pipe in pipes] for end in (0, 1))
        try:
            try:
                socket.send_fds(self._connection, [json.dumps(message).encode()], writers)
            finally:
                for writer in writers:
                    os.close(writer)
            self._connection.settimeout(seconds)
            child = int(self._answers.readline())
            try:
                texts = _read_to_end(readers, seconds, child)
                code = int(self._answers.readline())
            except BaseException:  # also pytest-timeout's
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
                raise
        finally:
            for reader in readers:
                os.close(reader)
        return subprocess.CompletedProcess([sys.executable, *words], code, *texts)

    def close(self) -> None:
        """Ends the server, and shows what it has said itself."""
        self._answers.close()
        self._connection.close()
        self._process.kill()
        sys.stderr.write(self._process.communicate()[0])


def _server_for(environment: dict[str, str]) -> Server | None:
    """Returns the server of an environment that was used before, and None at its first use.

    Most other environments are those of a single test.
    """
    key = frozenset(environment.items())
    _uses[key] = _uses.get(key, 0) + 1
    if _uses[key] == 1:
        return None
    server = _servers.pop(key, None) or Server(environment)
    _servers[key] = server  # the last one is the one that was used last
    if len(_servers) > _MAX_SERVERS:
        _servers.pop(next(iter(_servers))).close()
    return server


def _can_fork(environment: Mapping[str, str]) -> bool:
    """Returns False on systems other than Linux, and if the import of Paddle starts the driver of a device.

    A fork can't use a driver that was started before.
    """
    if sys.platform != "linux" or environment.get("CUSTOM_DEVICE_ROOT"):  # Paddle sets it to ""
        return False
    import paddle  # not at the top, because ppxcls imports it after what must be set for it

    has_device_build = paddle.is_compiled_with_cuda() or paddle.is_compiled_with_xpu()
    return not has_device_build and not paddle.device.get_all_custom_device_type()


def run(
    words: list[str], folder: Path, environment: Mapping[str, str], seconds: float
) -> subprocess.CompletedProcess[str] | None:
    """Runs ``python WORDS`` in a folder, and returns its exit code and what it has written.

    Returns None if it must be a process of its own: at the first use of its environment, on systems other than
    Linux, if Paddle has a device, and after a fork that got stuck.
    """
    if not _can_fork(environment):
        return None
    environment = {name: value for name, value in environment.items() if name != "PYTEST_CURRENT_TEST"}
    with _lock:
        server = _server_for(environment)
        if server is None:
            return None
        try:
            return server.run(words, folder, environment, seconds)
        except BaseException as error:
            # It has ended, or its next answer belongs to this command. The next command gets another one.
            _servers.pop(frozenset(environment.items()), None)
            server.close()
            if not isinstance(error, StuckError):
                raise
            warnings.warn(
                f"a fork of {words} got stuck, so it runs as a process of its own: {error}", stacklevel=2
            )
            return None


@atexit.register
def close() -> None:
    """Ends all servers."""
    while _servers:
        _servers.popitem()[1].close()
