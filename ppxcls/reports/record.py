"""Reads the files of a run for its report. Missing or damaged files are skipped."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ppxcls.build.choices import class_names_for, class_num
from ppxcls.build.class_order import run_classes
from ppxcls.build.data import build_dataset, build_images
from ppxcls.checkpoints.files import CheckpointError, read_manifest
from ppxcls.config.checks import ConfigError
from ppxcls.config.load import load_config
from ppxcls.config.sections import Config
from ppxcls.data.dataset import Dataset
from ppxcls.data.decode import ImageParts
from ppxcls.data.errors import DataError
from ppxcls.data.read_file import read_file
from ppxcls.packed.dataset import PackedDataset
from ppxcls.system.arrays import Array
from ppxcls.system.atomic_files import read_regular
from ppxcls.system.paths import printable
from ppxcls.train import METRICS_FILE, PREDICTIONS
from ppxcls.train.predictions import COLUMNS

_MAX_FILE_BYTES = 1 << 30


@dataclass(kw_only=True)
class Samples:
    """The predictions of an evaluation, as in ``predictions.csv``.

    Attributes:
        files: image files of the samples.
        labels, predicted_ids: label and predicted class of each sample, int64 [n].
        scores: probability of the predicted class, float64 [n].
        label_scores: probability of the label, float64 [n].
        top_ids: best classes of each sample, up to five.
    """

    files: list[str]
    labels: Array
    predicted_ids: Array
    scores: Array
    label_scores: Array
    top_ids: list[list[int]]

    def __len__(self) -> int:
        return len(self.files)


class Images:
    """Reads the files that ``predictions.csv`` names, from the disk or from a packed data set.

    Args:
        config: config of the run.
    """

    def __init__(self, config: Config) -> None:
        self._dataset: Dataset | None = None
        self._indices: dict[str, int] = {}
        try:
            if config.DataLoader and config.DataLoader.Eval:
                self._dataset = build_images(config, "Eval")
        except (ConfigError, DataError, ValueError, OSError):
            return
        if isinstance(self._dataset, PackedDataset):
            self._indices = {self._dataset.path(i): i for i in range(len(self._dataset))}

    @cached_property
    def _listed_files(self) -> dict[str, str]:
        """Paths of the files now, by their paths in the list."""
        dataset = self._dataset
        if dataset is None or isinstance(dataset, PackedDataset):
            return {}
        return {dataset.listed(i): dataset.path(i) for i in range(len(dataset))}

    def has(self, file: str) -> bool:
        """True if the file exists."""
        return file in self._indices or Path(self._place(file)).is_file()

    def _place(self, file: str) -> str:
        """Returns the path of a file now.

        The run may have been started in another folder, or the images may have been moved since then.
        """
        if os.path.isfile(file):
            return file
        parts = Path(file).parts
        endings = ("/".join(parts[i:]) for i in range(len(parts)))
        return next((self._listed_files[name] for name in endings if name in self._listed_files), file)

    def read(self, file: str) -> bytes:
        """Returns the bytes of a file.

        Raises:
            OSError, ValueError: the file can't be read.
        """
        if file not in self._indices:
            return read_file(self._place(file))
        assert self._dataset
        content: Any = self._dataset.read(self._indices[file])
        return content.encoded if isinstance(content, ImageParts) else content


@dataclass
class Record:
    """The data of a run, as read from its folder.

    Attributes:
        folder: run folder.
        config: the resolved config.
        names: class names; class numbers if the classes have no names.
        train, evaluations: training lines and evaluation lines of ``metrics.jsonl``.
        samples: predictions of the best evaluation; None if nothing was evaluated.
        manifest: manifest of ``best_model`` or ``latest``; empty if there is neither.
        class_counts: number of training samples of each class; None if the list no longer exists, or is not
            the list that the run was trained on.
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
        """Reader of the evaluated files."""
        return Images(self.config)

    @property
    def choice_note(self) -> str:
        """A sentence about figures of images that also chose the weights; empty if there was no choice."""
        if self.samples is None or len(self.evaluations) < 2:
            return ""
        return (
            f"The same {len(self.samples):,} images chose the best of {len(self.evaluations)} evaluations. "
            "So the figures are rather too high, and their intervals do not show by how much. "
            "For unbiased figures, evaluate images that were never used: "
            f"ppxcls eval -c {printable(self.folder.name)} -o DataLoader.Eval.dataset.image_root=FOLDER "
            "-o DataLoader.Eval.dataset.cls_label_path=LIST"
        )

    @property
    def title(self) -> str:
        """Network and folder."""
        return f"{self.config.Arch.name} ({self.folder})"


def read_record(folder: str | Path, *, trust: bool = False) -> Record:
    """Reads a run folder.

    Args:
        folder: run folder.
        trust: True to run the plugins that the run names; see ``load_config``.

    Raises:
        ConfigError: the folder is not a run folder.
    """
    config = load_config(folder, trust=trust)
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
    record.class_counts = _class_counts(config, count, record.manifest)
    return record


def _json_lines(file: Path) -> Iterator[dict[str, Any]]:
    try:
        text = read_regular(file, _MAX_FILE_BYTES).decode(errors="replace")
    except (OSError, ValueError):
        return
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # an incomplete line, or one of another program
            continue
        if isinstance(row, dict):
            yield row


def _read_samples(file: Path, count: int) -> Samples | None:
    """Returns the predictions; None if there are none, or if they don't match the classes."""
    try:
        text = read_regular(file, _MAX_FILE_BYTES).decode("utf-8", "surrogateescape")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        if not rows or tuple(rows[0]) != COLUMNS:
            return None
        labels, predicted_ids = (np.array([int(row[key]) for row in rows]) for key in ("label", "predicted"))
        scores, label_scores = (
            np.array([float(row[key]) for row in rows]) for key in ("score", "label_score")
        )
        top_ids = [[int(word) for word in row["top_ids"].split()] for row in rows]
    except (OSError, ValueError, TypeError, csv.Error):
        return None
    if not all(((ids >= 0) & (ids < count)).all() for ids in (labels, predicted_ids)):
        return None
    return Samples(
        files=[row["file"] for row in rows],
        labels=labels,
        predicted_ids=predicted_ids,
        scores=scores,
        label_scores=label_scores,
        top_ids=top_ids,
    )


def _class_counts(config: Config, count: int, manifest: dict[str, Any]) -> Array | None:
    try:
        if config.DataLoader and config.DataLoader.Train:
            dataset = build_dataset(config, "Train", run_classes(config), patience=0)
            if manifest.get("train_list") in (None, dataset.labelled_digest()):
                return np.bincount(dataset.labels, minlength=count)
    except (ConfigError, DataError, OSError):
        pass
    return None
