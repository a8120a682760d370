"""Suspected labels on the page of a run, and what its script needs to write a table of corrections."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from ppxcls.reports import figures
from ppxcls.reports.record import Record
from ppxcls.reports.run_files import Samples
from ppxcls.system.paths import is_unicode, printable

CORRECTIONS = "corrections.csv"
_MAX_SUSPECTS = 48


def suspected_samples(record: Record) -> tuple[Samples, list[int]] | None:
    """Returns predictions, and the indices of those whose labels are suspect; None without predictions."""
    samples = record.suspect_samples
    return None if samples is None else (samples, figures.suspected_labels(samples, _MAX_SUSPECTS))


def corrections_content(record: Record, samples: Samples, indices: list[int]) -> dict[str, Any] | None:
    """Returns what the script of the page knows of the suspects; None if no image is in a known list.

    Args:
        record: run.
        samples: predictions.
        indices: indices of the suspects.

    Returns:
        Names of the classes; image, label and predicted class of each suspect, None for an image whose path
        in its list is not known or is not Unicode; and the command that reads the table.
    """
    suspects = []
    for i in indices:
        image = record.images.listed(samples.files[i])
        label, predicted_id = int(samples.labels[i]), int(samples.predicted_ids[i])
        is_known = image is not None and is_unicode(image)
        suspects.append({"image": image, "label": label, "predicted": predicted_id} if is_known else None)
    if not any(suspects):
        return None
    return {"names": record.names, "suspects": suspects, "command": _command(record)}


def _command(record: Record) -> str:
    """Returns the command that applies the table to the folder of the lists."""
    loaders = record.shown_config.DataLoader
    list_file = loaders.Eval.dataset.get("cls_label_path") if loaders and loaders.Eval else None
    folder = str(Path(list_file).parent) if list_file else "LISTS"
    return printable(f"ppxcls lists {shlex.quote(folder)} --apply {CORRECTIONS}")
