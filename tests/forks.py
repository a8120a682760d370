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
_lock = threading.Lock()
_uses: dict[frozenset[tuple[str, str]], int] = {}
_servers: dict[frozenset[tuple[str, str]], Server] = {}


def _read_to_end(streams: Sequence[int], seconds: float) -> list[str]:
    """Returns what is written to pipes until every process that has them has ended. Raises TimeoutError.

    A process that a command leaves behind is noticed by this, as ``subprocess.run`` notices it.
    """
    end = time.monotonic() + seconds
    data = {stream: bytearray() for stream in streams}
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, end - time.monotonic()))
            if not ready:
                raise TimeoutError(f"the command's streams are still open after {seconds} s")
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
        """Runs ``python WORDS``. Raises TimeoutError, and OSError or ValueError if the server has ended."""
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
                texts = _read_to_end(readers, seconds)
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
    Linux, and if Paddle has a device.
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
        except BaseException:
            # It has ended, or its next answer belongs to this command. The next command gets another one.
            _servers.pop(frozenset(environment.items()), None)
            server.close()
            raise


@atexit.register
def close() -> None:
    """Ends all servers."""
    while _servers:
        _servers.popitem()[1].close()
