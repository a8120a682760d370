"""What the page of a run shows of its predictions: classes, confusions, mistakes, pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppxcls.reports import CALIBRATION, PER_CLASS, RISK, ROC, figures
from ppxcls.reports.curves import draw_calibration
from ppxcls.reports.pictures import overlays, thumbnail
from ppxcls.reports.record import Record
from ppxcls.reports.run_files import Samples
from ppxcls.reports.score_content import (
    calibration_content,
    draw_risk,
    other_temperature,
    risk_content,
    risk_of,
)
from ppxcls.reports.suspects import corrections_content, suspected_samples
from ppxcls.reports.two_classes import draw_roc, roc_content, two_classes
from ppxcls.system.arrays import Array
from ppxcls.system.atomic_files import write_text
from ppxcls.system.logs import logger
from ppxcls.system.paths import printable

_MAX_CLASS_ROWS = 5000  # rows of the table of classes
_GALLERY_IMAGES = 24  # images in a gallery
_GRAD_CAM_IMAGES = 8  # images with Grad-CAM
_MAX_MATRIX_CLASSES = 2000  # classes in a confusion matrix; it takes several times 8 bytes x classes²
_MAX_TABLE_CLASSES = 30  # classes in a matrix that is a table; a larger one is a picture


def evaluation_content(record: Record, samples: Samples, pictures: dict[str, bytes]) -> dict[str, Any]:
    """Returns what the page shows of the predictions, and writes ``per_class.csv``.

    Args:
        record: run.
        samples: predictions to show.
        pictures: content of the pictures by file name; new ones are added.
    """
    confusions = figures.confusions(samples, len(record.names))
    classes = figures.by_class(samples, len(record.names))
    calibration = figures.sample_reliability(samples)
    pictures[CALIBRATION] = draw_calibration(calibration)
    curve = risk_of(samples)
    pictures[RISK] = draw_risk(curve)
    ranking = None
    if (pair := two_classes(record, samples)) is not None:
        pictures[ROC], ranking = draw_roc(pair), roc_content(pair)
    pairs = [(a, b, n, n / classes["support"][a]) for a, b, n in figures.most_confused(confusions)]
    weight_columns = _weight_columns(record)
    rows = _class_rows(record, {**classes, **weight_columns})
    _write_per_class(record.folder / PER_CLASS, rows, list(weight_columns))
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
        "weight_columns": list(weight_columns),
        "more_classes": max(len(rows) - _MAX_CLASS_ROWS, 0),
        "calibration_error": calibration.error,
        "scores": calibration_content(record),
        "other_temperature": other_temperature(record, samples),
        "answered": risk_content(curve),
        "ranking": ranking,
        "mistakes": _gallery(record, samples, mistakes),
        "uncertain": _gallery(record, samples, figures.least_certain(samples, _GALLERY_IMAGES)),
        **_suspects_content(record),
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


def _weight_columns(record: Record) -> dict[str, Array]:
    """Returns the class weights of the training loss by the head of their column, [class_num]."""
    if len(record.class_weights) == 1:
        return {"weight": next(iter(record.class_weights.values()))}
    return {f"weight in {name}": weights for name, weights in record.class_weights.items()}


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


def _write_per_class(file: Path, rows: Iterable[dict[str, Any]], weight_columns: Sequence[str]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(
        text,
        ["id", "name", "precision", "recall", "f1", "support", "predicted", "training", *weight_columns],
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


def _suspects_content(record: Record) -> dict[str, Any]:
    """Returns the gallery of suspected labels, and what the script needs to write corrections of them."""
    suspected = suspected_samples(record)
    if suspected is None:
        return {"suspects": []}
    samples, indices = suspected
    corrections = corrections_content(record, samples, indices)
    gallery = _gallery(record, samples, indices)
    for item, suspect in zip(gallery, corrections["suspects"] if corrections else [], strict=False):
        item["has_tick"] = suspect is not None
    return {"suspects": gallery, "corrections": corrections}


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
