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

from ppxcls.system.node_group import NodeGroup, Place
from ppxcls.system.rendezvous import JobError
from ppxcls.system.signals import EXIT_PREEMPTED

BEGUN = "PPXCLS_BEGUN"  # names a file that a run creates when it has begun, in its first process
_DONE, _ERROR, _USAGE = 0, 1, 2
_FINAL = (_DONE, _USAGE, EXIT_PREEMPTED)
_HEALTHY = 600.0  # seconds after which a failure counts as the first one again
_LAST_STEPS = 300.0  # seconds that a node may take to save after another one was told to stop
_POLL = 0.2


def note_begun(step: int) -> None:
    """Tell this node's supervisor, if there is one, that the run has begun, so that it can go on from a checkpoint of its own.

    A later step than at the start before shows that the job gets on, however often it fails.
    """
    if (file := os.environ.get(BEGUN)) and os.environ.get("PADDLE_LOCAL_RANK", "0") == "0":  # each node has its own supervisor
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


def launch_command(launcher: Sequence[str], script: Sequence[str], place: Place) -> list[str]:
    """The words that start Paddle's launcher.

    Args:
        launcher: its options.
        script: the script and its arguments.
        place: of this node.
    """
    nodes = ["--nnodes", str(place.nodes), "--rank", str(place.rank)] if place.nodes else []  # of two, the last one counts
    resume = ["-o", "Global.checkpoints=auto"] if place.resume else []
    return [sys.executable, "-m", "paddle.distributed.launch", *launcher, *nodes, *script, *resume]


class Supervisor:
    """Runs a command, and runs it again if it fails.

    SIGTERM and SIGINT are passed on to the command, SIGUSR1 as SIGTERM, because Paddle's launcher does not know it; then the
    command is not run again. Neither is it after exit code 2 (the config is invalid), 75 or 15 (it was told to stop and has saved).

    Args:
        command: the words of the job, for a place in it.
        restarts: largest number of restarts in a row. A failure after ten minutes, or of a run that began at a later step than the
            one before, counts as the first one.
        pause: seconds before the first restart; doubled each time, up to five minutes.
        say: takes a line for the user.
        group: makes the view of the other nodes, if some may be missing; it is given what tells whether to stop.
    """

    def __init__(
        self,
        command: Callable[[Place], Sequence[str]],
        restarts: int,
        pause: float = 5.0,
        say: Callable[[str], object] = lambda line: print(line, file=sys.stderr, flush=True),
        group: Callable[[Callable[[], bool]], NodeGroup] | None = None,
    ) -> None:
        self._command, self._restarts, self._pause, self._say = command, restarts, pause, say
        self._group = group(lambda: self._received is not None) if group else None
        self._process: subprocess.Popen[bytes] | None = None
        self._received: int | None = None

    def run(self) -> int:
        """Run to the end; returns the exit code of the last run."""
        before = {number: signal.signal(number, self._pass_on) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
        code = _ERROR
        try:
            with tempfile.TemporaryDirectory() as folder:
                code = self._run(Path(folder) / "begun")
        except JobError as error:
            self._say(f"launch: {error}")
        finally:
            if self._group:
                self._group.end(code)
            for number, handler in before.items():
                signal.signal(number, handler)
        return code

    def _run(self, begun: Path) -> int:
        failures, code, step = 0, _ERROR, 0
        while True:
            place = self._place(begun.exists())
            if place is None:
                return _DONE if self._group and self._group.ended == _DONE else self._code_at_end(code)
            start = time.monotonic()
            code = self._run_once(place, {**os.environ, BEGUN: str(begun)})
            if code == signal.SIGTERM:  # how Paddle's launcher ends after one
                return EXIT_PREEMPTED
            if self._received is not None or code in _FINAL:
                return code
            if self._group and self._group.ended not in (None, _DONE):
                return self._code_at_end(code)
            seconds = time.monotonic() - start
            before, step = step, max(step, _step_in(begun))
            failures = 1 if seconds > _HEALTHY or step > before else failures + 1
            ended = f"the job ended with {'code' if code >= 0 else 'signal'} {abs(code)} after {seconds:.0f} s"
            if failures > self._restarts:
                self._say(f"launch: {ended}; it has failed {failures} times in a row, and is given up")
                return self._code_at_end(code)
            pause = min(self._pause * 2 ** min(failures - 1, 10), 300.0)
            if self._group:
                self._group.leave()
                pause = pause if self._group.leads else 0.0  # the others wait for the leader
            origin = "from its newest checkpoint" if begun.exists() else "from the start"
            self._say(f"launch: {ended}; restart {failures} of {self._restarts} in {pause:.0f} s, {origin}")
            self._wait(pause)
            if self._received is not None:
                return self._code_at_end(code)

    def _place(self, has_begun: bool) -> Place | None:
        if self._group is None:
            return Place(has_begun)
        place = self._group.meet(has_begun)
        if place is not None:
            self._say(f"launch: {place.nodes} nodes have met; this one is number {place.rank}")
        return place

    def _run_once(self, place: Place, environment: dict[str, str]) -> int:
        # In a session of its own, so that Ctrl-C at a terminal reaches it once.
        words = self._command(place)
        self._process = process = subprocess.Popen(words, env=environment, start_new_session=True)  # noqa: S603  the user's own
        if self._received is not None:  # it came in the meantime
            process.send_signal(self._received)
        if self._group is None:
            return process.wait()
        deadline: float | None = None
        while process.poll() is None:
            if self._group.is_broken():
                self._say("launch: another node has left the job, so it is ended here too")
                self._kill(process)
            elif self._group.ended not in (None, _DONE):  # where a node is done, this one may still write and report
                deadline = deadline or time.monotonic() + (_LAST_STEPS if self._group.ended == EXIT_PREEMPTED else 0)
                if time.monotonic() > deadline:
                    self._say(f"launch: another node has ended the job with code {self._group.ended}, so it is ended here too")
                    self._kill(process)
            time.sleep(_POLL)
        return process.wait()

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        """End the launcher at once; its processes, which may wait for a lost node, end when it has gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _code_at_end(self, code: int) -> int:
        """The exit code after a failure that is not tried again.

        A signal between two runs ends with 75, because all that was done is saved. Another node's word on a failure counts more
        than this node's code, but its success does not.
        """
        if self._received is not None:
            return EXIT_PREEMPTED
        if self._group and self._group.ended not in (None, _DONE):
            return self._group.ended
        return code if code > 0 else _ERROR

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self._received is None and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _POLL))

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._received = number = signal.SIGTERM if number == signal.SIGUSR1 else number
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
