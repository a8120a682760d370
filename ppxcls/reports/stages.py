"""The stages of ``ppxcls fit`` on the page of its run."""

from __future__ import annotations

from typing import Any

from ppxcls.reports.record import Record
from ppxcls.reports.result_files import FitStage


def stages_content(record: Record) -> dict[str, Any] | None:
    """Returns the rows of the table of stages, and the line of the plan; None without stages."""
    if record.stages is None:
        return None
    plan = [f"{step.name or f'{step.size} px'}: {step.minutes:.2g} min" for step in record.stages.plan]
    return {"rows": [_row(stage) for stage in record.stages.stages], "plan": " | ".join(plan)}


def _row(stage: FitStage) -> dict[str, Any]:
    return {
        "name": stage.name,
        "size": f"{stage.size} px",
        "epochs": _text(stage.epochs, "{:,}"),
        "minutes": f"{stage.seconds / 60:.1f}",
        "accuracy": _text(stage.accuracy, "{:.2%}").replace("%", " %"),
        "loss": _text(stage.loss, "{:.4g}"),
        "is_chosen": stage.is_chosen,
        "choice": stage.choice,
    }


def _text(value: float | None, form: str) -> str:
    """Returns a formatted number; empty for None."""
    return "" if value is None else form.format(value)
