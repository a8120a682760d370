"""What a training run says: log lines, ``metrics.jsonl`` and curves."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from ppxcls.checkpoints.progress import Progress
from ppxcls.system import distributed
from ppxcls.system.logs import BatchClock, Curves, JsonLines, format_figures, logger
from ppxcls.train.loss_watch import LossWatch

_NO_CURVE = {"batch_cost", "reader_cost", "eta", "num_samples", "bad_samples"}


class RunLog:
    """Writes the lines.

    Args:
        watch: of the steps, whose means the lines say.
        log_interval: iterations between log lines.
        lr_name: of the schedule, in the log lines.
    """

    def __init__(self, output_dir: Path, watch: LossWatch, epochs: int, log_interval: int, lr_name: str, curves: Curves) -> None:
        self.watch = watch
        self.lines = JsonLines(output_dir / "metrics.jsonl")
        self.clock = BatchClock()
        self._epochs, self._log_interval, self._lr_name = epochs, log_interval, lr_name
        self._curves = curves
        self._is_main = distributed.rank() == 0

    def start(self, progress: Progress) -> None:
        """Prepare the files for a run that goes on from here: what was written after it is about to be written again.

        Raises:
            OSError: a file can't be written.
        """

        def keep(line: dict[str, Any]) -> bool:
            if line["kind"] == "eval":  # of an epoch whose evaluation is still to come where it is not done
                return bool(line["epoch"] < progress.epoch)
            return (line["epoch"], line["iter"]) < (progress.epoch, progress.batches_done)

        if self._is_main:
            self.lines.start(keep if progress.step else None)

    def start_epoch(self, progress: Progress) -> None:
        """Begin to count, with what the progress holds."""
        self.watch.start_epoch(progress)
        self.clock = BatchClock()

    def line_due(self, number: int, batches: int) -> bool:
        """Whether the losses are to be read after this iteration."""
        return number % self._log_interval == 0 or number == batches - 1

    def train_line(self, step_lr: float, number: int, batches: int, progress: Progress) -> None:
        """Log the epoch's means so far; all processes call it."""
        means = self.watch.totals.reduced().values
        times = self.clock.lap()
        remaining = (self._epochs - progress.epoch + 1) * batches - number - 1
        eta = timedelta(seconds=round(remaining * times["batch_cost"]))
        skipped = f"skipped: {progress.skipped_total}, " if progress.skipped_total else ""
        logger.info(
            f"[Train][Epoch {progress.epoch}/{self._epochs}][Iter: {number}/{batches}]"
            f"lr({self._lr_name}): {step_lr:.8f}, {format_figures(means)}, {skipped}"
            f"batch_cost: {times['batch_cost']:.5f}s, reader_cost: {times['reader_cost']:.5f}s, "
            f"ips: {times['ips']:.5f} samples/s, eta: {eta}"
        )
        amp = {"skipped": progress.skipped_total} if progress.skipped_total else {}
        figures = {"lr": step_lr, **means, **amp, **times, "eta": eta.total_seconds()}
        self._write("train", {"epoch": progress.epoch, "iter": number, "step": progress.step}, figures)

    def epoch_line(self, epoch: int) -> None:
        """Log the epoch's means; all processes call it."""
        means = self.watch.totals.reduced()
        results = {**means.values, "num_samples": means.samples, "bad_samples": means.left_out}
        logger.info(f"[Train][Epoch {epoch}/{self._epochs}][Avg]{format_results(results)}")

    def eval_line(self, results: dict[str, float], progress: Progress) -> None:
        """Log an evaluation."""
        logger.info(f"[Eval][Epoch {progress.epoch}][Avg]{format_results(results)}")
        logger.info(f"[Eval][Epoch {progress.epoch}][best metric: {progress.best['value']:.5f}]")
        self._write("eval", {"epoch": progress.epoch, "step": progress.step}, results)

    def _write(self, kind: str, place: dict[str, Any], figures: dict[str, Any]) -> None:
        if not self._is_main:
            return
        self.lines.append({"kind": kind, **place, **figures})
        for name in sorted(figures.keys() - _NO_CURVE):
            self._curves.add(f"{kind}_{name}", figures[name], place["step"])

    def close(self) -> None:
        """Write what is left of the curves."""
        self._curves.close()


def format_results(results: dict[str, float]) -> str:
    """An evaluation's figures and on how many samples they are; what was left out is said."""
    counts = ("num_samples", "bad_samples")
    figures = format_figures({name: value for name, value in results.items() if name not in counts})
    left_out = f", left out as unreadable: {results['bad_samples']}" if results.get("bad_samples") else ""
    return f"{figures}, samples: {results['num_samples']}{left_out}"
