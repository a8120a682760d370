"""Writes ``report.html`` and the other report files of a run, and a page that compares several runs."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from ppxcls.checkpoints.compatibility import flatten
from ppxcls.config.checks import ConfigError
from ppxcls.config.yaml_values import read_yaml
from ppxcls.data.errors import DataError
from ppxcls.reports import BALANCE, CALIBRATION, CARD, CURVES, PER_CLASS, REPORT, RESULTS, figures
from ppxcls.reports.card import MARK, model_card
from ppxcls.reports.curves import (
    draw_balance,
    draw_calibration,
    draw_curves,
    epoch_rates,
    has_missing_characters,
)
from ppxcls.reports.losses import comparison_note, loss_differences
from ppxcls.reports.pictures import data_uri, overlays, own_png, thumbnail
from ppxcls.reports.record import Record, read_record
from ppxcls.reports.run_files import Samples
from ppxcls.system.arrays import Array
from ppxcls.system.atomic_files import check_own_names, read_regular, write_bytes, write_output, write_text
from ppxcls.system.errors import UserError
from ppxcls.system.logs import logger
from ppxcls.system.packages import matplotlib_module
from ppxcls.system.paths import printable
from ppxcls.train import FIRST_BATCH, METRICS_FILE

PACKAGES_HINT = "jinja2, matplotlib and scipy, which are not all installed: pip install 'ppxcls[report]'"
COMPARISON = "comparison.html"
_MAX_CLASS_ROWS = 5000  # rows of the table of classes
_MAX_CARD_BYTES = 1 << 20
_CHECKED_IMAGES = 100  # images whose places are checked for the notes
_GALLERY_IMAGES = 24  # images in a gallery
_GRAD_CAM_IMAGES = 8  # images with Grad-CAM
_MAX_MATRIX_CLASSES = 2000  # classes in a confusion matrix; it takes several times 8 bytes x classes²
_MAX_TABLE_CLASSES = 30  # classes in a matrix that is a table; a larger one is a picture
_OTHER_LISTS_NOTE = "The runs were evaluated on different lists, so their figures can't be compared."


class ReportError(UserError):
    """A report can't be written. The message is one line."""


def report(
    runs: str | Path | Sequence[str | Path], output: str | Path | None = None, *, trust: bool = False
) -> Path:
    """Writes the page of a run into its folder, or a page that compares several runs.

    Args:
        runs: run folder, or several.
        output: file for a comparison; None for ``comparison.html``. The page of one run has a fixed place.
        trust: True to run the plugins that a run names; see ``load_config``.

    Returns:
        Path of the page.

    Raises:
        ConfigError, DataError, OSError: a folder is not a run folder, a package is not installed, a file
            can't be written, or there is one run and an output.
    """
    folders = [runs] if isinstance(runs, str | Path) else list(runs)
    if len(folders) == 1 and output is not None:
        raise DataError(
            f"{output}: expected several runs, to compare them in this file; "
            f"the page of one run is {Path(folders[0]) / REPORT}"
        )
    try:
        if len(folders) == 1:
            return write_report(folders[0], trust=trust)
        return write_comparison(folders, None if output is None else Path(output), trust=trust)
    except ReportError as error:
        raise DataError(str(error)) from None


def write_report(folder: str | Path, *, trust: bool = False) -> Path:
    """Writes ``report.html`` and its pictures, ``per_class.csv``, and the model card ``README.md``.

    Args:
        folder: run folder, which receives the files.
        trust: True to run the plugins that the run names; see ``load_config``.

    Returns:
        Path of the page. The page is one file and loads nothing from elsewhere.

    Raises:
        ConfigError: the folder is not a run folder.
        ReportError: a package is not installed.
        OSError: a file can't be written.
    """
    record = read_record(folder, trust=trust)
    check_own_names(record.folder, RESULTS)
    _require_packages()
    pictures: dict[str, bytes] = {}
    if record.train:
        pictures[CURVES] = draw_curves([record])
    page: dict[str, Any] = {
        "title": printable(record.title),
        "names": [printable(name) for name in record.names],
    }
    page |= {
        "notes": _notes(record),
        "numbers": _numbers(record),
        "facts": _facts(record),
        "config": record.config.to_yaml(),
        "loss_differences": printable(loss_differences(record.config)),
    }
    if record.samples is not None:
        page |= _evaluation_content(record, record.samples, pictures)
    if record.class_counts is not None:
        pictures[BALANCE] = draw_balance(record.class_counts, record.names)
    for name, data in pictures.items():
        write_bytes(record.folder / name, data)
        page[name.removesuffix(".png")] = data_uri(data)
    if record.class_counts is not None and has_missing_characters(record.names):
        page["balance"] = data_uri(draw_balance(record.class_counts, record.names, "svg"), "svg+xml")
    page["first_batch"] = own_png(record.folder / FIRST_BATCH)
    if page["first_batch"] is None and os.path.lexists(record.folder / FIRST_BATCH):
        page["notes"].append(f"{FIRST_BATCH} is left out, because it is no picture that a run writes.")
    page["sections"] = _sections(page)
    write_text(record.folder / REPORT, _render("report.html.j2", page))
    if _may_be_replaced(record.folder / CARD):
        write_text(record.folder / CARD, model_card(record))
    return record.folder / REPORT


def write_comparison(folders: Sequence[str | Path], file: Path | None = None, *, trust: bool = False) -> Path:
    """Writes a page that compares runs: results, curves, and differences between their configs.

    Args:
        folders: run folders.
        file: path of the page, which may be a link or a device; None for ``comparison.html``.
        trust: True to run the plugins that the runs name; see ``load_config``.

    Raises:
        ConfigError, ReportError, OSError: as in ``write_report``.
    """
    records = [read_record(folder, trust=trust) for folder in folders]
    _require_packages()
    metrics = list(
        dict.fromkeys(
            key
            for record in records
            for key in _best_evaluation(record)
            if key not in ("kind", "epoch", "step")
        )
    )
    rows = []
    for record in records:
        best_evaluation = _best_evaluation(record)
        cells: list[dict[str, Any]] = [{"text": printable(record.title), "v": None}]
        for key in ("epoch", *metrics):
            value = best_evaluation.get(key)
            cells.append({"text": f"{value:.5g}" if isinstance(value, int | float) else "", "v": value})
        rows.append(cells)
    configs = [flatten(read_yaml(record.config.to_yaml(), "the config")) for record in records]
    keys = sorted({key for config in configs for key in config})
    differences = [
        (key, [_printable_text(config.get(key, "")) for config in configs])
        for key in keys
        if len({repr(config.get(key, "")) for config in configs}) > 1
    ]
    digests = {record.manifest.get("eval_list") for record in records} - {None, ""}
    page = {
        "title": "Comparison of runs",
        "notes": [_OTHER_LISTS_NOTE] if len(digests) > 1 else [],
        "heads": ["run", "best epoch", *metrics],
        "rows": rows,
        "curves": data_uri(draw_curves(records)),
        "loss_note": printable(comparison_note([record.config for record in records])),
        "differences": differences,
        "runs": [printable(str(record.folder)) for record in records],
    }
    text = _render("compare.html.j2", page)
    if file is None:
        file = Path(COMPARISON)
        write_text(file, text)
    else:
        write_output(file, text)
    return file


def report_after_training(folder: Path) -> None:
    """Writes the report at the end of a training.

    An error is only logged, as one line, because the run itself has succeeded.
    """
    try:
        logger.info(f"report: {write_report(folder)}")
    except ReportError as error:
        logger.info(str(error))
    except (OSError, ConfigError, DataError) as error:
        logger.warning(f"the report can't be written: {error}")
    # A drawing library may raise any error. The weights are safe, and the report can be written again.
    except Exception as error:
        logger.warning(f"the report can't be written: {type(error).__name__}: {' '.join(str(error).split())}")


def _require_packages() -> None:
    try:
        import jinja2  # noqa: F401  only checks that they are installed
        import scipy  # noqa: F401

        matplotlib_module()
    except ImportError:
        raise ReportError(f"a report needs {PACKAGES_HINT}") from None


def _may_be_replaced(card: Path) -> bool:
    """True if there is no model card, or if ppxcls wrote it, not the user."""
    if not os.path.lexists(card):
        return True
    try:
        return MARK.encode() in read_regular(card, _MAX_CARD_BYTES, follows_links=False)
    except (OSError, ValueError):  # such as a link, or a text that is larger than a card
        return False


def _render(template: str, page: dict[str, Any]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ppxcls.reports"), autoescape=True, undefined=jinja2.ChainableUndefined
    )
    return environment.get_template(template).render(page)


def _evaluation_content(record: Record, samples: Samples, pictures: dict[str, bytes]) -> dict[str, Any]:
    confusions = figures.confusions(samples, len(record.names))
    classes = figures.by_class(samples, len(record.names))
    calibration = figures.calibration(samples)
    pictures[CALIBRATION] = draw_calibration(calibration)
    pairs = [(a, b, n, n / classes["support"][a]) for a, b, n in figures.most_confused(confusions)]
    rows = _class_rows(record, classes)
    _write_per_class(record.folder / PER_CLASS, rows)
    mistakes = figures.worst_mistakes(samples, _GALLERY_IMAGES)
    grad_cam_indices = list(
        dict.fromkeys(
            [*mistakes[: _GRAD_CAM_IMAGES // 2], *_evenly_spaced_indices(samples, _GRAD_CAM_IMAGES)]
        )
    )[:_GRAD_CAM_IMAGES]
    return {
        "matrix": _matrix_content(confusions, len(record.names)),
        "pairs": pairs,
        "per_class": sorted(rows, key=lambda row: -row["support"])[:_MAX_CLASS_ROWS]
        if len(rows) > _MAX_CLASS_ROWS
        else rows,
        "more_classes": max(len(rows) - _MAX_CLASS_ROWS, 0),
        "calibration_error": calibration.error,
        "mistakes": _gallery(record, samples, mistakes),
        "uncertain": _gallery(record, samples, figures.least_certain(samples, _GALLERY_IMAGES)),
        "suspects": _gallery(record, samples, figures.suspected_labels(samples, _GALLERY_IMAGES)),
        "cams": _grad_cam_items(record, samples, grad_cam_indices),
    }


def _matrix_content(confusions: figures.Confusions, count: int) -> dict[str, Any]:
    """Returns the confusion matrix for the page.

    Depending on the number of classes, it is a table of cells, the entries of a picture, or only a sentence.
    """
    if count > _MAX_MATRIX_CLASSES:
        return {"is_too_large": True}
    matrix = confusions.matrix(count)
    order = figures.clustered_order(matrix)
    if count > _MAX_TABLE_CLASSES:
        entries = np.stack([confusions.labels, confusions.predicted_ids, confusions.counts], axis=1).tolist()
        return {"order": order.tolist(), "entries": entries, "largest": int(matrix.max())}
    ordered_matrix = matrix[np.ix_(order, order)]
    shares = ordered_matrix / np.maximum(ordered_matrix.sum(axis=1, keepdims=True), 1)
    cells = [
        [{"count": int(n), "share": 0.8 * s} for n, s in zip(*pair, strict=True)]
        for pair in zip(ordered_matrix, shares, strict=True)
    ]
    return {"order": order.tolist(), "cells": cells}


def _class_rows(record: Record, classes: dict[str, Array]) -> list[dict[str, Any]]:
    training_counts = record.class_counts
    return [
        {
            "id": i,
            "name": printable(name),
            "training": None if training_counts is None else int(training_counts[i]),
            **{key: values[i].item() for key, values in classes.items()},
        }
        for i, name in enumerate(record.names)
    ]


def _write_per_class(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(
        text,
        ["id", "name", "precision", "recall", "f1", "support", "predicted", "training"],
        lineterminator="\n",
    )
    writer.writeheader()
    writer.writerows(rows)
    write_text(file, text.getvalue())


def _gallery_item(record: Record, samples: Samples, index: int, image: str | None) -> dict[str, Any]:
    label, predicted_name = (
        printable(record.names[int(ids[index])]) for ids in (samples.labels, samples.predicted_ids)
    )
    short_path = "/".join(Path(samples.files[index]).parts[-2:])
    return {
        "image": image,
        "label": label,
        "predicted": predicted_name,
        "score": float(samples.scores[index]),
        "file": printable(short_path),
    }


def _gallery(record: Record, samples: Samples, indices: Sequence[int]) -> list[dict[str, Any]]:
    return [_gallery_item(record, samples, i, thumbnail(samples.files[i], record.images)) for i in indices]


def _evenly_spaced_indices(samples: Samples, count: int) -> list[int]:
    """Returns the indices of samples at equal distances."""
    return np.unique(np.linspace(0, len(samples) - 1, count).astype(int)).tolist()


def _grad_cam_items(record: Record, samples: Samples, indices: Sequence[int]) -> list[dict[str, Any]]:
    try:
        images = overlays(
            record.config, record.images, [(samples.files[i], int(samples.predicted_ids[i])) for i in indices]
        )
    # A user's own network may have no gradient or no feature map, or its weights may be deleted.
    except Exception as error:
        logger.info(f"the report has no Grad-CAM: {' '.join(str(error).split())}")
        return []
    return [
        _gallery_item(record, samples, i, image) for i, image in zip(indices, images, strict=True) if image
    ]


def _best_evaluation(record: Record) -> dict[str, Any]:
    """Returns the evaluation of the best checkpoint, or else the last evaluation."""
    epoch = record.manifest.get("progress", {}).get("best", {}).get("epoch")
    rows = [row for row in record.evaluations if row.get("epoch") == epoch] or record.evaluations
    return rows[-1] if rows else {}


def _numbers(record: Record) -> list[dict[str, str]]:
    numbers = []
    samples = record.samples
    if samples is not None:
        for k, proportion in figures.topk_proportions(samples, len(record.names)).items():
            interval = f"95 %: {100 * proportion.low:.2f} to {100 * proportion.high:.2f}"
            if record.choice_note:
                interval += ", on the images that chose the epoch"
            numbers.append({"name": f"top-{k}", "value": f"{100 * proportion.value:.2f} %", "note": interval})
        numbers.append(
            {
                "name": "evaluated",
                "value": f"{len(samples):,}",
                "note": f"samples, {len(record.names):,} classes",
            }
        )
    if best_evaluation := _best_evaluation(record):
        numbers.append(
            {
                "name": "best epoch",
                "value": str(best_evaluation.get("epoch", "")),
                "note": f"of {record.config.Global.epochs}",
            }
        )
    if rates := epoch_rates(record.train):
        note = "images/s, over whole epochs" if len(rates) == 1 else "images/s, median of whole epochs"
        numbers.append({"name": "training", "value": f"{np.median(rates):.4g}", "note": note})
    return numbers


def _notes(record: Record) -> list[str]:
    notes = []
    if record.samples is None:
        notes.append(
            "This run was not evaluated, or its predictions.csv is missing: ppxcls eval -c FOLDER writes it."
        )
    else:
        absent_classes = sorted(set(range(len(record.names))) - set(record.samples.labels.tolist()))
        if absent_classes:
            class_list = ", ".join(printable(record.names[i]) for i in absent_classes[:5])
            notes.append(
                f"{len(absent_classes)} of {len(record.names)} classes have no evaluated sample: "
                f"{class_list}{' …' if len(absent_classes) > 5 else ''}"
            )
        missing_count = sum(not record.images.has(file) for file in record.samples.files[:_CHECKED_IMAGES])
        if missing_count:
            notes.append(
                "The images are not where they were during the evaluation, so some pictures are missing."
            )
        if not all(map(record.images.may_show, record.samples.files[:_CHECKED_IMAGES])):
            notes.append(
                "Pictures are left out that lie, after links are resolved, neither under the image root "
                "of the data set nor in the run's folder."
            )
        if record.choice_note:
            notes.append(record.choice_note)
    return notes


def _facts(record: Record) -> list[tuple[str, str]]:
    manifest, progress = record.manifest, record.manifest.get("progress", {})
    facts = [("network", record.config.Arch.name), ("folder", str(record.folder))]
    for key, name in (
        ("started_from", "started from"),
        ("ppxcls", "ppxcls"),
        ("paddle", "Paddle"),
        ("world_size", "processes"),
    ):
        if manifest.get(key) is not None:
            facts.append((name, str(manifest[key])))
    facts.append(("device", record.config.Global.device))
    for key, name in (
        ("train_list", "training list, SHA-256"),
        ("eval_list", "evaluation list, SHA-256"),
        ("run", "id of the run"),
    ):
        if manifest.get(key):
            facts.append((name, str(manifest[key])))
    if progress.get("step"):
        facts.append(("optimizer steps", f"{progress['step']:,}"))
    try:
        start_time = datetime.fromisoformat(str(progress.get("started")))
        end_time = datetime.fromtimestamp((record.folder / METRICS_FILE).stat().st_mtime, timezone.utc)
        facts.append(
            ("from the start to the last log line", str(end_time - start_time).split(".", maxsplit=1)[0])
        )
    except (ValueError, TypeError, OSError, OverflowError):
        pass
    facts.append(("report written", time.strftime("%Y-%m-%d %H:%M")))
    return [(key, printable(value)) for key, value in facts]


def _sections(page: dict[str, Any]) -> list[tuple[str, str]]:
    sections = [("curves", "Curves")]
    if "matrix" in page:
        sections += [
            ("confusion", "Confusion"),
            ("confused", "Most confused"),
            ("classes", "Classes"),
            ("calibration", "Calibration"),
        ]
        sections += [
            ("mistakes", "Worst mistakes"),
            ("uncertain", "Least certain"),
            ("suspects", "Suspected labels"),
        ]
    optional_sections = (
        ("cams", "cam", "Grad-CAM"),
        ("balance", "balance", "Class balance"),
        ("first_batch", "batch", "First batch"),
    )
    sections += [(id_, name) for key, id_, name in optional_sections if page.get(key)]
    return [*sections, ("run", "The run")]


def _printable_text(value: Any) -> str:
    return printable(str(value))
