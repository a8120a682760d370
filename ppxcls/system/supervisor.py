"""Restarts a job that fails, until it is done or can't be cured. It needs no etcd, which Paddle's own restarts need."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from ppxcls.system.signals import EXIT_PREEMPTED

BEGUN = "PPXCLS_BEGUN"  # names a file that a run creates when it has begun, in its first process
_DONE, _USAGE = 0, 2
_HEALTHY = 600.0  # seconds after which a failure counts as the first one again


def note_begun() -> None:
    """Tell this node's supervisor, if there is one, that the run has begun, so that it can go on from a checkpoint of its own."""
    if (file := os.environ.get(BEGUN)) and os.environ.get("PADDLE_LOCAL_RANK", "0") == "0":  # each node has its own supervisor
        with contextlib.suppress(OSError):
            Path(file).touch()


def host_problem(words: Sequence[str]) -> str | None:
    """Why several nodes would wait for each other for ever; None if they would not, or there is one node.

    Args:
        words: the launcher's arguments.
    """
    values = dict(itertools.pairwise(words)) | dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
    if values.get("--nnodes", "1") in ("1", "1:1") or "--host" in values:
        return None
    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError:
        address = "no address"
    if address.startswith("127.") or address == "no address":
        return f"this host's name means {address}, so the other nodes can't reach it: add --host with its own address"
    return None


class Supervisor:
    """Runs a command, and runs it again if it fails.

    SIGTERM and SIGINT are passed on to the command, SIGUSR1 as SIGTERM, because Paddle's launcher does not know it; then the
    command is not run again. Neither is it after exit code 2 (the config is invalid), 75 or 15 (it was told to stop and has saved).

    Args:
        command: the words of the job.
        resume: words to add when it is run again after it had begun.
        restarts: largest number of restarts in a row. A failure after ten minutes counts as the first one.
        pause: seconds before the first restart; doubled each time, up to five minutes.
        say: takes a line for the user.
    """

    def __init__(
        self,
        command: Sequence[str],
        resume: Sequence[str],
        restarts: int,
        pause: float = 5.0,
        say: Callable[[str], object] = lambda line: print(line, file=sys.stderr, flush=True),
    ) -> None:
        self._command, self._resume, self._restarts, self._pause, self._say = list(command), list(resume), restarts, pause, say
        self._process: subprocess.Popen[bytes] | None = None
        self._received: int | None = None

    def run(self) -> int:
        """Run to the end; returns the exit code of the last run."""
        before = {number: signal.signal(number, self._pass_on) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
        try:
            with tempfile.TemporaryDirectory() as folder:
                return self._run(Path(folder) / "begun")
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _run(self, begun: Path) -> int:
        failures, has_begun = 0, False
        while True:
            start = time.monotonic()
            words = [*self._command, *(self._resume if has_begun else [])]
            # In a session of its own, so that Ctrl-C at a terminal reaches it once.
            environment = {**os.environ, BEGUN: str(begun)}
            self._process = subprocess.Popen(words, env=environment, start_new_session=True)  # noqa: S603  the user's own command
            if self._received is not None:  # it came in the meantime
                self._process.send_signal(self._received)
            code = self._process.wait()
            has_begun |= begun.exists()
            seconds = time.monotonic() - start
            if code == signal.SIGTERM:  # how Paddle's launcher ends after one
                return EXIT_PREEMPTED
            if self._received is not None or code in (_DONE, _USAGE, EXIT_PREEMPTED):
                return code
            failures = 1 if seconds > _HEALTHY else failures + 1
            ended = f"the job ended with {'code' if code >= 0 else 'signal'} {abs(code)} after {seconds:.0f} s"
            if failures > self._restarts:
                self._say(f"launch: {ended}; it has failed {failures} times in a row, and is given up")
                return code if code > 0 else 1
            pause = min(self._pause * 2 ** min(failures - 1, 10), 300.0)
            place = "from its newest checkpoint" if has_begun else "from the start"
            self._say(f"launch: {ended}; restart {failures} of {self._restarts} in {pause:.0f} s, {place}")
            self._wait(pause)
            if self._received is not None:
                return code if code > 0 else 1

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self._received is None and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.2))

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._received = number = signal.SIGTERM if number == signal.SIGUSR1 else number
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
