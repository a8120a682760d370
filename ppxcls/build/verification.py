"""Repeats steps of a finished run on this machine, and compares their bits with what the run recorded."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ppxcls.build.trainer import build_trainer
from ppxcls.checkpoints.files import AVERAGE, WEIGHTS, State, is_complete, parts_of, read_part
from ppxcls.checkpoints.run_folder import RunFolder
from ppxcls.config.load import load_config
from ppxcls.config.sections import Config
from ppxcls.system import distributed
from ppxcls.system.atomic_files import read_regular, reason_of
from ppxcls.system.environment import launched_rank
from ppxcls.system.errors import UserError
from ppxcls.system.json_text import read_json
from ppxcls.system.logs import set_up_logging
from ppxcls.system.temporary_folder import temporary_folder
from ppxcls.train import METRICS_FILE, STARTS_FILE
from ppxcls.train.differing_facts import differing_facts
from ppxcls.train.repetition import Position, Recording, Repetition, repeat_steps
from ppxcls.train.starts import (
    EPOCHS_FACT,
    OPTIMIZER_FACT,
    WEIGHTS_FACT,
    image_facts,
    read_start,
    schedule_facts,
)
from ppxcls.train.trainer import Trainer

DEFAULT_STEPS = 20
_MAX_METRICS_BYTES = 1 << 30
_FIRST = (1, 0)  # position of the first step
_PARTS_OF_A_STATE = (WEIGHTS, AVERAGE)


class VerificationError(UserError):
    """A run can't be compared. The message says what is missing."""


@dataclass(frozen=True)
class Verification:
    """The result of ``verify``.

    Attributes:
        is_same: True if all repeated numbers have the bits of the run.
        steps: number of repeated optimizer steps.
        differences: differences of figures and weights, in the order of the steps.
        causes: possible causes, as differences of the machine, the code and the data from those of the run.
            They are listed also if all bits are the same.
        summary: result in one line.
    """

    is_same: bool
    steps: int
    differences: Sequence[str]
    causes: Sequence[str]
    summary: str


@dataclass(frozen=True)
class _Checkpoint:
    """A checkpoint of the run.

    Attributes:
        prefix: prefix of its files.
        manifest: its manifest.
    """

    prefix: Path
    manifest: dict[str, Any]

    @property
    def position(self) -> Position:
        progress = self.manifest["progress"]
        return progress["epoch"], progress["batches_done"]

    def read(self) -> dict[str, State]:
        """Returns the weights and their average."""
        parts = [part for part in parts_of(self.manifest) if part in _PARTS_OF_A_STATE]
        return {part: read_part(self.prefix, self.manifest, part) for part in parts}


def verify(
    run: str | Path,
    steps: int | None = None,
    *,
    from_epoch: int | None = None,
    overrides: Sequence[str] = (),
    trust: bool = False,
) -> Verification:
    """Repeats steps of a finished run in memory, and compares losses, metrics and weights bit for bit.

    It starts from the newest checkpoint that is followed by log lines of its epoch, or else from the start of
    the run. It ends at the end of the epoch at the latest. Nothing is written to the run's folder. Under a
    launcher, all processes repeat the steps together.

    Args:
        run: run folder.
        steps: largest number of optimizer steps; 0 for the rest of the epoch; None for 20, or for as many as
            the next log line needs.
        from_epoch: epoch to repeat from its beginning, from 1; None for the choice above.
        overrides: config overrides ``A.b=value``, such as the place of the images.
        trust: True to run the plugins that the run names; see ``load_config``.

    Raises:
        VerificationError: the run lacks what is needed, or it trained with other samples per step, or the
            steps were trained with other epochs or another optimizer than its config has now.
        ConfigError: the folder is not a run folder.
        DataError, CheckpointError, OSError: the data or a checkpoint can't be used.
        TrainingError: a loss or a weight is not finite here.
    """
    if steps is not None and steps < 0:
        raise VerificationError(f"--steps: expected at least 0, received {steps}")
    config = load_config(run, list(overrides), trust=trust)
    folder = config.run_folder
    checkpoints = [_Checkpoint(*item) for item in RunFolder(folder).checkpoints()[0]]
    if not checkpoints:
        raise VerificationError(f"{folder}: there is no checkpoint with the facts of the run")
    lines = _train_lines(folder / METRICS_FILE)
    start = _start(checkpoints, lines, from_epoch)
    manifest = (start or checkpoints[0]).manifest
    with temporary_folder() as scratch, _silence():
        _prepare(config, scratch, start)
        position, result, causes = _repeated(
            config, checkpoints, lines=lines, manifest=manifest, folder=folder, steps=steps
        )
    flags = np.array([len(result.differences), result.lines + len(result.checkpoints)], np.float64)
    difference_count, compared_count = distributed.values_of_first_process(flags).tolist()
    if not compared_count:
        raise VerificationError(
            f"{folder}: no log line and no checkpoint lies within {result.steps} steps of its epoch "
            f"{position[0]}, iteration {position[1]}; give more --steps"
        )
    causes += [f"-o {override}" for override in overrides]
    if difference_count and config.Global.device.startswith("gpu") and not config.Global.deterministic:
        causes.append("Global.deterministic is off, so a GPU adds in no fixed order")
    return Verification(
        is_same=not difference_count,
        steps=result.steps,
        differences=result.differences,
        causes=causes,
        summary=_summary(result, position, causes),
    )


def _repeated(
    config: Config,
    checkpoints: Sequence[_Checkpoint],
    *,
    lines: Mapping[Position, Any],
    manifest: Mapping[str, Any],
    folder: Path,
    steps: int | None,
) -> tuple[Position, Repetition, list[str]]:
    """Builds the trainer and repeats the steps.

    Args:
        config: config for the repetition.
        checkpoints: checkpoints of the run.
        lines: log lines of the run.
        manifest: manifest with the facts of the run.
        folder: folder of the run.
        steps: largest number of steps, as ``verify`` takes it.

    Returns:
        The first position, the comparison, and possible causes; no causes on other ranks than 0.
    """
    trainer = build_trainer(config)
    try:
        _check_sizes(trainer, manifest)
        position = trainer.progress.epoch, trainer.progress.batches_done
        _check_schedule(config, trainer, folder, position)
        recording = Recording(lines, _states_by_position(checkpoints, len(trainer.loader)))
        count = _step_count(trainer, lines) if steps is None else steps
        result = repeat_steps(trainer, recording, count)
        causes = _causes(trainer, folder, position, manifest) if distributed.rank() == 0 else []
    finally:
        trainer.run.folder.release()
        trainer.close_loaders()
        set_up_logging(launched_rank())  # the log file in the scratch folder is closed
    return position, result, causes


def _train_lines(file: Path) -> dict[Position, dict[str, Any]]:
    """Returns the lines of training steps in ``metrics.jsonl`` by the position after their batch."""
    try:
        data = read_regular(file, _MAX_METRICS_BYTES)
    except (OSError, ValueError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        raise VerificationError(f"{file}: {reason}; the run's figures are needed") from None
    lines: dict[Position, dict[str, Any]] = {}
    for text in data.split(b"\n"):
        try:
            line = read_json(text, is_nan_null=True)
        except ValueError:
            continue  # incomplete, because the machine went down
        if isinstance(line, dict) and line.get("kind") == "train":
            epoch, number = line.get("epoch"), line.get("iter")
            if isinstance(epoch, int) and isinstance(number, int):
                lines[epoch, number + 1] = line
    return lines


def _start(
    checkpoints: Sequence[_Checkpoint], lines: Mapping[Position, Any], from_epoch: int | None
) -> _Checkpoint | None:
    """Returns the checkpoint to start from; None for the start of the run.

    Raises:
        VerificationError: there is no such checkpoint, or no log line follows.
    """

    def has_lines_after(position: Position) -> bool:
        return any(epoch == position[0] and batches > position[1] for epoch, batches in lines)

    candidates = [
        item for item in checkpoints if is_complete(item.manifest) and has_lines_after(item.position)
    ]
    if from_epoch is None and candidates:
        return candidates[0]
    if from_epoch in (None, 1) and has_lines_after(_FIRST):
        return None
    by_epoch = {item.position[0]: item for item in candidates if item.position[1] == 0}
    if from_epoch in by_epoch:
        return by_epoch[from_epoch]
    epochs = sorted({*by_epoch, *([1] if has_lines_after(_FIRST) else [])})
    choices = ", ".join(map(str, epochs)) or "none"
    raise VerificationError(
        "no checkpoint with the optimizer's state is followed by log lines in metrics.jsonl"
        if from_epoch is None
        else f"--from {from_epoch}: this epoch has no checkpoint at its start, or no log line; "
        f"epochs to start from: {choices}"
    )


@contextmanager
def _silence() -> Iterator[None]:
    """Hides the log of a training, such as the disk space for checkpoints, which are not written."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)


def _prepare(config: Config, scratch: Path, start: _Checkpoint | None) -> None:
    """Changes a run's config, so that it writes to a scratch folder and evaluates nothing.

    Args:
        config: config of the run; it is changed.
        scratch: folder to write to.
        start: checkpoint to start from; None for the start of the run.
    """
    section = config.Global
    config.own_folder, section.output_dir = None, str(scratch)
    section.checkpoints, section.allow_changes = (str(start.prefix) if start else None), True
    section.early_stop, section.trackers = None, None
    section.eval_during_train = section.use_visualdl = False
    if start:  # it has all weights, and those that the run started from may be gone
        section.pretrained_model = None
        config.Arch["pretrained"] = False


def _check_sizes(trainer: Trainer, manifest: Mapping[str, Any]) -> None:
    """Raises VerificationError if the steps here have other samples than those of the run."""
    facts = trainer.run.facts
    sizes = [f["global_batch"] * f["update_freq"] for f in (manifest, facts.as_dict())]
    if sizes[0] != sizes[1]:
        command = f"ppxcls launch --nproc_per_node {manifest['world_size']} verify RUN"
        raise VerificationError(
            f"the run trained on {sizes[0]} images a step in {manifest['world_size']} processes, and here "
            f"these are {sizes[1]} in {facts.world_size}; repeat it with: {command}"
        )
    if manifest["samples"] != facts.samples:
        raise VerificationError(
            f"the run's training list had {manifest['samples']:,} images, and here it has {facts.samples:,}"
        )


def _check_schedule(config: Config, trainer: Trainer, folder: Path, position: Position) -> None:
    """Raises VerificationError if the steps were trained with other epochs, or another optimizer, than here.

    A run may be resumed with others. Its ``config.yaml`` has those of its last start. Overrides of this
    command are meant, and so they are no error.
    """
    start = read_start(folder / STARTS_FILE, *position)
    if start is None:
        return
    keys = {EPOCHS_FACT: "Global.epochs", OPTIMIZER_FACT: "Optimizer"}
    current = schedule_facts(trainer.run.facts)
    recorded = {
        name: start[1][name]
        for name in current
        if name in start[1] and not (name in keys and config.is_override(keys[name]))
    }
    if differences := differing_facts(recorded, current):
        raise VerificationError(
            f"the steps from epoch {position[0]}, iteration {position[1]} were trained with other settings "
            f"than config.yaml has now: {'; '.join(differences)}; give the earlier ones by -o, or start later"
        )


def _states_by_position(checkpoints: Sequence[_Checkpoint], batches: int) -> dict[Position, Any]:
    """Returns the name of each checkpoint and a function that reads its weights, by position.

    Args:
        checkpoints: checkpoints of the run.
        batches: number of batches per epoch.
    """
    states: dict[Position, Any] = {}
    for item in checkpoints:
        epoch, batches_done = item.position
        position = (epoch, batches_done) if batches_done else (epoch - 1, batches)
        states.setdefault(position, (item.prefix.name, item.read))
    return states


def _step_count(trainer: Trainer, lines: Mapping[Position, Any]) -> int:
    """Returns the usual number of steps, or as many as the next log line needs."""
    progress = trainer.progress
    distances = [
        batches - progress.batches_done
        for epoch, batches in lines
        if epoch == progress.epoch and batches > progress.batches_done
    ]
    return max(DEFAULT_STEPS, -(-min(distances) // trainer.run_schedule.update_freq))


def _causes(trainer: Trainer, folder: Path, position: Position, manifest: Mapping[str, Any]) -> list[str]:
    """Returns the differences between the machine, code and data of the run and those here."""
    own_file = trainer.output_dir / STARTS_FILE
    own_start = read_start(own_file, *position)
    if own_start is None:  # its warning is in the hidden log
        raise VerificationError(f"{own_file} can't be written; set TMPDIR to a folder with space")
    current = own_start[1]
    start = read_start(folder / STARTS_FILE, *position)
    if start is None:  # an older version
        recorded = {
            name: str(manifest[name]) for name in ("ppxcls", "paddle", "train_list") if name in manifest
        }
        recorded["processes"] = str(manifest["world_size"])
        return [*differing_facts(recorded, current), f"not known: the run has no {STARTS_FILE}"]
    place = start[0]
    schedule_names = schedule_facts(trainer.run.facts).keys()  # they are compared already
    recorded = {name: value for name, value in start[1].items() if name not in schedule_names}
    if place != position:
        recorded.pop(WEIGHTS_FACT, None)
        batch = next(trainer.loader.epoch(*place), None)
        current |= image_facts(batch, trainer.loader.dataset) if batch else {}
    return differing_facts(recorded, current)


def _summary(result: Repetition, position: Position, causes: Sequence[str]) -> str:
    place = f"{result.steps} steps from epoch {position[0]}, iteration {position[1]}"
    content = f"{result.figures} figures in {result.lines} log lines"
    if result.checkpoints:
        content += f" and the weights of {', '.join(result.checkpoints)}"
    if not result.differences:
        return f"same bits: {place}: {content}"
    reason = "; ".join(causes) or "the recorded facts of the machine, the code and the data are the same"
    return f"different: {place}: {len(result.differences)} differences in {content}; {reason}"
