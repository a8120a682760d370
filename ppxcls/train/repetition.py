"""Repeats steps of a run in memory, and compares their numbers with those that the run recorded."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from ppxcls.checkpoints.files import AVERAGE, WEIGHTS, State
from ppxcls.models.classifier_part import state_tensors
from ppxcls.models.weights import to_numpy
from ppxcls.system import distributed
from ppxcls.system.arrays import Array
from ppxcls.train.run_log import BAR_FORMAT
from ppxcls.train.trainer import Trainer

Position = tuple[int, int]  # epoch, and number of its batches that are done
_TIMES = {"batch_cost", "reader_cost", "ips", "ips_total", "eta"}
_PLACE = {"kind", "epoch", "iter", "step"}


@dataclass(frozen=True)
class Recording:
    """The numbers of a run that a repetition can be compared with.

    Attributes:
        lines: figures of the log lines by the position after their batch.
        checkpoints: functions that read a checkpoint's parts, by name and position.
    """

    lines: Mapping[Position, Mapping[str, Any]]
    checkpoints: Mapping[Position, tuple[str, Callable[[], dict[str, State]]]]


@dataclass
class Repetition:
    """The comparison of repeated steps with a run.

    Attributes:
        steps: number of repeated optimizer steps.
        figures: number of compared figures.
        lines: number of compared log lines.
        checkpoints: names of the checkpoints whose weights were compared.
        differences: differences in their order, as texts.
    """

    steps: int = 0
    figures: int = 0
    lines: int = 0
    checkpoints: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    def compare_line(self, place: str, figures: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
        """Compares the figures of a log line.

        Args:
            place: place of the line, for messages.
            figures: figures of the repetition.
            recorded: line of ``metrics.jsonl``.
        """
        self.lines += 1
        texts = []
        for name in recorded.keys() - _TIMES - _PLACE:
            self.figures += 1
            old, new = recorded[name], figures.get(name)
            if old != new and not (old is None and not np.isfinite(new or 0.0)):
                texts.append(f"{name} {old!r} in the run, {new!r} here{_relative_text(old, new)}")
        self.differences += [f"{place}: {text}" for text in sorted(texts)]

    def compare_weights(self, name: str, parts: Mapping[str, State], recorded: Mapping[str, State]) -> None:
        """Compares the weights with those of a checkpoint.

        Args:
            name: name of the checkpoint.
            parts: states of the repetition.
            recorded: states of the checkpoint.
        """
        self.checkpoints.append(name)
        for part in sorted(parts.keys() & recorded.keys()):
            arrays = {key: value for key, value in parts[part].items() if isinstance(value, np.ndarray)}
            distances = {
                key: distance
                for key, array in arrays.items()
                if (distance := _distance(recorded[part].get(key), array)) is not None
            }
            if distances:
                key = max(distances, key=lambda key: distances[key])
                words = "averages of the weights" if part == AVERAGE else "weights"
                self.differences.append(
                    f"{name}: {len(distances)} of {len(arrays)} {words} differ, by up to "
                    f"{distances[key]:.2g} ({key})"
                )


def _relative_text(old: Any, new: Any) -> str:
    """Returns the size of a difference between two numbers, relative to the first one."""
    if not isinstance(old, int | float) or not isinstance(new, int | float) or not old:
        return ""
    return f", which is {(new - old) / abs(old):+.1e} of it"


def _distance(recorded: Any, array: Array) -> float | None:
    """Returns the largest difference of two arrays; infinity for other shapes, and None for equal arrays."""
    if recorded is None or np.shape(recorded) != array.shape:
        return math.inf
    if np.array_equal(recorded, array):
        return None
    return float(np.abs(np.asarray(recorded, np.float64) - array).max(initial=0.0))


def repeat_steps(trainer: Trainer, recording: Recording, steps: int) -> Repetition:
    """Trains for some steps in memory, at most to the end of the epoch, and compares them.

    Nothing is evaluated or saved. All processes of a job must call it. The weights are compared by the first
    one, because its statistics of batch norms are those that a checkpoint has.

    Args:
        trainer: trainer in the state of the first step. It can't be used afterwards.
        recording: numbers of the run.
        steps: largest number of optimizer steps; 0 for the rest of the epoch.

    Raises:
        TrainingError: a loss or a weight is not finite.
        DataError: a sample can't be loaded.
    """
    result = Repetition()
    learner, loader = trainer.learner, trainer.loader
    progress, first_step = trainer.progress, trainer.progress.step
    epoch, start = progress.epoch, progress.batches_done
    total = len(loader) - start
    if steps:
        total = min(total, steps * trainer.run_schedule.update_freq)
    bar_options = {"disable": None if distributed.rank() == 0 else True, "leave": False}
    learner.model.train()
    with (
        tqdm(total=total, desc=f"epoch {epoch}", bar_format=BAR_FORMAT, **bar_options) as bar,
        trainer.watchdog,
    ):
        batches = itertools.islice(loader.epoch(epoch, start), total)
        for batch in trainer.watchdog.batches(batches, "the repetition"):
            step = trainer.train_on(batch)
            trainer.watch.add(step)
            trainer.watch.read()
            progress.batches_done = step.plan.number + 1
            means = learner.totals.reduced()
            position = epoch, progress.batches_done
            if recorded := recording.lines.get(position):
                figures = {"lr": step.lr, **means.values, "samples": means.samples}
                figures["skipped"] = progress.skipped_total
                result.compare_line(f"epoch {epoch}, iteration {step.plan.number}", figures, recorded)
            checkpoint = recording.checkpoints.get(position)
            if checkpoint and distributed.rank() == 0:
                result.compare_weights(checkpoint[0], _states(trainer), checkpoint[1]())
            bar.update()
    result.steps = progress.step - first_step
    return result


def _states(trainer: Trainer) -> dict[str, State]:
    """Returns the weights and, if there is one, their average."""
    learner = trainer.learner
    states: dict[str, State] = {WEIGHTS: to_numpy(state_tensors(learner.network))}
    if learner.average:
        states[AVERAGE] = learner.average.state_dict()
    return states
