"""Restarts a job that fails, until it is done or can't be cured.

It needs no etcd, which Paddle's own restarts need.
"""

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
_DONE, _ERROR, _USAGE = 0, 1, 2
_FINAL_CODES = (_DONE, _USAGE, EXIT_PREEMPTED)
_HEALTHY_SECONDS = 600.0  # a failure after a longer run counts as the first one
_MAX_PAUSE_SECONDS = 300.0
_POLL_SECONDS = 0.2


def note_begun(step: int) -> None:
    """Tell this node's supervisor, if there is one, that the run has begun, so that a restart resumes the run's
    checkpoint.

    A higher step than at the last start counts as progress and resets the failures.
    """
    if (file := os.environ.get(BEGUN)) and os.environ.get(
        "PADDLE_LOCAL_RANK", "0"
    ) == "0":  # each node has its own supervisor
        with contextlib.suppress(OSError):
            Path(file).write_text(str(step))


def _step_in(file: Path) -> int:
    """The step that ``note_begun`` wrote last; 0 for none."""
    with contextlib.suppress(OSError, ValueError):
        return int(file.read_bytes())
    return 0


def launcher_options(words: Sequence[str]) -> dict[str, str]:
    """The options among the launcher's arguments, written as ``--name value`` or ``--name=value``."""
    pairs = {name: value for name, value in itertools.pairwise(words) if name.startswith("--")}
    return pairs | dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)


def host_problem(words: Sequence[str]) -> str | None:
    """Why several nodes would wait for each other for ever; None if they would not, or there is one node.

    Args:
        words: the launcher's arguments.
    """
    values = launcher_options(words)
    if values.get("--nnodes", "1") in ("1", "1:1") or "--host" in values:
        return None
    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError:
        address = "no address"
    if address.startswith("127.") or address == "no address":
        return f"this host's name means {address}, so the other nodes can't reach it: add --host with its own address"
    return None


def launch_command(launcher: Sequence[str], script: Sequence[str], *, resume: bool) -> list[str]:
    """The command that starts Paddle's launcher.

    Args:
        launcher: options of the launcher.
        script: the script and its arguments.
        resume: True to resume the newest checkpoint of the run.
    """
    overrides = ["-o", "Global.checkpoints=auto"] if resume else []
    return [sys.executable, "-m", "paddle.distributed.launch", *launcher, *script, *overrides]


def _print_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Supervisor:
    """Runs a command, and runs it again if it fails.

    SIGTERM and SIGINT are passed on to the command, SIGUSR1 as SIGTERM, because Paddle's launcher does not
    know it. After a signal the command is not run again. Neither is it after exit code 2 (the config is
    invalid), or 75 and 15 (it was told to stop and has saved).

    Args:
        command: returns the words of the job; its argument is True to resume the run's newest checkpoint.
        restarts: largest number of restarts in a row. A failure after ten minutes, or of a run that began at
            a higher step than the one before, counts as the first one.
        pause: seconds before the first restart; doubled each time, up to five minutes.
        report: takes a line for the user.
    """

    def __init__(
        self,
        command: Callable[[bool], Sequence[str]],
        restarts: int,
        *,
        pause: float = 5.0,
        report: Callable[[str], object] = _print_line,
    ) -> None:
        self._command = command
        self._restarts = restarts
        self._pause = pause
        self._report = report
        self._process: subprocess.Popen[bytes] | None = None
        self._signal: int | None = None  # that was received

    def run(self) -> int:
        """Run to the end; returns the exit code of the last run."""
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        previous_handlers = {number: signal.signal(number, self._pass_on) for number in numbers}
        try:
            with tempfile.TemporaryDirectory() as folder:
                return self._run(Path(folder) / "begun")
        finally:
            for number, handler in previous_handlers.items():
                signal.signal(number, handler)

    def _run(self, begun: Path) -> int:
        failures = 0
        last_step = 0
        while True:
            start = time.monotonic()
            code = self._run_once(resume=begun.exists(), environment={**os.environ, BEGUN: str(begun)})
            if code == signal.SIGTERM:  # how Paddle's launcher ends after one
                return EXIT_PREEMPTED
            if self._signal is not None or code in _FINAL_CODES:
                return code
            seconds = time.monotonic() - start
            step = max(last_step, _step_in(begun))
            failures = 1 if seconds > _HEALTHY_SECONDS or step > last_step else failures + 1
            last_step = step
            outcome = (
                f"the job ended with {'code' if code >= 0 else 'signal'} {abs(code)} after {seconds:.0f} s"
            )
            if failures > self._restarts:
                self._report(f"launch: {outcome}; it has failed {failures} times in a row, and is given up")
                return code if code > 0 else _ERROR
            pause = min(self._pause * 2 ** min(failures - 1, 10), _MAX_PAUSE_SECONDS)
            origin = "from its newest checkpoint" if begun.exists() else "from the start"
            self._report(
                f"launch: {outcome}; restart {failures} of {self._restarts} in {pause:.0f} s, {origin}"
            )
            self._wait(pause)
            if self._signal is not None:  # between two runs, when all that was done is saved
                return EXIT_PREEMPTED

    def _run_once(self, *, resume: bool, environment: dict[str, str]) -> int:
        # In a session of its own, so that Ctrl-C at a terminal reaches it once.
        words = self._command(resume)
        self._process = subprocess.Popen(words, env=environment, start_new_session=True)  # noqa: S603  the user's own command
        if self._signal is not None:  # it came in the meantime
            self._process.send_signal(self._signal)
        return self._process.wait()

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self._signal is None and (remaining := end - time.monotonic()) > 0:
            time.sleep(min(remaining, _POLL_SECONDS))

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._signal = signal.SIGTERM if number == signal.SIGUSR1 else number
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(self._signal)
