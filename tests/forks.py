"""Runs commands as ``subprocess.run`` does, in forks of ``fork_server.py`` if that makes no difference to them."""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_MAX_SERVERS = 2  # each has a third of a gigabyte
_lock = threading.Lock()
_uses: dict[frozenset[tuple[str, str]], int] = {}
_servers: dict[frozenset[tuple[str, str]], Server] = {}


class Server:
    """A process of ``fork_server.py`` with an environment.

    Args:
        environment: variables of the server. Libraries have read some of them when its commands begin.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self._connection, other_end = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/fork_server.py"), str(other_end.fileno())],
            env={**environment, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            pass_fds=[other_end.fileno()],
        )
        other_end.close()
        self._answers = self._connection.makefile("r")

    def run(
        self, words: list[str], folder: Path, environment: dict[str, str], seconds: float
    ) -> subprocess.CompletedProcess[str]:
        """Runs ``python WORDS``. Raises TimeoutError."""
        message = {"words": words, "folder": str(folder), "environment": environment}
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            streams = [output.fileno(), errors.fileno()]
            socket.send_fds(self._connection, [json.dumps(message).encode()], streams)
            self._connection.settimeout(seconds)
            child = int(self._answers.readline())
            try:
                code = int(self._answers.readline())
            except BaseException:  # also pytest-timeout's
                os.kill(child, signal.SIGKILL)
                self.close()
                raise
            texts = []
            for stream in (output, errors):
                stream.seek(0)
                texts.append(stream.read().decode().replace("\r\n", "\n").replace("\r", "\n"))
        return subprocess.CompletedProcess([sys.executable, *words], code, *texts)

    def close(self) -> None:
        """Ends the server."""
        self._connection.close()
        self._process.kill()
        self._process.wait()


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


def run(
    words: list[str], folder: Path, environment: Mapping[str, str], seconds: float
) -> subprocess.CompletedProcess[str] | None:
    """Runs ``python WORDS`` in a folder, and returns its exit code and what it has written.

    Returns None if it must be a process of its own: at the first use of its environment, and on systems other
    than Linux.
    """
    if sys.platform != "linux":
        return None
    environment = {name: value for name, value in environment.items() if name != "PYTEST_CURRENT_TEST"}
    with _lock:
        server = _server_for(environment)
        return server and server.run(words, folder, environment, seconds)


@atexit.register
def close() -> None:
    """Ends all servers."""
    while _servers:
        _servers.popitem()[1].close()
