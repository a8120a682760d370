"""The largest batch that fits into the memory of the device, and how fast the batches below it are."""

from __future__ import annotations

import contextlib
import gc
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import paddle

from ppxcls.data.device import ModelInput
from ppxcls.system import distributed
from ppxcls.train.loss_watch import TrainingError
from ppxcls.train.trainer import Trainer

_FIRST, _MOST = 2, 4096
_SHARE = 0.85  # of a host's free memory: beyond it the system ends the process, without an error that could be caught
_AS_FAST = 0.95  # of the best rate
_LONGEST = 60.0  # seconds of a step; larger batches are not tried


@dataclass(frozen=True)
class BatchSizes:
    """What a search has seen.

    Attributes:
        tried: batch size, images/s and bytes at the peak, for each size that fits; ascending.
        limit: what ended the search.
    """

    tried: Sequence[tuple[int, float, int]]
    limit: str

    @property
    def largest(self) -> int:
        """The largest size that was seen to fit."""
        return self.tried[-1][0]

    @property
    def smallest_fast(self) -> int:
        """The smallest size that is within 5 % of the fastest."""
        fastest = max(rate for _, rate, _ in self.tried)
        return next(size for size, rate, _ in self.tried if rate >= _AS_FAST * fastest)

    def __str__(self) -> str:
        lines = [
            f"batches of {size:4}: {rate:6.4g} images/s, {used / 1e9:.3g} GB"
            for size, rate, used in self.tried
        ]
        words = f"batch_size: {self.largest} is the largest that fits ({self.limit})"
        return "\n".join([*lines, f"{words}; {self.smallest_fast} is the smallest within 5 % of the fastest"])


def try_batch_sizes(trainer: Trainer) -> BatchSizes:
    """Train on batches of 2, 4, 8 and so on, and then on sizes between the last that fits and the first that
    doesn't.

    Every batch repeats the samples of the first real one. On a CPU a size is only tried if the memory of the
    sizes before it says that it will fit; an accelerator's error is waited for. The trainer is of no use
    afterwards.

    Raises:
        DataError: a sample can't be loaded.
        TrainingError: not even a batch of 2 fits, or there are several processes.
    """
    if distributed.world_size() > 1:
        raise TrainingError(
            "the largest batch is one process's: look for it on one device, without a launcher"
        )
    attempt = _Attempt(trainer)
    tried: list[tuple[int, float, int]] = []
    low, high, limit = 0, _MOST + 1, f"no larger one than {_MOST} is tried"
    size = _FIRST
    while low < size < high:
        reason, result = attempt(size, tried)
        if reason:
            high, limit = size, reason
        elif result:
            tried.append((size, *result))
            low = size
        step = max(8, low // 8) if low >= 8 else 1  # finer than an eighth is no gain
        size = min(2 * low, _MOST) if high > _MOST else (low + high) // 2 // step * step
    if not tried:
        raise TrainingError(f"not even a batch of {_FIRST} fits: {limit}")
    return BatchSizes(tried, limit)


class _Attempt:
    """Trains on a batch of a given size."""

    def __init__(self, trainer: Trainer) -> None:
        self._learner = trainer.learner
        batch = next(iter(trainer.loader.epoch(1)))
        to_input = ModelInput(trainer.loader.dataset.device_stage)
        self._images, self._labels = to_input(batch.images), paddle.to_tensor(batch.labels)
        self._learner.model.train()
        self._on_host = paddle.get_device() == "cpu"

    def __call__(
        self, size: int, tried: Sequence[tuple[int, float, int]]
    ) -> tuple[str, tuple[float, int] | None]:
        """Two steps on a batch of this size; returns why it can't be, or images/s of the faster step and bytes at its peak."""
        if tried and size / tried[-1][1] > _LONGEST:
            return f"a step of {size} images would take more than {_LONGEST:g} s", None
        if (
            self._on_host
            and tried
            and (needed := _predicted(size, tried) - _of_this_process("VmRSS")) > (free := _free_on_host())
        ):
            return (
                f"{size} images would need {needed / 1e9:.3g} GB more, and {free / 1e9:.3g} GB may be taken",
                None,
            )
        try:
            seconds, used = self._steps(size)
        except (
            MemoryError,
            RuntimeError,
            SystemError,
        ) as error:  # Paddle has no error of its own for it in all versions
            says_so = any(word in str(error).lower() for word in ("memory", "resourceexhausted"))
            if not says_so and not isinstance(error, MemoryError):
                raise
            self._forget()
            return f"{size} images don't fit into the memory of {paddle.get_device()}", None
        return "", (size / seconds, used)

    def _steps(self, size: int) -> tuple[float, int]:
        count = -(-size // self._images.shape[0])
        images, labels = (paddle.concat([x] * count)[:size] for x in (self._images, self._labels))
        images, labels = self._learner.mixed(images, labels, [0])
        _reset_peak(self._on_host)
        times = []
        for _ in range(2):
            start = time.perf_counter()
            float(self._learner.step(images, labels, 1.0, True).sum())  # waits for the device
            times.append(time.perf_counter() - start)
        return min(times), _peak(self._on_host)

    def _forget(self) -> None:
        """Give back what a step left that ended in the middle."""
        self._learner.optimizer.clear_grad()
        gc.collect()
        if not self._on_host:
            with contextlib.suppress(AttributeError, ValueError, RuntimeError):
                paddle.device.cuda.empty_cache()


def _predicted(size: int, tried: Sequence[tuple[int, float, int]]) -> float:
    """Bytes at the peak, by a line through the last two sizes."""
    last, _, used = tried[-1]
    before, _, used_before = tried[-2] if len(tried) > 1 else (0, 0.0, 0)
    return used + (size - last) * max(used - used_before, 0) / (last - before)


def _free_on_host() -> float:
    """Bytes that this process may still take, of the machine and of its control group."""
    free = []
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    with contextlib.suppress(OSError, ValueError):  # "max" is no number
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        lines = (group / "memory.stat").read_text().splitlines()
        cached = sum(
            int(line.split()[1]) for line in lines if line.startswith("inactive_file ")
        )  # of files; it is given back
        free.append(limit - used + cached)
    return _SHARE * min(free, default=2e9)


def _reset_peak(on_host: bool) -> None:
    if on_host:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    else:
        with contextlib.suppress(
            AttributeError, ValueError, RuntimeError
        ):  # not for every kind of device, and not in every Paddle
            paddle.device.cuda.reset_max_memory_allocated()


def _peak(on_host: bool) -> int:
    """Bytes at the peak: of the process on a CPU, of Paddle's tensors on an accelerator; 0 if that is unknown."""
    if not on_host:
        try:
            return int(paddle.device.cuda.max_memory_allocated())
        except (AttributeError, ValueError, RuntimeError):
            return 0
    return _of_this_process("VmHWM") or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _of_this_process(figure: str) -> int:
    """Bytes, from Linux's table of this process; 0 on another system."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(figure)).split()[1])
    return 0
