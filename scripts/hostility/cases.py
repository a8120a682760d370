"""What the hostile cases of all surfaces share: a case, a way to run it, and what counts as a refusal."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MAX_LINE_LENGTH = 600  # characters: a message has up to 500, and a log line begins with a time
MAX_CASE_SECONDS = 120.0


@dataclass(frozen=True)
class Outcome:
    """What a hostile input led to.

    Attributes:
        code: exit code of a command; negative after a signal; None if it ran into its time limit. For a
            function, 0 if it returned and 1 if it raised an error that a user may see.
        output: standard output of a command, or the ``repr`` of a function's result.
        errors: standard error of a command, or the message of a function's error.
        seconds: duration.
        peak_mib: largest resident memory of a command in MiB; 0 for a function.
    """

    code: int | None
    output: str
    errors: str
    seconds: float
    peak_mib: float = 0.0


@dataclass(frozen=True)
class Case:
    """One hostile input.

    Attributes:
        name: what is hostile about it, in a few words.
        run: function of an empty folder. It returns the outcome, and what broke the promise; None if the
            promise holds.
        is_quick: True if it takes less than a second, so that the tests run it too.
    """

    name: str
    run: Callable[[Path], tuple[Outcome, str | None]]
    is_quick: bool = False


def run_command(
    words: Sequence[str | Path],
    folder: Path,
    *,
    variables: Mapping[str, str | None] | None = None,
    timeout_s: float = MAX_CASE_SECONDS,
) -> Outcome:
    """Runs a command, ``ppxcls`` if the first word is a verb, and measures it.

    Args:
        words: words of the command line. A first word with a slash is a program, such as ``sys.executable``.
        folder: current folder of the command.
        variables: environment variables to set; None removes one.
        timeout_s: time limit in seconds. The command and its children are killed then.
    """
    command = [str(word) for word in words]
    if "/" not in command[0]:
        command = [sys.executable, str(ROOT / "ppxcls/__main__.py"), *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for name, value in (variables or {}).items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        start = time.monotonic()
        # S603: runs this package with words that the cases of this folder contain, without a shell.
        process = subprocess.Popen(  # noqa: S603
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )
        code, usage = _wait(process.pid, start + timeout_s)
        process.returncode = code if code is not None else -signal.SIGKILL
        seconds = time.monotonic() - start
        output.seek(0)
        errors.seek(0)
        return Outcome(
            code,
            output.read().decode(errors="replace"),
            errors.read().decode(errors="replace"),
            seconds,
            usage.ru_maxrss / 1024,
        )


def _wait(pid: int, deadline: float) -> tuple[int | None, resource.struct_rusage]:
    """Waits for a process and kills its group at the deadline; returns its code, None after the deadline."""
    while time.monotonic() < deadline:
        waited_pid, status, usage = os.wait4(pid, os.WNOHANG)
        if waited_pid:
            return os.waitstatus_to_exitcode(status), usage
        time.sleep(0.02)
    os.killpg(pid, signal.SIGKILL)
    _, _, usage = os.wait4(pid, 0)
    return None, usage


def call(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Outcome:
    """Calls a function of the package. An error that a user may see is an outcome; others are raised."""
    from ppxcls.checkpoints.files import CheckpointError
    from ppxcls.checkpoints.run_folder import RunFolderError
    from ppxcls.config.checks import ConfigError
    from ppxcls.data.errors import DataError

    start = time.monotonic()
    try:
        result = function(*arguments, **keywords)
    except (CheckpointError, RunFolderError, ConfigError, DataError, OSError) as error:
        return Outcome(1, "", str(error), time.monotonic() - start)
    return Outcome(0, repr(result), "", time.monotonic() - start)


def refusal_problem(outcome: Outcome, *words: str) -> str | None:
    """Returns why an outcome is no refusal in one short line; None if it is one.

    Args:
        outcome: outcome of a command or a function.
        words: parts that the message must contain, such as the name of the file.
    """
    if outcome.code is None:
        return f"still running after {outcome.seconds:.0f} s"
    if outcome.code == 0:
        return "accepted"
    if outcome.code < 0:
        return f"killed by signal {-outcome.code}"
    return message_problem(outcome.errors, *words)


def message_problem(errors: str, *words: str) -> str | None:
    """Returns what is wrong with the error output of a command; None if it is one short line.

    Args:
        errors: text on standard error.
        words: parts that it must contain.
    """
    lines = [line for line in errors.splitlines() if line.strip()]
    if "Traceback" in errors:
        return f"a traceback: {lines[-1][:200]}"
    if not lines:
        return "no message"
    if len(lines) > 3:  # warnings of libraries may precede the line
        return f"{len(lines)} lines of errors"
    if max(map(len, lines)) > MAX_LINE_LENGTH:
        return f"a line of {max(map(len, lines)):,} characters"
    missing_words = [word for word in words if word not in errors]
    if missing_words:
        return f"{missing_words[0]!r} is missing in: {lines[-1][:200]}"
    return None
