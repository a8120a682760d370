"""The counts of the test device, in a process that has it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path


@dataclass
class Counts:
    """What the host did, see ``Counts`` in ``runtime.h``.

    Attributes:
        copies_to_device: copies to the device for which the host waited.
        copies_from_device: copies from the device for which the host waited.
        queued_copies_to_device: copies to the device that were only queued.
        queued_copies_from_device: copies from the device that were only queued.
        waits: waits for a device, a stream or an event.
        kernels: operators that ran on the device.
        collectives: collectives that were queued.
        changed_sources: sources of queued copies that changed before the copies were due.
    """

    copies_to_device: int = 0
    copies_from_device: int = 0
    queued_copies_to_device: int = 0
    queued_copies_from_device: int = 0
    waits: int = 0
    kernels: int = 0
    collectives: int = 0
    changed_sources: int = 0


def device_library() -> ctypes.CDLL:
    """Returns the library that Paddle loaded."""
    return ctypes.CDLL(str(Path(os.environ["CUSTOM_DEVICE_ROOT"]) / "libaccelerator.so"))


def total_counts() -> Counts:
    """Returns the counts from the start of the process."""
    values = (ctypes.c_int64 * 8)()
    device_library().device_counts(values)
    return Counts(*values)


@contextmanager
def counted() -> Iterator[Counts]:
    """Yields counts that hold, after the block, what happened in the block."""
    counts = Counts()
    start = astuple(total_counts())
    yield counts
    for name, before, after in zip(vars(counts), start, astuple(total_counts()), strict=True):
        setattr(counts, name, after - before)


def set_delay(microseconds: int) -> None:
    """Sets how late a queued copy runs.

    Args:
        microseconds: delay of each copy.
    """
    device_library().device_set_delay(ctypes.c_long(microseconds))
