"""Reads the files of a run for its report. What is missing or damaged is left out."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ppxcls.build.choices import class_names_for, class_num
from ppxcls.build.data import build_dataset
from ppxcls.checkpoints.files import CheckpointError, read_manifest
from ppxcls.config.checks import ConfigError
from ppxcls.config.load import load_config
from ppxcls.config.sections import Config
from ppxcls.data.decode import ImageParts
from ppxcls.data.errors import DataError
from ppxcls.data.read_file import read_file
from ppxcls.packed.dataset import PackedDataset
from ppxcls.system.whole_files import read_regular
from ppxcls.train import METRICS_FILE, PREDICTIONS
from ppxcls.train.predictions import COLUMNS

_MOST_BYTES = 1 << 30
Array = np.ndarray[Any, Any]


@dataclass
class Samples:
    """The predictions of an evaluation, as ``predictions.csv`` has them.

    Attributes:
        files: of the samples.
        labels, predicted: classes, int64 [n].
        scores: probability of the predicted class, float64 [n].
        label_scores: probability of the label, float64 [n].
        top_ids: the best classes of each sample, up to five.
    """

    files: list[str]
    labels: Array
    predicted: Array
    scores: Array
    label_scores: Array
    top_ids: list[list[int]]

    def __len__(self) -> int:
        return len(self.files)


class Images:
    """Reads the files that ``predictions.csv`` names, from the disk or from a packed data set.

    Args:
        config: of the run.
    """

    def __init__(self, config: Config) -> None:
        self._places: dict[str, int] = {}
        try:
            dataset = (
                build_dataset(config, "Eval", patience=0)
                if config.DataLoader and config.DataLoader.Eval
                else None
            )
        except (ConfigError, DataError, ValueError, OSError):
            return
        if isinstance(dataset, PackedDataset):
            self._dataset = dataset
            self._places = {dataset.path(i): i for i in range(len(dataset))}

    def has(self, file: str) -> bool:
        """Whether the file is there."""
        return file in self._places or Path(file).is_file()

    def read(self, file: str) -> bytes:
        """The bytes of a file. Raises OSError and ValueError."""
        if file not in self._places:
            return read_file(file)
        found: Any = self._dataset.read(self._places[file])
        return found.encoded if isinstance(found, ImageParts) else found


@dataclass
class Record:
    """A run, as its folder tells it.

    Attributes:
        folder: of the run.
        config: the resolved config.
        names: of the classes; their numbers if they have no names.
        train, evaluations: the lines of ``metrics.jsonl``.
        samples: predictions of the best evaluation; None if nothing was evaluated.
        manifest: of ``best_model`` or ``latest``; empty if there is neither.
        class_counts: training samples of each class; None if the list is not there any more.
    """

    folder: Path
    config: Config
    names: list[str]
    train: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    samples: Samples | None = None
    manifest: dict[str, Any] = field(default_factory=dict)
    class_counts: Array | None = None

    @cached_property
    def images(self) -> Images:
        """Reads the evaluated files."""
        return Images(self.config)

    @property
    def title(self) -> str:
        """Network and folder."""
        return f"{self.config.Arch.name} ({self.folder})"


def read_record(folder: str | Path) -> Record:
    """Read a run's folder.

    Raises:
        ConfigError: it is no run's folder.
    """
    config = load_config(folder)
    folder = config.run_folder
    count = class_num(config)
    try:
        names = class_names_for(config, "evaluate")
    except DataError:
        names = []
    record = Record(folder, config, names or [str(i) for i in range(count)])
    for row in _json_lines(folder / METRICS_FILE):
        (record.evaluations if row.get("kind") == "eval" else record.train).append(row)
    record.samples = _read_samples(folder / PREDICTIONS, count)
    for name in ("best_model", "latest"):
        try:
            record.manifest = read_manifest(folder / name)
            break
        except CheckpointError:
            continue
    record.class_counts = _class_counts(config, count)
    return record


def _json_lines(file: Path) -> Iterator[dict[str, Any]]:
    try:
        text = read_regular(file, _MOST_BYTES).decode(errors="replace")
    except (OSError, ValueError):
        return
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # cut off, or not ours
            continue
        if isinstance(row, dict):
            yield row


def _read_samples(file: Path, count: int) -> Samples | None:
    """The predictions; None if there are none that fit the classes."""
    try:
        text = read_regular(file, _MOST_BYTES).decode("utf-8", "surrogateescape")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        if not rows or tuple(rows[0]) != COLUMNS:
            return None
        labels, predicted = (np.array([int(row[key]) for row in rows]) for key in ("label", "predicted"))
        scores, own = (np.array([float(row[key]) for row in rows]) for key in ("score", "label_score"))
        tops = [[int(word) for word in row["top_ids"].split()] for row in rows]
    except (OSError, ValueError, TypeError, csv.Error):
        return None
    is_known = all(((ids >= 0) & (ids < count)).all() for ids in (labels, predicted))
    return Samples([row["file"] for row in rows], labels, predicted, scores, own, tops) if is_known else None


def _class_counts(config: Config, count: int) -> Array | None:
    try:
        if config.DataLoader and config.DataLoader.Train:
            return np.bincount(build_dataset(config, "Train", patience=0).labels, minlength=count)
    except (ConfigError, DataError, OSError):
        pass
    return None
