"""Reads a run for its report. A file that is missing is skipped, and a file that is invalid is an error."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ppxcls.build import TEST_EVALUATION, TEST_TTA_EVALUATION, TTA_EVALUATION
from ppxcls.build.choices import class_names_for, class_num
from ppxcls.build.class_order import run_classes
from ppxcls.build.data import build_dataset, build_images
from ppxcls.build.judging import checkpoint_digest, judging_config
from ppxcls.calibration import CALIBRATION_FILE
from ppxcls.calibration.fit import FittedCalibration, read_calibration
from ppxcls.checkpoints.files import (
    AVERAGE,
    WEIGHTS,
    CheckpointError,
    part_digest,
    read_manifest,
    with_extension,
)
from ppxcls.checkpoints.progress import Progress, UnknownProgressError, progress_of
from ppxcls.config.checks import ConfigError
from ppxcls.config.load import RUN_CONFIG, load_config
from ppxcls.config.sections import Config
from ppxcls.data.class_names import CLASS_NAMES_FILE, PADDLEX_NAMES_FILE
from ppxcls.data.dataset import Dataset
from ppxcls.data.decode import ImageParts
from ppxcls.data.errors import DataError
from ppxcls.data.read_file import MAX_IMAGE_FILE_BYTES
from ppxcls.packed.dataset import PackedDataset
from ppxcls.reports import FOLDS, STAGES
from ppxcls.reports.fold_file import FoldFile, read_folds
from ppxcls.reports.result_files import (
    StageFile,
    ViewFigures,
    read_judging_use,
    read_stages,
    read_view_figures,
)
from ppxcls.reports.run_files import Samples, joined_samples, read_metrics, read_samples
from ppxcls.system.arrays import Array
from ppxcls.system.atomic_files import is_inside, read_inside
from ppxcls.system.paths import printable
from ppxcls.train import FOLD_PREDICTIONS, METRICS_FILE, PREDICTIONS, TEST_PREDICTIONS
from ppxcls.train.class_weights import TrainingClasses
from ppxcls.train.losses import build_loss

# Names of the text files of a run that a report shows or that decide what it shows.
_SHOWN_FILES = (
    RUN_CONFIG,
    METRICS_FILE,
    PREDICTIONS,
    TEST_PREDICTIONS,
    TEST_EVALUATION,
    TTA_EVALUATION,
    TEST_TTA_EVALUATION,
    STAGES,
    CALIBRATION_FILE,
    FOLDS,
    FOLD_PREDICTIONS,
    CLASS_NAMES_FILE,
    PADDLEX_NAMES_FILE,
    "best_model.json",
    "latest.json",
)


class Images:
    """Reads the files that ``predictions.csv`` names, from the disk or from a packed data set.

    A stranger may have written that file. So a picture must lie under the image root of the data set or in
    the run's folder, after links are resolved, and be a regular file.

    Args:
        config: config of the run.
    """

    def __init__(self, config: Config) -> None:
        self._dataset: Dataset | None = None
        self._indices: dict[str, int] = {}
        self._roots, self._image_root = [config.run_folder], ""
        try:
            if config.DataLoader and config.DataLoader.Eval:
                if image_root := config.DataLoader.Eval.dataset.get("image_root"):
                    self._image_root = str(image_root)
                    self._roots.append(Path(image_root))
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
        return file in self._indices or os.path.isfile(self._place(file))

    def may_show(self, file: str) -> bool:
        """True if the file is one of the data set's or of the run's."""
        return file in self._indices or is_inside(self._place(file), self._roots)

    def _place(self, file: str) -> str:
        """Returns the path of a file now.

        The run may have been started in another folder, or the images may have been moved since then.
        """
        if os.path.isfile(file) and is_inside(file, self._roots):
            return file
        parts = Path(file).parts
        endings = ("/".join(parts[i:]) for i in range(len(parts)))
        return next((self._listed_files[name] for name in endings if name in self._listed_files), file)

    def listed(self, file: str) -> str | None:
        """Returns the path of a file as it is in its list; None if it is not known."""
        if self._image_root and file.startswith(prefix := os.path.join(self._image_root, "")):
            return file.removeprefix(prefix)
        parts = Path(file).parts
        endings = ("/".join(parts[i:]) for i in range(len(parts)))
        return next((name for name in endings if name in self._listed_files), None)

    def read(self, file: str) -> bytes:
        """Returns the bytes of a file.

        Raises:
            OSError, ValueError: the file can't be read, is no regular file, is too large, or is not one of
                the data set's or the run's.
        """
        if file not in self._indices:
            return read_inside(Path(self._place(file)), self._roots, MAX_IMAGE_FILE_BYTES)
        assert self._dataset
        content: Any = self._dataset.read(self._indices[file])
        return content.encoded if isinstance(content, ImageParts) else content


@dataclass(frozen=True)
class Judged:
    """Predictions of images that neither trained nor chose.

    Attributes:
        samples: predictions of the run's ``best_model``, or else of ``latest``.
        uses: how often these images have judged models of the run's folder.
        figures: figures in ``test.json`` by name.
    """

    samples: Samples
    uses: int
    figures: dict[str, float] = field(default_factory=dict)


@dataclass
class Record:
    """The data of a run, as read from its folder.

    Attributes:
        folder: run folder.
        config: the resolved config.
        names: class names; class numbers if the classes have no names.
        train, evaluations: training lines and evaluation lines of ``metrics.jsonl``.
        samples: predictions of the best evaluation; None if nothing was evaluated.
        judged: predictions of images that judge; None if there are none of the run's weights.
        judging_note: sentence for the page, if earlier weights were judged; empty otherwise.
        fold_samples: predictions of all images of a cross-validation, each by the fold that was not trained
            on it; None without one.
        folds: figures of its folds; None without one.
        view_figures: results of ``eval --tta`` with the run's weights: of the images of ``samples``, and of
            those that judge; an evaluation that there is not is left out.
        stages: stages of ``ppxcls fit``; None if another command has trained.
        manifest: manifest of ``best_model`` or ``latest``; empty if there is neither.
        progress: progress of the run in ``latest``; None if there is no ``latest`` that this version knows.
        class_counts: number of training samples of each class; None if the list no longer exists, or is not
            the list that the run was trained on.
        class_weights: weights of the classes in the training loss by the name of the loss; empty if the
            classes have no weights, or if the weights follow from counts that are not known.
        calibration: calibration of the weights in ``manifest``; None if they have none.
    """

    folder: Path
    config: Config
    names: list[str]
    train: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    samples: Samples | None = None
    judged: Judged | None = None
    judging_note: str = ""
    fold_samples: Samples | None = None
    folds: FoldFile | None = None
    view_figures: list[ViewFigures] = field(default_factory=list)
    stages: StageFile | None = None
    manifest: dict[str, Any] = field(default_factory=dict)
    progress: Progress | None = None
    class_counts: Array | None = None
    class_weights: dict[str, Array] = field(default_factory=dict)
    calibration: FittedCalibration | None = None

    @cached_property
    def images(self) -> Images:
        """Reader of the files of ``shown_samples``."""
        return Images(self.shown_config)

    @property
    def shown_samples(self) -> Samples | None:
        """Predictions to show: of images that judge, or else of folds, or else of the best evaluation."""
        if self.judged:
            return self.judged.samples
        return self.fold_samples or self.samples

    @property
    def suspect_samples(self) -> Samples | None:
        """Predictions whose labels may be suspect: none is by a network that was trained on its image."""
        if self.judged and self.fold_samples:
            return joined_samples([self.fold_samples, self.judged.samples])
        return self.shown_samples

    @property
    def shown_config(self) -> Config:
        """A config whose evaluation data are the images of ``shown_samples``."""
        loaders = self.config.DataLoader
        return judging_config(self.config) if self.judged and loaders and loaders.Test else self.config

    @property
    def has_known_samples(self) -> bool:
        """True if the weights have been trained on the images of ``samples`` since these were evaluated."""
        return bool(self.manifest.get("trained_on_eval_list"))

    @property
    def choice_note(self) -> str:
        """Sentences about figures of images that also chose the weights; empty if others have judged."""
        if self.judged is not None or self.samples is None:
            return ""
        if self.fold_samples is not None and self.folds is not None:
            return (
                f"These are the predictions of {len(self.folds.folds)} folds. None of them was trained on "
                f"the images that it predicts; together they are all {len(self.fold_samples):,} images. "
                "best_model is another network, which was trained like them. The images of a fold may have "
                "chosen its stage or epoch; then the figures are slightly too high."
            )
        if self.has_known_samples:
            note = (
                f"The same {len(self.samples):,} images chose the result of fit, so the figures are rather "
                "too high. These figures are of weights that had not been trained on them; best_model was, "
                "after the choice."
            )
        elif len(self.evaluations) > 1:
            note = (
                f"The same {len(self.samples):,} images chose the best of {len(self.evaluations)} "
                "evaluations. So the figures are rather too high, and their intervals do not show by how "
                "much."
            )
        else:
            return ""
        return (
            f"{note} For unbiased figures, evaluate images that were never used: add DataLoader.Test and run "
            "ppxcls eval --test, or "
            f"ppxcls eval -c {printable(self.folder.name)} -o DataLoader.Eval.dataset.image_root=FOLDER "
            "-o DataLoader.Eval.dataset.cls_label_path=LIST"
        )

    @property
    def deciding_figure(self) -> str | None:
        """Name of the figure that chose ``best_model``; None if it is not known."""
        name = self.manifest.get("progress", {}).get("best", {}).get("metric")
        return name if isinstance(name, str) else None

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
        DataError: a file of the run can't be used, or is a link out of the folder.
    """
    if os.path.isdir(folder):
        _refuse_links_out(Path(folder))
    config = load_config(folder, trust=trust)
    folder = config.run_folder
    count = class_num(config)
    try:
        names = class_names_for(config, "evaluate")
    except DataError:
        names = []
    record = Record(folder, config, names or [str(i) for i in range(count)])
    for row in read_metrics(folder / METRICS_FILE):
        (record.evaluations if row["kind"] == "eval" else record.train).append(row)
    record.samples = read_samples(folder / PREDICTIONS, count)
    for name in ("best_model", "latest"):
        if os.path.lexists(folder / f"{name}.json"):
            record.manifest = _manifest(folder / name)
            checkpoint = checkpoint_digest(folder / name)
            break
    else:
        checkpoint = None
    record.progress = _progress_of_run(record)
    _read_judging(record, count, checkpoint)
    all_figures = [
        read_view_figures(folder / TTA_EVALUATION, is_judging=False),
        read_view_figures(folder / TEST_TTA_EVALUATION, is_judging=True),
    ]
    record.view_figures = [item for item in all_figures if item and item.checkpoint == checkpoint]
    record.stages = read_stages(folder / STAGES)
    record.calibration = _calibration(record)
    record.folds = read_folds(folder / FOLDS)
    if record.folds:
        record.fold_samples = read_samples(folder / FOLD_PREDICTIONS, count)
    record.class_counts = _class_counts(config, count, record.manifest)
    record.class_weights = _class_weights(config, record.names, record.class_counts)
    return record


def _read_judging(record: Record, count: int, checkpoint: str | None) -> None:
    """Reads the predictions of images that judge, if they are those of a checkpoint.

    Args:
        record: run; it is changed.
        count: number of classes.
        checkpoint: digest of the manifest of the run's weights; None without a manifest.
    """
    use = read_judging_use(record.folder / TEST_EVALUATION)
    samples = read_samples(record.folder / TEST_PREDICTIONS, count)
    if use is None or samples is None:
        return
    if use.checkpoint != checkpoint:
        record.judging_note = (
            f"{TEST_EVALUATION} judges earlier weights, so it is not shown: ppxcls eval -c "
            f"{printable(record.folder.name)} --test judges these."
        )
        return
    record.judged = Judged(samples, use.uses, use.figures)


def _progress_of_run(record: Record) -> Progress | None:
    """Returns the progress in ``latest``; None if there is none, or if it is another run's."""
    prefix = record.folder / "latest"
    if not os.path.lexists(with_extension(prefix, ".json")):
        return None
    manifest = _manifest(prefix)
    if manifest.get("run") != record.manifest.get("run"):
        return None
    try:
        return progress_of(manifest, prefix)
    except UnknownProgressError:
        return None


def _manifest(prefix: Path) -> dict[str, Any]:
    try:
        return read_manifest(prefix)
    except CheckpointError as error:
        raise DataError(str(error)) from None


def _calibration(record: Record) -> FittedCalibration | None:
    if not record.config.Global.calibrate:
        return None
    digest = part_digest(record.manifest, AVERAGE) or part_digest(record.manifest, WEIGHTS)
    try:
        return read_calibration(record.folder, digest or "", class_num(record.config))
    except ValueError as error:
        raise DataError(str(error)) from None


def _refuse_links_out(folder: Path) -> None:
    """Raises DataError if a file that the report would show is a link out of the run's folder.

    Otherwise the lines of somebody's private file could become class names.
    """
    for name in _SHOWN_FILES:
        if (folder / name).is_symlink() and not is_inside(folder / name, [folder]):
            raise DataError(
                f"{folder / name} is a link out of the run's folder; replace it by the file, "
                "so that the report can't show another file"
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


def _class_weights(config: Config, names: list[str], counts: Array | None) -> dict[str, Array]:
    def known_counts() -> Array:
        if counts is None:
            raise ValueError("the training images are not known any more")
        return counts

    # No other loss is built, because a loss of a plugin may load files that only a training needs.
    blocks = [
        block for block in (config.Loss.Train if config.Loss else []) if block.arguments.get("class_weight")
    ]
    try:
        return build_loss(blocks, classes=TrainingClasses(names, known_counts)).class_weights
    except (ConfigError, DataError):
        return {}
