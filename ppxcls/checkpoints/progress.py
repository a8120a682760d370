"""The progress of a run, and the content of a checkpoint. PaddleClas's checkpoints can be read too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ppxcls.checkpoints.files import (
    EXTENSIONS,
    OPTIMIZER,
    WEIGHTS,
    CheckpointError,
    State,
    is_complete,
    read_checkpoint,
    read_manifest,
    read_state,
    unpickle,
    weights_bytes,
    with_extension,
)


class UnknownProgressError(CheckpointError):
    """The progress in a manifest has keys or types that this version does not know."""


@dataclass
class Progress:
    """The progress of a run.

    Attributes:
        epoch: current epoch, from 1.
        batches_done: number of global batches of that epoch that are done.
        step: number of optimizer steps done.
        best: ``{"metric": name, "value": ..., "epoch": ..., "loss": ...}`` of the best evaluation, or empty.
            Older versions wrote no loss.
        totals: sums over the current epoch: samples, and each loss and metric times samples.
        scaler: state of AMP's loss scaling.
        plateau: state of a learning rate that depends on the evaluations.
        skipped: number of consecutive steps, up to now, that AMP skipped because a gradient was not finite.
        skipped_total: number of steps that AMP skipped in the whole run.
        improvement: ``{"metric": name, "value": ..., "epoch": ...}`` of the last evaluation that was an
            improvement for early stopping, or empty.
        stale_evaluations: number of evaluations that early stopping has counted since then.
        started: start time of the run, ISO 8601. If one folder has checkpoints of two runs, the run that
            started later is the newer one.
    """

    epoch: int = 1
    batches_done: int = 0
    step: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    totals: dict[str, float] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    plateau: dict[str, float] = field(default_factory=dict)
    skipped: int = 0
    skipped_total: int = 0
    improvement: dict[str, Any] = field(default_factory=dict)
    stale_evaluations: int = 0
    started: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"epoch {self.epoch}, batch {self.batches_done}, step {self.step}"


def is_better(candidate: Mapping[str, Any], best: Mapping[str, Any], *, larger_is_better: bool) -> bool:
    """True if an evaluation is better than the best so far.

    If their metric is equal, as often with few samples, the one with the smaller loss is better. If the loss
    is equal or not known, the earlier one stays the best. Any number is better than one that is not finite.

    Args:
        candidate: evaluation to judge, in the form of ``Progress.best``.
        best: best evaluation so far; empty if there is none.
        larger_is_better: True if a larger value of the metric is better.
    """
    if not best or best["metric"] != candidate["metric"]:
        return True
    value, best_value = candidate["value"], best["value"]
    if not math.isfinite(value) or not math.isfinite(best_value):
        return math.isfinite(value)
    if value != best_value:
        return bool(value > best_value if larger_is_better else value < best_value)
    loss, best_loss = candidate["loss"], best.get("loss")
    if not isinstance(best_loss, int | float) or not math.isfinite(loss):
        return False
    return bool(loss < best_loss) or not math.isfinite(best_loss)


@dataclass
class Snapshot:
    """The state that must survive if the process is killed.

    Attributes:
        parts: copies of states in the host's memory, by Paddle's extensions: ``.pdparams`` (weights),
            ``.pdopt`` (optimizer), and ``.pdema`` (average of the weights) if there is one.
        progress: progress of the run.
        prefix: prefix of the files that it was read from, for messages.
    """

    parts: dict[str, State]
    progress: Progress
    prefix: Path = Path("checkpoint")

    def file(self, extension: str) -> Path:
        """Returns the file that a part was read from."""
        return with_extension(self.prefix, extension)

    def manifest(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the manifest without the list of parts."""
        return {**facts, "progress": asdict(self.progress)}


def read_snapshot(prefix: str | Path) -> tuple[Snapshot, dict[str, Any]]:
    """Reads a checkpoint: each part once, from the same bytes that were compared with the digest.

    Args:
        prefix: prefix of the checkpoint's files, or the path of one of them.

    Returns:
        The snapshot, and the manifest. PaddleClas's files have no manifest and no step: the manifest is
            empty, and the step is 0.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, of a newer format, or without the optimizer's
            state.
    """
    prefix = checkpoint_prefix(prefix)
    if not with_extension(prefix, ".json").exists() and with_extension(prefix, ".pdstates").exists():
        return _read_paddleclas(prefix), {}
    if not is_complete(read_manifest(prefix)):
        raise CheckpointError(
            f"{prefix} has no optimizer state, so a run can't resume from it; latest has one, and so has "
            "best_model if it is written with Global.best_model_optimizer: True"
        )
    parts, manifest = read_checkpoint(prefix)
    return Snapshot(parts, progress_of(manifest, prefix), prefix), manifest


def checkpoint_prefix(path: str | Path) -> Path:
    """Returns the prefix of a checkpoint's files, from the prefix itself or the path of one of the files."""
    path = Path(path)
    for extension in (".json", ".pdstates", *sorted(EXTENSIONS, key=len, reverse=True)):
        if path.name.endswith(extension):
            return path.with_name(path.name.removesuffix(extension))
    return path


def progress_of(manifest: Mapping[str, Any], prefix: Path) -> Progress:
    """Returns the progress in a manifest.

    Args:
        manifest: checked manifest of a checkpoint.
        prefix: prefix of the checkpoint's files, for messages.

    Raises:
        UnknownProgressError: the progress has an unknown key, as of a newer version.
    """
    values = manifest["progress"]
    field_types = {f.name: type(getattr(Progress(), f.name)) for f in fields(Progress)}
    invalid_keys = [key for key, value in values.items() if not isinstance(value, field_types.get(key, ()))]
    if invalid_keys:
        file = with_extension(prefix, ".json")
        names = [key if key.isidentifier() and len(key) < 40 else "a strange name" for key in invalid_keys]
        raise UnknownProgressError(
            f"{file}: unknown key or wrong type in the progress: {', '.join(names[:9])}"
        )
    progress = Progress(**values)
    if progress.best.get("value", 0.0) is None:  # it was not finite, so any later evaluation is better
        progress.best = {}
    if progress.improvement.get("value", 0.0) is None:
        progress.improvement = {}
    progress.plateau = {key: value for key, value in progress.plateau.items() if value is not None}
    progress.totals = {key: math.nan if v is None else v for key, v in progress.totals.items()}
    return progress


def _read_paddleclas(prefix: Path) -> Snapshot:
    """Reads a checkpoint of PaddleClas.

    Its ``.pdstates`` contains ``metric`` and ``epoch``, the last epoch that was completed.
    """
    file = with_extension(prefix, ".pdstates")
    states = unpickle(weights_bytes(file), file)
    epoch = states.get("epoch") if isinstance(states, dict) else None
    if not isinstance(epoch, int | float) or not 0 <= epoch < 1e6 or epoch != int(epoch):
        raise CheckpointError(f"{file}: expected the epoch that was done, received {epoch!r}")
    parts = {extension: read_state(with_extension(prefix, extension)) for extension in (WEIGHTS, OPTIMIZER)}
    return Snapshot(parts, Progress(epoch=int(epoch) + 1), prefix)
