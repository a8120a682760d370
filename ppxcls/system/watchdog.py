"""Ends a run that hangs, with a line that says where."""

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

T = TypeVar("T")

_armed = threading.Event()
PARENT = os.getppid()  # as early as possible: a launcher may be gone before Paddle is imported


def arm() -> None:
    """Allow watchdogs to end this process, and end it from now on if its launcher is gone.

    The tools call it; in a notebook or a debugger nothing is ended.
    """
    if not _armed.is_set() and "PADDLE_TRAINER_ID" in os.environ:
        threading.Thread(target=_watch_launcher, name="ppxcls-launcher", daemon=True).start()
    _armed.set()


def _watch_launcher() -> None:
    while os.getppid() == PARENT and not _adopted():
        time.sleep(1.0)
    _end(f"rank {launched_rank()}: " if launched_world_size() > 1 else "", "the launcher is gone")


def _adopted() -> bool:
    """Whether Paddle's launcher started this process and was gone before ``PARENT`` was read, so that init is the parent."""
    if "PADDLE_GLOBAL_RANK" not in os.environ:  # another program started it, and may be init itself
        return False
    try:
        name = Path(f"/proc/{PARENT}/comm").read_text().strip()
    except OSError:  # not Linux, or hidden
        return False
    is_launcher = name.startswith(("python", "fleetrun"))  # it may be a container's init
    return (PARENT == 1 or name == "systemd") and not is_launcher


def _end(name: str, message: str) -> None:
    print(f"error: {name}{message}", file=sys.stderr, flush=True)
    os._exit(1)


class Watchdog:
    """Ends the process if the block makes no progress for too long.

    A rank that waits for another rank gets a quarter more time than a rank that waits for data. So the rank
    with the cause reports first. An exception can't interrupt a process that hangs inside a system call, so
    the process exits at once.

    Args:
        seconds: without progress.
        rank: number of this process, for the message.
        world_size: number of processes.
        detail: returns more words about what the process waits for.
    """

    def __init__(
        self, seconds: float, rank: int = 0, world_size: int = 1, detail: Callable[[], str] = lambda: ""
    ) -> None:
        self.seconds = seconds
        self._name = f"rank {rank}: " if world_size > 1 else ""
        self._several = world_size > 1
        self._detail = detail
        self._stop = threading.Event()
        self.feed("start", own=True)

    def feed(self, doing: str, own: bool) -> None:
        """Report progress.

        Args:
            doing: what comes next.
            own: whether that depends on this process alone.
        """
        self._doing, self._own, self._since = doing, own, time.monotonic()

    def batches(self, batches: Iterator[T], of: str) -> Iterator[T]:
        """Pass the batches on; each one counts as progress.

        Args:
            batches: what to pass on.
            of: what they belong to, for the message.
        """
        while True:
            self.feed(f"loading a batch of {of}", own=True)
            batch = next(batches, None)
            self.feed(f"a step of {of}", own=False)
            if batch is None:
                return
            yield batch

    def __enter__(self) -> Watchdog:
        self._stop.clear()
        if _armed.is_set():
            threading.Thread(target=self._watch, name="ppxcls-watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self.seconds / 10)):
            waited = time.monotonic() - self._since
            if waited > self.seconds * (1 if self._own or not self._several else 1.25):
                cause = "" if self._own or not self._several else " (another rank may hang, or is gone)"
                detail = self._detail()
                _end(
                    self._name,
                    f"no progress for {waited:.0f} s at: {self._doing}{f': {detail}' if detail else ''}{cause}",
                )
