"""The output of a training run: log lines, and the same metrics for the trackers."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from ppxcls.checkpoints.progress import Progress
from ppxcls.system import distributed
from ppxcls.system.logs import logger
from ppxcls.train.group_figures import GROUP_COUNT
from ppxcls.train.metrics import Means
from ppxcls.train.trackers import Tracker

T = TypeVar("T")

# Format of tqdm's bar on a terminal. It has no colours, so NO_COLOR has no effect.
BAR_FORMAT = "{desc} {percentage:3.0f} % |{bar:12}| {n_fmt}/{total_fmt} {postfix}"
_BAR_CHARACTERS = "▁▂▃▄▅▆▇█"
_MAX_CURVE_POINTS = 16  # losses in the small curve


class RunLog:
    """Writes the log lines, and passes the metrics to the trackers of the first process.

    Args:
        trackers: receivers of the metrics.
        epochs: number of epochs in the run.
        interval: number of iterations between log lines.
        schedule_name: name of the learning-rate schedule, for the log lines.

    Attributes:
        clock: clock for the time of batches between log lines.
        summary: short form of the last training line, for the progress bar.
    """

    def __init__(self, trackers: Sequence[Tracker], epochs: int, interval: int, schedule_name: str) -> None:
        self.clock = BatchClock()
        self._trackers = trackers if distributed.rank() == 0 else []
        self._epochs = epochs
        self._interval = interval
        self._schedule_name = schedule_name
        self._losses: list[float] = []  # at the last log lines
        self.summary = ""

    def start(self, progress: Progress) -> None:
        """Prepares the trackers for a run that starts at this progress.

        Raises:
            OSError: a file can't be written.
        """
        for tracker in self._trackers:
            tracker.start(progress)

    def is_due(self, number: int, batches: int) -> bool:
        """True if a log line follows this iteration."""
        return number % self._interval == 0 or number == batches - 1

    def train_line(self, means: Means, lr: float, *, number: int, batches: int, progress: Progress) -> None:
        """Logs the means of the epoch so far.

        Args:
            means: means over the samples of the epoch so far.
            lr: learning rate of the last step.
            number: index of the iteration in the epoch, from 0.
            batches: number of iterations per epoch.
            progress: progress of the run.
        """
        times = self.clock.lap(self._interval)
        remaining_batches = (self._epochs - progress.epoch + 1) * batches - number - 1
        eta = timedelta(seconds=round(remaining_batches * times["batch_cost"]))
        skipped_text = f"skipped: {progress.skipped_total}, " if progress.skipped_total else ""
        logger.info(
            f"[Train][Epoch {progress.epoch}/{self._epochs}][Iter: {number}/{batches}]"
            f"lr({self._schedule_name}): {lr:.8f}, {format_figures(means.values)}, {skipped_text}"
            f"batch_cost: {times['batch_cost']:.5f}s, reader_cost: {times['reader_cost']:.5f}s, "
            f"ips: {times['ips']:.4g} samples/s/card, {times['ips_total']:.4g} in all, eta: {eta}"
        )
        self._update_summary(means.values, times["ips_total"], eta)
        amp_figures = {"skipped": progress.skipped_total} if progress.skipped_total else {}
        figures = {
            "lr": lr,
            **means.values,
            **amp_figures,
            **times,
            "eta": eta.total_seconds(),
            "samples": means.samples,
        }
        self._track("train", {"epoch": progress.epoch, "iter": number, "step": progress.step}, figures)

    def _update_summary(self, values: dict[str, float], rate: float, eta: timedelta) -> None:
        if math.isfinite(loss := values.get("loss", math.nan)):
            self._losses = [*self._losses[1 - _MAX_CURVE_POINTS :], loss]
        metric_text = next(
            (f", {name} {value:.3f}" for name, value in values.items() if name.startswith("top")), ""
        )
        self.summary = (
            f"loss {loss:.3f} {small_curve(self._losses)}{metric_text}, {rate:.4g} images/s, {eta} left"
        )

    def epoch_line(self, means: Means, epoch: int) -> None:
        """Logs the means of a complete epoch."""
        results = {**means.values, "num_samples": means.samples, "bad_samples": means.left_out}
        logger.info(f"[Train][Epoch {epoch}/{self._epochs}][Avg]{format_results(results)}")

    def eval_line(self, results: dict[str, float], progress: Progress) -> None:
        """Logs the results of an evaluation, and the best result so far."""
        logger.info(f"[Eval][Epoch {progress.epoch}][Avg]{format_results(results)}")
        best = progress.best
        logger.info(
            f"[Eval][Epoch {progress.epoch}][best metric: {best['value']:.5f}] "
            f"{best['metric']} of epoch {best['epoch']}"
        )
        self._track("eval", {"epoch": progress.epoch, "step": progress.step}, results)

    def _track(self, kind: str, place: dict[str, int], figures: dict[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.log(kind, place, figures)

    def flush(self) -> None:
        """Makes the trackers write all metrics to the disk.

        Raises:
            OSError: the metrics can't be written.
        """
        for tracker in self._trackers:
            tracker.flush()

    def close(self) -> None:
        """Closes the trackers at the end of the run."""
        for tracker in self._trackers:
            tracker.close()


@dataclass(frozen=True)
class _Lap:
    """Times between two log lines: batches, samples of all processes, and seconds."""

    batches: int
    samples: int
    waiting_seconds: float
    seconds: float


class BatchClock:
    """Measures the time of batches, and the time of waiting for them.

    Attributes:
        samples: number of samples of all processes since the last lap. The caller adds them.
    """

    def __init__(self) -> None:
        self._laps: list[_Lap] = []  # of the epoch so far
        self._restart()

    def _restart(self) -> None:
        self.samples = self._batches = 0
        self._waiting_seconds = 0.0
        self._start = time.perf_counter()

    def start_epoch(self) -> None:
        """Forgets the times so far. The time between two epochs counts for neither of them."""
        self._laps = []
        self._restart()

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """Yields the same batches, and measures how long the caller waits for each."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self._waiting_seconds += time.perf_counter() - start
            if batch is None:
                return
            self._batches += 1
            yield batch

    def lap(self, min_batches: int = 1) -> dict[str, float]:
        """Ends a lap, and returns the times over the last laps of the epoch.

        A lap of a few batches says little: the last batches of an epoch are read ahead already. So as many
        laps are taken together as ``min_batches`` need, if the epoch has so many.

        Args:
            min_batches: number of batches that the times should cover.

        Returns:
            ``batch_cost``: seconds per batch; ``reader_cost``: seconds of waiting per batch; ``ips``: samples
            per second of one process; ``ips_total``: samples per second of all processes.
        """
        seconds = max(time.perf_counter() - self._start, 1e-9)
        self._laps.append(_Lap(self._batches, self.samples, self._waiting_seconds, seconds))
        self._restart()
        window: list[_Lap] = []
        for lap in reversed(self._laps):
            if sum(part.batches for part in window) >= min_batches:
                break
            window.append(lap)
        batches = max(sum(lap.batches for lap in window), 1)
        window_seconds = sum(lap.seconds for lap in window)
        rate = sum(lap.samples for lap in window) / window_seconds
        return {
            "batch_cost": window_seconds / batches,
            "reader_cost": sum(lap.waiting_seconds for lap in window) / batches,
            "ips": rate / distributed.world_size(),
            "ips_total": rate,
        }


def small_curve(values: Sequence[float]) -> str:
    """Returns a curve in one line of text: a bar for each value, scaled from the smallest to the largest."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    step = (high - low) / (len(_BAR_CHARACTERS) - 1) or 1.0
    return "".join(_BAR_CHARACTERS[round((value - low) / step)] for value in values)


def format_figures(values: dict[str, float]) -> str:
    """Returns the values as text, such as ``top1: 0.78300, CELoss: 1.90000``."""
    texts = {
        name: f"{value:.5f}" if isinstance(value, float) else str(value) for name, value in values.items()
    }
    return ", ".join(f"{name}: {text}" for name, text in texts.items())


def format_results(results: dict[str, float]) -> str:
    """Returns the metrics of an evaluation or an epoch as text, with the numbers of samples and of groups.

    Unreadable samples are counted separately.
    """
    count_names = ("num_samples", GROUP_COUNT, "bad_samples")
    figures = format_figures({name: value for name, value in results.items() if name not in count_names})
    unreadable_text = (
        f", left out as unreadable: {results['bad_samples']}" if results.get("bad_samples") else ""
    )
    groups_text = f", groups: {results[GROUP_COUNT]}" if GROUP_COUNT in results else ""
    return f"{figures}, samples: {results['num_samples']}{groups_text}{unreadable_text}"
