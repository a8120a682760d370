"""Finds the largest batch that fits into the device's memory, and the speed of smaller batches."""

from __future__ import annotations

import contextlib
import gc
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import paddle

from ppxcls.data.device import ModelInput, to_device
from ppxcls.system import distributed
from ppxcls.system.devices import is_out_of_memory
from ppxcls.system.signals import interrupts_deferred
from ppxcls.train.loss_watch import TrainingError
from ppxcls.train.trainer import Trainer

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None  # type: ignore[assignment]

_FIRST_SIZE, _MAX_SIZE = 2, 4096
_MAX_HOST_MEMORY_SHARE = 0.85  # fraction of free memory; beyond it the process is killed without an error
_FAST_SHARE = 0.95  # fraction of the best images/s
_MAX_STEP_SECONDS = 60.0  # seconds per step; larger batches are not tried


@dataclass(frozen=True)
class BatchSizes:
    """Results of a batch-size search.

    Attributes:
        measurements: batch size, images/s and peak bytes of each size that fits, by ascending size.
        limit: reason for the end of the search.
    """

    measurements: Sequence[tuple[int, float, int]]
    limit: str

    @property
    def largest(self) -> int:
        """Largest size that fits, or that the data can fill."""
        return self.measurements[-1][0]

    @property
    def smallest_fast(self) -> int:
        """Smallest size with a speed within 5 % of the fastest."""
        fastest = max(rate for _, rate, _ in self.measurements)
        return next(size for size, rate, _ in self.measurements if rate >= _FAST_SHARE * fastest)

    def __str__(self) -> str:
        lines = [
            f"batches of {size:4}: {rate:6.4g} images/s, {peak_bytes / 1e9:.3g} GB"
            for size, rate, peak_bytes in self.measurements
        ]
        words = f"batch_size: {self.largest} is the largest that fits ({self.limit})"
        return "\n".join([*lines, f"{words}; {self.smallest_fast} is the smallest within 5 % of the fastest"])


def try_batch_sizes(trainer: Trainer, samples_per_step: int | None = None) -> BatchSizes:
    """Searches for the largest batch size that fits, by training on increasing sizes.

    The sizes are 2, 4, 8 and so on, and then sizes between the last that fits and the first that doesn't.
    Every batch repeats the samples of the first real one. No size is larger than the training data or than
    ``Global.samples_per_step``, because no batch of the training can be.

    On a CPU, a size is only tried if the memory use of smaller sizes predicts that it fits, because the
    system would kill the process without an error. On an accelerator, the search relies on the device's
    error. The trainer can't be used afterwards.

    Args:
        trainer: trainer, as for training.
        samples_per_step: number of samples in an optimizer step, which a batch can't exceed; None for no
            limit.

    Raises:
        DataError: a sample can't be loaded.
        TrainingError: not even the smallest batch fits, or there are several processes.
    """
    if distributed.world_size() > 1:
        raise TrainingError(
            "the batch-size search needs a single process: run it on one device, without a launcher"
        )
    largest_size, limit = _largest_size(trainer, samples_per_step)
    attempt = _Attempt(trainer)
    measurements: list[tuple[int, float, int]] = []
    low = 0
    high = largest_size + 1
    size = min(_FIRST_SIZE, largest_size)
    if samples_per_step is not None:
        size = _divisor(samples_per_step, size, low)
    while low < size < high:
        reason, result = attempt(size, measurements)
        if reason:
            high, limit = size, reason
        elif result:
            measurements.append((size, *result))
            low = size
        step = max(8, low // 8) if low >= 8 else 1  # steps below an eighth gain nothing
        size = min(2 * low, largest_size) if high > largest_size else (low + high) // 2 // step * step
        if samples_per_step is not None:
            size = _divisor(samples_per_step, size, low)
    if not measurements:
        raise TrainingError(
            f"not even a batch of {min(_FIRST_SIZE, largest_size)} fits: {limit}; "
            "Arch.recompute and AMP need less memory"
        )
    return BatchSizes(measurements, limit)


def _largest_size(trainer: Trainer, samples_per_step: int | None) -> tuple[int, str]:
    """Returns the largest size that the training can use, and the reason, for a message."""
    limits = [
        (_MAX_SIZE, f"sizes above {_MAX_SIZE} are not tried"),
        (len(trainer.loader.dataset), f"the training data has {len(trainer.loader.dataset):,} images"),
    ]
    if samples_per_step is not None:
        limits.append((samples_per_step, f"Global.samples_per_step is {samples_per_step:,}"))
    return min(limits)


def _divisor(samples_per_step: int, size: int, low: int) -> int:
    """Returns the divisor nearest to a size, above ``low`` if there is one; training refuses other sizes."""
    divisors = [number for number in range(1, samples_per_step + 1) if samples_per_step % number == 0]
    larger_divisors = [number for number in divisors if number > low] or divisors
    return min(larger_divisors, key=lambda number: abs(number - size))


class _Attempt:
    """Trains on a batch of a given size."""

    def __init__(self, trainer: Trainer) -> None:
        self._learner = trainer.learner
        batch = next(iter(trainer.loader.epoch(1)))
        to_input = ModelInput(trainer.loader.dataset.device_stage)
        self._images = to_input(batch.images)
        self._labels = to_device(batch.labels)
        trainer.close_loaders()
        self._learner.model.train()
        self._is_host = paddle.get_device() == "cpu"

    def __call__(
        self, size: int, measurements: Sequence[tuple[int, float, int]]
    ) -> tuple[str, tuple[float, int] | None]:
        """Runs two steps on a batch of this size.

        Returns:
            An empty string with images/s of the faster step and its peak bytes, or else the reason why the
            size can't be used, with None.
        """
        if measurements and size / measurements[-1][1] > _MAX_STEP_SECONDS:
            return f"a step of {size} images would take more than {_MAX_STEP_SECONDS:g} s", None
        if (
            self._is_host
            and measurements
            and (needed_bytes := _predicted_peak_bytes(size, measurements) - _process_bytes("VmRSS"))
            > (free_bytes := _free_host_bytes())
        ):
            return (
                f"{size} images would need {needed_bytes / 1e9:.3g} "
                f"GB more, and {free_bytes / 1e9:.3g} GB are available",
                None,
            )
        try:
            seconds, peak_bytes = self._steps(size)
        except (MemoryError, RuntimeError, SystemError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            self._release_memory()
            return f"{size} images don't fit into the memory of {paddle.get_device()}", None
        return "", (size / seconds, peak_bytes)

    def _steps(self, size: int) -> tuple[float, int]:
        count = -(-size // self._images.shape[0])
        images, labels = (paddle.concat([x] * count)[:size] for x in (self._images, self._labels))
        images, labels = self._learner.mixed(images, labels, [0])
        _reset_peak(is_host=self._is_host)
        times = []
        for _ in range(2):
            start = time.perf_counter()
            with interrupts_deferred():
                sums = self._learner.step(images, labels, 1.0, is_update_step=True)
                float(sums.sum())  # waits for the device
            times.append(time.perf_counter() - start)
        return min(times), _peak_bytes(is_host=self._is_host)

    def _release_memory(self) -> None:
        """Releases the memory of a step that failed."""
        self._learner.optimizer.clear_grad()
        gc.collect()
        if not self._is_host:
            with contextlib.suppress(AttributeError, ValueError, RuntimeError):
                paddle.device.cuda.empty_cache()


def _predicted_peak_bytes(size: int, measurements: Sequence[tuple[int, float, int]]) -> float:
    """Returns the predicted peak bytes, on a line through the last two sizes."""
    last, _, peak_bytes = measurements[-1]
    previous, _, previous_peak_bytes = measurements[-2] if len(measurements) > 1 else (0, 0.0, 0)
    return peak_bytes + (size - last) * max(peak_bytes - previous_peak_bytes, 0) / (last - previous)


def _free_host_bytes() -> float:
    """Returns the bytes that this process may still allocate.

    Both the machine and the control group of the process limit them.
    """
    free_bytes = []
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free_bytes.append(
            1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
        )
    with contextlib.suppress(OSError, ValueError):  # "max" is not a number
        group = Path("/sys/fs/cgroup")
        limit, used_bytes = (
            int((group / f"memory.{name}").read_text(encoding="utf-8")) for name in ("max", "current")
        )
        lines = (group / "memory.stat").read_text(encoding="utf-8").splitlines()
        # File cache, which the system releases if needed.
        cached_bytes = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
        free_bytes.append(limit - used_bytes + cached_bytes)
    return _MAX_HOST_MEMORY_SHARE * min(free_bytes, default=2e9)


def _reset_peak(*, is_host: bool) -> None:
    if is_host:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    else:
        with contextlib.suppress(
            AttributeError, ValueError, RuntimeError
        ):  # not on every kind of device, and not in every Paddle version
            paddle.device.cuda.reset_max_memory_allocated()


def _peak_bytes(*, is_host: bool) -> int:
    """Returns the peak bytes; 0 if they are unknown.

    On a CPU they are of the whole process, on an accelerator of Paddle's tensors.
    """
    if not is_host:
        try:
            return int(paddle.device.cuda.max_memory_allocated())
        except (AttributeError, ValueError, RuntimeError):
            return 0
    if (peak_bytes := _process_bytes("VmHWM")) or resource is None:
        return peak_bytes
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return unit_bytes * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _process_bytes(figure: str) -> int:
    """Returns a memory figure of this process, in bytes, from Linux's ``/proc``; 0 on other systems."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(figure)).split()[1])
    return 0
