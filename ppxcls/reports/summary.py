"""The numbers, notes and facts at the top and the end of a run's page."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Any

import numpy as np

from ppxcls.reports import figures
from ppxcls.reports.curves import epoch_rates
from ppxcls.reports.ending import ending_note, epochs_done
from ppxcls.reports.fold_file import IMAGE_COUNT, FoldFile
from ppxcls.reports.record import Record
from ppxcls.reports.result_files import ViewFigures
from ppxcls.reports.run_files import Samples
from ppxcls.reports.two_classes import two_class_tiles, two_classes
from ppxcls.system.paths import printable
from ppxcls.train import METRICS_FILE
from ppxcls.train.proportions import proportion

_CHECKED_IMAGES = 100  # images whose places are checked for the notes


def best_evaluation(record: Record) -> dict[str, Any]:
    """Returns the evaluation of the best checkpoint, or else the last evaluation."""
    epoch = record.manifest.get("progress", {}).get("best", {}).get("epoch")
    rows = [row for row in record.evaluations if row.get("epoch") == epoch] or record.evaluations
    return rows[-1] if rows else {}


def numbers(record: Record) -> list[dict[str, str]]:
    """Returns the tiles at the top of the page; figures of images that judge come first."""
    tiles: list[dict[str, str]] = []
    if record.judged is not None:
        tiles += _accuracy_tiles(record.judged.samples, record, "")
        count = len(record.samples) if record.samples is not None else 0
        tiles += _accuracy_tiles(record.samples, record, ", of images that chose", f", {count:,} images")[:1]
    elif record.fold_samples is not None:
        reason = f", {len(record.fold_samples):,} images, each by a fold that was not trained on it"
        tiles += _accuracy_tiles(record.fold_samples, record, "", reason)
    else:
        choice = "result" if record.has_known_samples else "epoch"
        reason = f", on the images that chose the {choice}" if record.choice_note else ""
        tiles += _accuracy_tiles(record.samples, record, "", reason)
    if classes := two_classes(record, record.shown_samples):
        tiles += [_tile(*tile) for tile in two_class_tiles(classes)]
    tiles += [_view_tile(item, record) for item in record.view_figures]
    tiles += [_fold_tile(record.folds)] if record.folds and record.folds.means else []
    if record.shown_samples is not None:
        count, class_count = len(record.shown_samples), len(record.names)
        tiles.append(_tile("evaluated", f"{count:,}", f"samples, {class_count:,} classes"))
    if evaluation := best_evaluation(record):
        count, planned = epochs_done(record), record.config.Global.epochs
        note = f"of {count}" if count == planned else f"of {count} trained, {planned} planned"
        if record.deciding_figure:
            note += f", by {printable(record.deciding_figure)}"
        tiles.append(_tile("best epoch", str(evaluation.get("epoch", "")), note))
    if rates := epoch_rates(record.train):
        note = "images/s, over whole epochs" if len(rates) == 1 else "images/s, median of whole epochs"
        tiles.append(_tile("training", f"{np.median(rates):.4g}", note))
    return tiles


def _fold_tile(folds: FoldFile) -> dict[str, str]:
    """Returns the tile of the figure that chose the best epochs, as the mean of the folds."""
    mean = folds.means[0]
    spread = "" if mean.spread is None else f" ± {mean.spread:.4f}"
    return _tile(
        f"{printable(mean.name)} of {len(folds.folds)} folds",
        f"{mean.mean:.4f}{spread}",
        "mean ± standard deviation",
    )


def folds_content(folds: FoldFile | None) -> dict[str, Any] | None:
    """Returns the table of the folds: a row for each figure; None without folds."""
    if folds is None:
        return None
    rows = [
        {
            "name": printable(mean.name),
            "mean": _number(mean.mean),
            "spread": "" if mean.spread is None else _number(mean.spread),
            "values": [_number(value) for value in mean.values],
        }
        for mean in folds.means
    ]
    counts = [int(fold.get(IMAGE_COUNT) or 0) for fold in folds.folds]
    return {"rows": rows, "counts": counts}


def figure_rows(record: Record) -> list[dict[str, Any]]:
    """Returns the rows of the table of figures: name, value on images that choose, value on those that judge.

    The figure that chose ``best_model`` is marked.
    """
    judged_figures = record.judged.figures if record.judged else {}
    return [
        {
            "name": printable(name),
            "is_deciding": name == record.deciding_figure,
            "value": _number(value),
            "judged": _number(judged_figures[name]) if name in judged_figures else "",
        }
        for name, value in best_evaluation(record).items()
        if name not in ("kind", "epoch", "step")
    ]


def _number(value: float | None) -> str:
    """Returns a figure as text; a line of the log has null for a figure that is not defined."""
    return "not defined" if value is None else f"{value:.6g}"


def _tile(name: str, value: str, note: str) -> dict[str, str]:
    return {"name": name, "value": value, "note": note}


def _view_tile(item: ViewFigures, record: Record) -> dict[str, str]:
    """Returns the tile of an evaluation with several views of each image, which is no plain figure."""
    role = ""
    if item.is_judging:
        role = " that judge"
    elif record.judged is not None or record.choice_note:
        role = " that chose"
    share = proportion(round(item.top1 * item.num_samples), item.num_samples)
    return _tile(
        f"top-1 with --tta {item.kinds}",
        f"{100 * share.value:.2f} %",
        f"95 %: {100 * share.low:.2f} to {100 * share.high:.2f}, means of {item.views} views, "
        f"{item.num_samples:,} images{role}",
    )


def _accuracy_tiles(
    samples: Samples | None, record: Record, suffix: str, reason: str = ""
) -> list[dict[str, str]]:
    """Returns the tiles of top-1 and perhaps top-5, with their intervals; none without samples."""
    if samples is None:
        return []
    return [
        _tile(
            f"top-{k}{suffix}",
            f"{100 * share.value:.2f} %",
            f"95 %: {100 * share.low:.2f} to {100 * share.high:.2f}{reason}",
        )
        for k, share in figures.topk_proportions(samples, len(record.names)).items()
    ]


def notes(record: Record) -> list[str]:
    """Returns the warnings at the top of the page."""
    lines = []
    samples = record.shown_samples
    if samples is None:
        lines.append(
            "This run was not evaluated, or its predictions.csv is missing: ppxcls eval -c FOLDER writes it."
        )
    else:
        lines += _image_notes(record, samples)
        if record.choice_note:
            lines.append(record.choice_note)
    lines += [note for note in (record.judging_note, ending_note(record)) if note]
    return lines


def _image_notes(record: Record, samples: Samples) -> list[str]:
    """Returns notes about classes without images, and about images that can't be shown."""
    lines = []
    absent_classes = sorted(set(range(len(record.names))) - set(samples.labels.tolist()))
    if absent_classes:
        class_list = ", ".join(printable(record.names[i]) for i in absent_classes[:5])
        lines.append(
            f"{len(absent_classes)} of {len(record.names)} classes have no evaluated sample: "
            f"{class_list}{' …' if len(absent_classes) > 5 else ''}"
        )
    if not all(map(record.images.has, samples.files[:_CHECKED_IMAGES])):
        lines.append(
            "The images are not where they were during the evaluation, so some pictures are missing."
        )
    if not all(map(record.images.may_show, samples.files[:_CHECKED_IMAGES])):
        lines.append(
            "Pictures are left out that lie, after links are resolved, neither under the image root "
            "of the data set nor in the run's folder."
        )
    return lines


def facts(record: Record) -> list[tuple[str, str]]:
    """Returns the rows of the table about the run."""
    manifest, progress = record.manifest, record.manifest.get("progress", {})
    rows = [("network", record.config.Arch.name), ("folder", str(record.folder))]
    for key, name in (
        ("started_from", "started from"),
        ("ppxcls", "ppxcls"),
        ("paddle", "Paddle"),
        ("world_size", "processes"),
    ):
        if manifest.get(key) is not None:
            rows.append((name, str(manifest[key])))
    rows.append(("device", record.config.Global.device))
    for key, name in (
        ("train_list", "training list, SHA-256"),
        ("eval_list", "evaluation list, SHA-256"),
        ("run", "id of the run"),
    ):
        if manifest.get(key):
            rows.append((name, str(manifest[key])))
    if progress.get("step"):
        rows.append(("optimizer steps", f"{progress['step']:,}"))
    try:
        start_time = datetime.fromisoformat(str(progress.get("started")))
        end_time = datetime.fromtimestamp((record.folder / METRICS_FILE).stat().st_mtime, timezone.utc)
        rows.append(
            ("from the start to the last log line", str(end_time - start_time).split(".", maxsplit=1)[0])
        )
    except (ValueError, TypeError, OSError, OverflowError):
        pass
    rows.append(("report written", time.strftime("%Y-%m-%d %H:%M")))
    return [(key, printable(value)) for key, value in rows]
