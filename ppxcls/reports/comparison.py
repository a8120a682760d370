"""Writes a page that compares several runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppxcls.checkpoints.compatibility import flatten
from ppxcls.config.yaml_values import read_yaml
from ppxcls.reports.curves import draw_curves
from ppxcls.reports.ending import epochs_done, epochs_text
from ppxcls.reports.losses import comparison_note
from ppxcls.reports.pictures import data_uri
from ppxcls.reports.record import read_record
from ppxcls.reports.rendering import printable_text, render, require_packages
from ppxcls.reports.summary import best_evaluation
from ppxcls.system.atomic_files import write_output, write_text
from ppxcls.system.paths import printable

COMPARISON = "comparison.html"
_OTHER_LISTS_NOTE = "The runs were evaluated on different lists, so their figures can't be compared."


def write_comparison(
    folders: Sequence[str | Path],
    file: Path | None = None,
    *,
    folder: Path = Path(),
    trust: bool = False,
    notes: Sequence[str] = (),
) -> Path:
    """Writes a page that compares runs: results, curves, and differences between their configs.

    Args:
        folders: run folders.
        file: path of the page that the user names, which may be a link or a device; None for
            ``comparison.html``, which replaces a link of this name.
        folder: folder of ``comparison.html``.
        trust: True to run the plugins that the runs name; see ``load_config``.
        notes: sentences to show above the results.

    Raises:
        ConfigError, ReportError, OSError: as in ``write_report``.
    """
    records = [read_record(folder, trust=trust) for folder in folders]
    require_packages()
    metrics = list(
        dict.fromkeys(
            key
            for record in records
            for key in best_evaluation(record)
            if key not in ("kind", "epoch", "step")
        )
    )
    rows = []
    for record in records:
        evaluation = best_evaluation(record)
        cells: list[dict[str, Any]] = [{"text": printable(record.title), "v": None}]
        cells.append({"text": epochs_text(record), "v": epochs_done(record)})
        for key in ("epoch", *metrics):
            value = evaluation.get(key)
            cells.append({"text": f"{value:.5g}" if isinstance(value, int | float) else "", "v": value})
        rows.append(cells)
    configs = [flatten(read_yaml(record.config.to_yaml(), "the config")) for record in records]
    keys = sorted({key for config in configs for key in config})
    differences = [
        (key, [printable_text(config.get(key, "")) for config in configs])
        for key in keys
        if len({repr(config.get(key, "")) for config in configs}) > 1
    ]
    digests = {record.manifest.get("eval_list") for record in records} - {None, ""}
    page = {
        "title": "Comparison of runs",
        "notes": [*map(printable, notes), *([_OTHER_LISTS_NOTE] if len(digests) > 1 else [])],
        "heads": ["run", "epochs", "best epoch", *metrics],
        "rows": rows,
        "curves": data_uri(draw_curves(records)),
        "loss_note": printable(comparison_note([record.config for record in records])),
        "differences": differences,
        "runs": [printable(str(record.folder)) for record in records],
    }
    text = render("compare.html.j2", page)
    if file is None:
        file = folder / COMPARISON
        write_text(file, text)
    else:
        write_output(file, text)
    return file
