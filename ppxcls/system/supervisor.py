"""Restarts a failed job until it succeeds or a restart can't help.

It does not need etcd, unlike Paddle's own restarts.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from ppxcls.system.current_folder import module_command
from ppxcls.system.paths import one_line
from ppxcls.system.signals import EXIT_PREEMPTED
from ppxcls.system.temporary_folder import temporary_folder

BEGUN_VARIABLE = (
    "PPXCLS_BEGUN"  # environment variable with the file that a run's first process writes when it begins
)
_SUCCESS_CODE, _ERROR_CODE, _USAGE_CODE = 0, 1, 2
_FINAL_CODES = (_SUCCESS_CODE, _USAGE_CODE, EXIT_PREEMPTED)
_HEALTHY_SECONDS = 600.0  # a failure after a longer run counts as the first failure
_MAX_PAUSE_SECONDS = 300.0
_POLL_SECONDS = 0.2
_SIGNAL_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1")


def record_start(step: int) -> None:
    """Tells this node's supervisor, if there is one, that the run has begun.

    A restart then resumes the run's checkpoint. A higher step than at the last start counts as progress and
    resets the failures.
    """
    # Each node has its own supervisor.
    if (file := os.environ.get(BEGUN_VARIABLE)) and os.environ.get("PADDLE_LOCAL_RANK", "0") == "0":
        with contextlib.suppress(OSError):
            Path(file).write_text(str(step), encoding="utf-8")


def record_refusal() -> None:
    """Tells this node's supervisor, if there is one, that a process refuses the job, which no restart cures.

    Paddle's launcher then ends the other processes by a signal, and reports this signal if the first process
    receives it.
    """
    if file := os.environ.get(BEGUN_VARIABLE):
        with contextlib.suppress(OSError):
            _refusal_file(Path(file)).touch()


def _refusal_file(begun_file: Path) -> Path:
    return begun_file.with_suffix(".refused")


def _step_in(file: Path) -> int:
    """Returns the last step that ``record_start`` wrote; 0 if there is none."""
    with contextlib.suppress(OSError, ValueError):
        return int(file.read_bytes())
    return 0


def launcher_options(words: Sequence[str]) -> dict[str, str]:
    """Returns the options among the launcher's arguments, written as ``--name value`` or ``--name=value``."""
    pairs = {name: value for name, value in itertools.pairwise(words) if name.startswith("--")}
    return pairs | dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)


def host_problem(words: Sequence[str]) -> str | None:
    """Returns an error message if several nodes would wait for each other forever; None otherwise.

    Args:
        words: arguments of the launcher.
    """
    values = launcher_options(words)
    if values.get("--nnodes", "1") in ("1", "1:1") or "--host" in values:
        return None
    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError:
        address = "no address"
    if address.startswith("127.") or address == "no address":
        return (
            f"this host's name resolves to {address}, so the other nodes can't reach it: "
            "add --host with its own address"
        )
    return None


def launch_command(launcher: Sequence[str], script: Sequence[str], *, resume: bool) -> list[str]:
    """Returns the command that starts Paddle's launcher.

    Args:
        launcher: options of the launcher.
        script: script and its arguments.
        resume: True to resume the newest checkpoint of the run.
    """
    overrides = ["-o", "Global.checkpoints=auto"] if resume else []
    return [*module_command("paddle.distributed.launch"), *launcher, *script, *overrides]


def _print_line(line: str) -> None:
    print(one_line(line), file=sys.stderr, flush=True)


class Supervisor:
    """Runs a command, and runs it again if it fails.

    SIGTERM and SIGINT are passed on to the command. SIGUSR1 is passed on as SIGTERM, because Paddle's
    launcher does not handle it. The command is not run again after a signal, after exit code 2 (the config is
    invalid), or after 75 or 15 (the job was told to stop and has saved).

    Args:
        command: function that returns the words of the command; its argument is True to resume the run's
            newest checkpoint.
        restarts: largest number of restarts in a row. A failure after ten minutes, or of a run that began at
            a higher step than the previous one, counts as the first failure.
        pause: seconds before the first restart; doubled each time, up to five minutes.
        report: function that shows a line to the user.
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
        self._signal: int | None = None  # number of the received signal

    def run(self) -> int:
        """Runs the command until it ends for good; returns the exit code of the last run."""
        # Windows has no SIGUSR1.
        numbers = [getattr(signal, name) for name in _SIGNAL_NAMES if hasattr(signal, name)]
        previous_handlers = {number: signal.signal(number, self._pass_on) for number in numbers}
        try:
            with temporary_folder() as folder:
                return self._run(folder / "begun")
        finally:
            for number, handler in previous_handlers.items():
                signal.signal(number, handler)

    def _run(self, begun_file: Path) -> int:
        failures = 0
        last_step = 0
        while True:
            start = time.monotonic()
            code = self._run_once(
                resume=begun_file.exists(), environment={**os.environ, BEGUN_VARIABLE: str(begun_file)}
            )
            if code == signal.SIGTERM:  # exit code of Paddle's launcher after this signal
                return EXIT_PREEMPTED
            if self._signal is not None or code in _FINAL_CODES:
                return code
            if _refusal_file(begun_file).exists():
                return _USAGE_CODE
            seconds = time.monotonic() - start
            step = max(last_step, _step_in(begun_file))
            failures = 1 if seconds > _HEALTHY_SECONDS or step > last_step else failures + 1
            last_step = step
            outcome = (
                f"the job ended with {'code' if code >= 0 else 'signal'} {abs(code)} after {seconds:.0f} s"
            )
            if failures > self._restarts:
                self._report(f"launch: {outcome}; it has failed {failures} times in a row; giving up")
                return code if code > 0 else _ERROR_CODE
            pause = min(self._pause * 2 ** min(failures - 1, 10), _MAX_PAUSE_SECONDS)
            origin = "from its newest checkpoint" if begun_file.exists() else "from the start"
            self._report(
                f"launch: {outcome}; restart {failures} of {self._restarts} in {pause:.0f} s, {origin}"
            )
            self._wait(pause)
            if self._signal is not None:  # received between two runs, so all progress is saved
                return EXIT_PREEMPTED

    def _run_once(self, *, resume: bool, environment: dict[str, str]) -> int:
        # The command gets its own session, so that it receives a Ctrl-C at the terminal once.
        words = self._command(resume)
        self._process = subprocess.Popen(words, env=environment, start_new_session=True)  # noqa: S603  the user's own command
        if self._signal is not None:  # received during the start of the process
            self._send(self._signal)
        return self._process.wait()

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self._signal is None and (seconds_left := end - time.monotonic()) > 0:
            time.sleep(min(seconds_left, _POLL_SECONDS))

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._signal = number if number == signal.SIGINT else signal.SIGTERM
        self._send(self._signal)

    def _send(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            # Windows sends no SIGINT, but a Ctrl-C reaches all processes of the terminal there.
            with contextlib.suppress(ValueError):
                self._process.send_signal(number)
