"""What a training run says: log lines, and the same figures for the trackers."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from ppxcls.checkpoints.progress import Progress
from ppxcls.system import distributed
from ppxcls.system.logs import logger
from ppxcls.train.metrics import Means
from ppxcls.train.trackers import Tracker

T = TypeVar("T")

# Of tqdm, on a terminal: without colours, so NO_COLOR changes nothing.
BAR = "{desc} {percentage:3.0f} % |{bar:12}| {n_fmt}/{total_fmt} {postfix}"
_BARS = "▁▂▃▄▅▆▇█"
_POINTS = 16  # of the small curve


class RunLog:
    """Writes the lines, and gives the figures to the trackers of the first process.

    Args:
        epochs: of the run.
        interval: iterations between log lines.
        schedule: name of the learning-rate schedule, for the lines.
    """

    def __init__(self, trackers: Sequence[Tracker], epochs: int, interval: int, schedule: str) -> None:
        self.clock = BatchClock()
        self._trackers = trackers if distributed.rank() == 0 else []
        self._epochs, self._interval, self._schedule = epochs, interval, schedule
        self._losses: list[float] = []  # of the last lines
        self.short = ""  # the last line in a few words, for the progress bar

    def start(self, progress: Progress) -> None:
        """Prepare the trackers for a run that goes on from here.

        Raises:
            OSError: a file can't be written.
        """
        for tracker in self._trackers:
            tracker.start(progress)

    def is_due(self, number: int, batches: int) -> bool:
        """Whether a line follows this iteration."""
        return number % self._interval == 0 or number == batches - 1

    def train_line(self, means: Means, lr: float, number: int, batches: int, progress: Progress) -> None:
        """Log the epoch's means so far.

        Args:
            means: over the samples of the epoch.
            lr: rate that the step used.
            number: number of the iteration, from 0.
            batches: iterations per epoch.
            progress: where the run stands.
        """
        times = self.clock.lap()
        remaining = (self._epochs - progress.epoch + 1) * batches - number - 1
        eta = timedelta(seconds=round(remaining * times["batch_cost"]))
        skipped = f"skipped: {progress.skipped_total}, " if progress.skipped_total else ""
        logger.info(
            f"[Train][Epoch {progress.epoch}/{self._epochs}][Iter: {number}/{batches}]"
            f"lr({self._schedule}): {lr:.8f}, {format_figures(means.values)}, {skipped}"
            f"batch_cost: {times['batch_cost']:.5f}s, reader_cost: {times['reader_cost']:.5f}s, "
            f"ips: {times['ips']:.4g} samples/s/card, {times['ips_total']:.4g} in all, eta: {eta}"
        )
        self._shorten(means.values, times["ips_total"], eta)
        amp = {"skipped": progress.skipped_total} if progress.skipped_total else {}
        figures = {
            "lr": lr,
            **means.values,
            **amp,
            **times,
            "eta": eta.total_seconds(),
            "samples": means.samples,
        }
        self._track("train", {"epoch": progress.epoch, "iter": number, "step": progress.step}, figures)

    def _shorten(self, values: dict[str, float], rate: float, eta: timedelta) -> None:
        if math.isfinite(loss := values.get("loss", math.nan)):
            self._losses = [*self._losses[1 - _POINTS :], loss]
        metric = next(
            (f", {name} {value:.3f}" for name, value in values.items() if name.startswith("top")), ""
        )
        self.short = f"loss {loss:.3f} {small_curve(self._losses)}{metric}, {rate:.4g} images/s, {eta} left"

    def epoch_line(self, means: Means, epoch: int) -> None:
        """Log the epoch's means."""
        results = {**means.values, "num_samples": means.samples, "bad_samples": means.left_out}
        logger.info(f"[Train][Epoch {epoch}/{self._epochs}][Avg]{format_results(results)}")

    def eval_line(self, results: dict[str, float], progress: Progress) -> None:
        """Log an evaluation."""
        logger.info(f"[Eval][Epoch {progress.epoch}][Avg]{format_results(results)}")
        logger.info(f"[Eval][Epoch {progress.epoch}][best metric: {progress.best['value']:.5f}]")
        self._track("eval", {"epoch": progress.epoch, "step": progress.step}, results)

    def _track(self, kind: str, place: dict[str, int], figures: dict[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.log(kind, place, figures)

    def flush(self) -> None:
        """Write the figures through to the disk.

        Raises:
            OSError: they can't be written.
        """
        for tracker in self._trackers:
            tracker.flush()

    def close(self) -> None:
        """The run has ended."""
        for tracker in self._trackers:
            tracker.close()


class BatchClock:
    """Time of batches, and of waiting for them, since the last lap."""

    def __init__(self) -> None:
        self.samples = 0
        self._batches = 0
        self._waited = 0.0
        self._start = time.perf_counter()

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches; measures how long each is waited for."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - start
            if batch is None:
                return
            self._batches += 1
            yield batch

    def lap(self) -> dict[str, float]:
        """Seconds a batch, seconds of waiting a batch, and samples a second of one process and of all, since the last lap."""
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        batches = max(self._batches, 1)
        times = {"batch_cost": elapsed / batches, "reader_cost": self._waited / batches}
        times |= {
            "ips": self.samples / elapsed / distributed.world_size(),
            "ips_total": self.samples / elapsed,
        }
        self.samples = self._batches = 0
        self._waited, self._start = 0.0, time.perf_counter()
        return times


def small_curve(values: Sequence[float]) -> str:
    """A curve of one line: each value as a bar between the smallest and the largest one."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    step = (high - low) / (len(_BARS) - 1) or 1.0
    return "".join(_BARS[round((value - low) / step)] for value in values)


def format_figures(values: dict[str, float]) -> str:
    """``top1: 0.78300, CELoss: 1.90000``."""
    return ", ".join(f"{name}: {value:.5f}" for name, value in values.items())


def format_results(results: dict[str, float]) -> str:
    """The figures of an evaluation or an epoch, and the number of samples; unreadable ones are counted apart."""
    counts = ("num_samples", "bad_samples")
    figures = format_figures({name: value for name, value in results.items() if name not in counts})
    left_out = f", left out as unreadable: {results['bad_samples']}" if results.get("bad_samples") else ""
    return f"{figures}, samples: {results['num_samples']}{left_out}"
