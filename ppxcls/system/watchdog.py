"""Ends a run that hangs, with a line that names the operation."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from ppxcls.system.environment import launched_rank, launched_world_size
from ppxcls.system.paths import one_line

T = TypeVar("T")

_FIRST_STEP_FACTOR = 3.0
_OTHER_RANKS_FACTOR = 1.25
_armed_event = threading.Event()
PARENT = os.getppid()  # read early, because a launcher may end before Paddle is imported


def arm() -> None:
    """Allows watchdogs to end this process, and ends it if its launcher ends.

    The tools call it. In a notebook or a debugger, no process is ended.
    """
    if not _armed_event.is_set() and "PADDLE_TRAINER_ID" in os.environ:
        threading.Thread(target=_watch_launcher, name="ppxcls-launcher", daemon=True).start()
    _armed_event.set()


def _watch_launcher() -> None:
    while os.getppid() == PARENT and not _is_orphan():
        time.sleep(1.0)
    _end(f"rank {launched_rank()}: " if launched_world_size() > 1 else "", "the launcher is gone")


def _is_orphan() -> bool:
    """True if Paddle's launcher started this process and ended before ``PARENT`` was read.

    Then the parent is init.
    """
    if "PADDLE_GLOBAL_RANK" not in os.environ:  # another program started it, which may be init itself
        return False
    try:
        name = Path(f"/proc/{PARENT}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # the system is not Linux, or hides this file
        return False
    is_launcher = name.startswith(("python", "fleetrun"))  # a launcher can be the init of a container
    return (PARENT == 1 or name == "systemd") and not is_launcher


def _end(prefix: str, message: str) -> None:
    print(one_line(f"error: {prefix}{message}"), file=sys.stderr, flush=True)
    os._exit(1)


class Watchdog:
    """Ends the process if the block makes no progress for too long.

    A rank that waits for another rank gets a quarter more time than a rank that waits for data. So the rank
    with the cause reports first. The first step of a phase gets three times as long, because it may hold a
    compilation, or a search for the fastest algorithms. An exception can't interrupt a process that hangs
    inside a system call. So the process exits at once.

    Args:
        seconds: longest time without progress, in seconds.
        rank: number of this process, for the message.
        world_size: number of processes.
        detail: function that returns more words about the operation, for the message.
    """

    def __init__(
        self, seconds: float, rank: int = 0, world_size: int = 1, detail: Callable[[], str] = lambda: ""
    ) -> None:
        self.seconds = seconds
        self._prefix = f"rank {rank}: " if world_size > 1 else ""
        self._has_other_ranks = world_size > 1
        self._detail = detail
        self._stop = threading.Event()
        self._started_phases: set[str] = set()
        self.feed("start", is_local=True)

    @property
    def limit_seconds(self) -> float:
        """Longest time without progress at the current operation, in seconds."""
        waits_for_others = self._has_other_ranks and not self._is_local
        limit = self.seconds * (_FIRST_STEP_FACTOR if self._is_first_step else 1.0)
        return limit * (_OTHER_RANKS_FACTOR if waits_for_others else 1.0)

    def feed(self, operation: str, *, is_local: bool, is_first_step: bool = False) -> None:
        """Reports progress.

        Args:
            operation: next operation, for the message.
            is_local: True if the next operation depends on this process alone.
            is_first_step: True if the next operation is the first step of a phase.
        """
        self._operation = operation
        self._is_local = is_local
        self._is_first_step = is_first_step
        self._progress_time = time.monotonic()

    def batches(self, batches: Iterator[T], name: str) -> Iterator[T]:
        """Yields the batches; each one counts as progress.

        Args:
            batches: iterator over the batches.
            name: name of the phase, for the message, such as ``epoch 3``. Epochs are one phase.
        """
        phase = name.rstrip("0123456789 ")
        while True:
            self.feed(f"loading a batch of {name}", is_local=True)
            batch = next(batches, None)
            is_first_step = phase not in self._started_phases
            self.feed(f"a step of {name}", is_local=False, is_first_step=is_first_step)
            if batch is None:
                return
            self._started_phases.add(phase)
            yield batch

    def __enter__(self) -> Watchdog:
        self._stop.clear()
        if _armed_event.is_set():
            threading.Thread(target=self._watch, name="ppxcls-watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self.seconds / 10)):
            idle_seconds = time.monotonic() - self._progress_time
            if idle_seconds > self.limit_seconds:
                cause = (
                    ""
                    if self._is_local or not self._has_other_ranks
                    else " (another rank may hang, or is gone)"
                )
                detail = self._detail()
                _end(
                    self._prefix,
                    f"no progress for {idle_seconds:.0f} s at: "
                    f"{self._operation}{f': {detail}' if detail else ''}{cause}",
                )
