"""Where a run stands: what a checkpoint's manifest says of it, PaddleClas's included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ppxcls.checkpoints.files import CheckpointError, State, beside, read_state, unpickle


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        epoch: the epoch in progress, from 1.
        batches_done: global batches of that epoch that are done.
        step: optimizer steps done.
        best: ``{"metric": name, "value": ..., "epoch": ...}`` of the best evaluation, or empty.
        totals: sums of the epoch so far: samples, and each loss and metric times samples.
        scaler: state of AMP's loss scaling.
        plateau: state of a schedule that needs the evaluations.
        skipped: steps that AMP left out in a row until now, since a gradient was not finite.
        skipped_total: steps that it left out in the whole run.
        started: when the run began, ISO 8601: one that began later in the same folder is the newer one, wherever it stands.
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
    started: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"epoch {self.epoch}, batch {self.batches_done}, step {self.step}"


def manifest_of(progress: Progress, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint's manifest says beside its parts."""
    return {**facts, "progress": asdict(progress)}


def checkpoint_prefix(path: str | Path) -> Path:
    """The prefix that a user means, who may name one of the files."""
    path = Path(path)
    return path.with_suffix("") if path.suffix in (".json", ".pdparams", ".pdopt", ".pdstates") else path


def read_progress(values: Mapping[str, Any], prefix: Path) -> Progress:
    known = {f.name: type(getattr(Progress(), f.name)) for f in fields(Progress)}
    wrong = [key for key, value in values.items() if not isinstance(value, known.get(key, ()))]
    if wrong:
        raise CheckpointError(f"{beside(prefix, '.json')}: the progress has {', '.join(wrong)}, which mean nothing here")
    return Progress(**values)


def read_paddleclas(prefix: Path) -> tuple[dict[str, State], Progress, dict[str, Any]]:
    """PaddleClas writes ``metric`` and ``epoch``, the last one that was done, into ``.pdstates``."""
    file = beside(prefix, ".pdstates")
    said = unpickle(file.read_bytes(), file)
    epoch = said.get("epoch") if isinstance(said, dict) else None
    if not isinstance(epoch, int | float) or not 0 <= epoch < 1e6 or epoch != int(epoch):
        raise CheckpointError(f"{file}: expected the epoch that was done, received {epoch!r}")
    states = {extension: read_state(beside(prefix, extension)) for extension in (".pdparams", ".pdopt")}
    return states, Progress(epoch=int(epoch) + 1), {}
