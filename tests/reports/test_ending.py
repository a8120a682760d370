"""What a report says about the end of a run, from its config and the progress in its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ppxcls
from ppxcls.checkpoints.progress import Progress
from ppxcls.reports.ending import ending_note, epochs_done, epochs_text
from ppxcls.reports.record import Record
from tests.conftest import ROOT

IMPROVEMENT = {"metric": "top1", "value": 0.5, "epoch": 3}
STOPPED = Progress(epoch=6, step=50, best=IMPROVEMENT, improvement=IMPROVEMENT, stale_evaluations=2)
COUNTS = {"steps_per_epoch": 10, "global_batch": 4, "update_freq": 1}
EARLY_STOP = "Global.early_stop.patience=2"
REASON = "The run stopped early, after epoch 5 of 20: no better top1 in 2 evaluations after epoch 3"
RATE = "The learning rate had not come down to its minimum: Cosine was at"


def record(progress: Progress | None, *overrides: str, **manifest: Any) -> Record:
    keys = ["Global.epochs=20", *overrides]
    config = ppxcls.load_config(ROOT / "configs/Xception41.yaml", keys)
    return Record(Path("run"), config, ["a", "b"], manifest=manifest, progress=progress)


@pytest.mark.parametrize(
    ("progress", "override", "text", "notes"),
    [
        (None, EARLY_STOP, "20", []),
        (Progress(epoch=21), EARLY_STOP, "20", []),
        (Progress(epoch=21, stale_evaluations=2, improvement=IMPROVEMENT), EARLY_STOP, "20", []),
        (STOPPED, EARLY_STOP, "5 of 20, stopped early", [REASON, RATE]),
        (
            STOPPED,
            "Global.early_stop.patience=3",
            "5 of 20, not finished",
            ["5 of 20 epochs are done. Train with"],
        ),
        (
            STOPPED,
            "Global.early_stop=null",
            "5 of 20, not finished",
            ["The training is not finished: 5 of 20"],
        ),
        (
            Progress(epoch=3, batches_done=4),
            "Global.max_hours=1.5",
            "2 of 20, not finished",
            ["2 of 20 epochs are done. One start trains for at most 1.5 h (Global.max_hours)."],
        ),
    ],
)
def test_how_far_a_run_came(progress: Progress | None, override: str, text: str, notes: list[str]) -> None:
    run = record(progress, override, **COUNTS)
    assert epochs_text(run) == text
    assert epochs_done(run) == int(text.split(" ", maxsplit=1)[0])
    note = ending_note(run)
    assert bool(note) == bool(notes)
    assert all(part in note for part in notes)


@pytest.mark.parametrize(
    ("override", "manifest"),
    [
        (EARLY_STOP, {}),
        (EARLY_STOP, {**COUNTS, "steps_per_epoch": 0}),
        (EARLY_STOP, {**COUNTS, "steps_per_epoch": 10**400}),
        ("Optimizer.lr={name: Step, learning_rate: 1.0, step_size: 0.001, gamma: 1.0e+300}", COUNTS),
        ("Optimizer.lr={name: Cosine, learning_rate: 0.1, warmup_epoch: 30}", COUNTS),
    ],
)
def test_a_manifest_that_does_not_fit_the_config(override: str, manifest: dict[str, Any]) -> None:
    """The reason of the end is told without the rate."""
    note = ending_note(record(STOPPED, EARLY_STOP, override, **manifest))
    assert note.startswith(REASON)
    assert "learning rate" not in note


def test_the_name_of_a_figure_is_printable_and_short() -> None:
    improvement = {"metric": "\x1b[31m" + "x" * 9999, "value": 0.5, "epoch": 3}
    progress = Progress(epoch=6, improvement=improvement, stale_evaluations=2)
    note = ending_note(record(progress, EARLY_STOP))
    assert note.isprintable()
    assert len(note) <= 600
