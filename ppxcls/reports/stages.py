"""The stages of ``ppxcls fit`` on the page of its run."""

from __future__ import annotations

from typing import Any

from ppxcls.reports.record import Record


def stages_content(record: Record) -> dict[str, Any] | None:
    """Returns the rows of the table of stages, and the line of the plan; None without stages."""
    if record.stages is None:
        return None
    rows = [
        {
            "name": stage.name,
            "size": f"{stage.size} px",
            "epochs": "" if stage.epochs is None else f"{stage.epochs:,}",
            "minutes": f"{stage.seconds / 60:.1f}",
            "accuracy": "" if stage.accuracy is None else f"{100 * stage.accuracy:.2f} %",
            "loss": "" if stage.loss is None else f"{stage.loss:.4g}",
            "is_chosen": stage.is_chosen,
            "choice": stage.choice,
        }
        for stage in record.stages.stages
    ]
    plan = " | ".join(
        f"{step.name or f'{step.size} px'}: {step.minutes:.2g} min" for step in record.stages.plan
    )
    return {"rows": rows, "plan": plan}
