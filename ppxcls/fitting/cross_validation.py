"""The folds of ``fit --folds``: one training for each, and the figures and predictions of all of them.

A fold is a ``fit`` of its own in ``folds/fold_K``, with the settings of the fit of all photographs. It is
judged by the photographs that it was not trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ppxcls.build import EVALUATION
from ppxcls.data.class_names import CLASS_NAMES_FILE
from ppxcls.data.errors import DataError
from ppxcls.data.groups import GROUPS_FILE, read_groups
from ppxcls.data.held_out import Sample, hold_out_folds
from ppxcls.data.list_content import coverage_notes
from ppxcls.data.list_index import ListIndex, list_line
from ppxcls.fitting.clock import Clock
from ppxcls.fitting.configs import config_of
from ppxcls.fitting.features import remove_features
from ppxcls.fitting.photographs import TRAIN_LIST, VAL_LIST, Photographs
from ppxcls.fitting.plan import Counts, Speeds, fold_seconds
from ppxcls.fitting.progress import FILE, FitProgress, read_progress
from ppxcls.fitting.request import Request
from ppxcls.fitting.yaml_files import FOLDS_FOLDER, LISTS, STAGES_FOLDER, TRAIN_YAML
from ppxcls.reports import FOLDS
from ppxcls.reports.fold_file import FORMAT, IMAGE_COUNT, FoldFile
from ppxcls.system.appended_files import make_own_folder
from ppxcls.system.atomic_files import read_regular, write_bytes, write_text
from ppxcls.system.json_text import is_number, json_text, read_json
from ppxcls.system.logs import logger
from ppxcls.system.paths import short_path
from ppxcls.train import FOLD_PREDICTIONS, PREDICTIONS

FINISHED = "folds"  # name of the step
_SEED = 0  # of the folds, as that of the lists
_MINUTES = "--minutes"  # argument that is a fold's share of the time
_MAX_EVALUATION_BYTES, _MAX_PREDICTIONS_BYTES = 1 << 20, 1 << 30
_FACTS = ("uses", "views")  # numbers in eval.json that are no figures

Train = Callable[[Request, FitProgress, Clock], Path]  # takes the steps of a fit, and returns its run folder


def divided_photographs(request: Request, photographs: Photographs) -> list[dict[str, list[Sample]]]:
    """Returns the photographs that train and those that are held out, for each fold.

    Classes that a fold can't be trained on are named in the log.

    Raises:
        DataError: there are too few photographs or groups.
    """
    if not request.folds:
        return []
    indices = [ListIndex(photographs.lists / name) for name in (TRAIN_LIST, VAL_LIST)]
    samples = [(index.path(i), int(index.labels[i])) for index in indices for i in range(len(index))]
    groups = read_groups(photographs.lists / GROUPS_FILE)
    folds = hold_out_folds(samples, request.folds, seed=_SEED, root=photographs.root, groups=groups)
    for number, parts in enumerate(folds, 1):
        for note in coverage_notes({"train": parts["train"]}, photographs.names, f" of fold {number}"):
            logger.warning(note)
    return folds


def begin_folds(
    request: Request,
    progress: FitProgress,
    *,
    folds: Sequence[dict[str, list[Sample]]],
    photographs: Photographs,
    counts: Counts,
) -> None:
    """Writes the lists and the progress of each fold, if they are not there yet.

    Args:
        request: arguments of ``fit``.
        progress: progress of the fit of all photographs, with the settings at its beginning.
        folds: result of ``divided_photographs``.
        photographs: all photographs.
        counts: numbers of photographs.

    Raises:
        OSError: a file can't be written.
    """
    settings = progress.settings
    seconds = 60 * request.minutes / (len(folds) + 1)
    if settings.feature_size:
        speeds = settings.speeds
        seconds = fold_seconds(
            Speeds(size=int(speeds["size"]), feature=speeds["feature"], step=speeds["step"]),
            counts,
            size=settings.feature_size,
            copies=settings.copies,
            seconds=60 * request.minutes,
            folds=len(folds),
        )
    for number, parts in enumerate(folds, 1):
        fold = replace(_fold_request(request, number), minutes=round(seconds / 60, 3))
        lists = fold.output / LISTS
        make_own_folder(fold.output.parent)
        make_own_folder(fold.output)
        make_own_folder(lists)
        for name, part in ((TRAIN_LIST, "train"), (VAL_LIST, "val")):
            write_text(lists / name, "".join(f"{list_line(*sample)}\n" for sample in parts[part]))
        for file in (photographs.lists / CLASS_NAMES_FILE, photographs.lists / GROUPS_FILE):
            if file.is_file():
                write_bytes(lists / file.name, file.read_bytes())
        if not (fold.output / FILE).exists():
            place = str(fold.output.resolve())
            FitProgress(fold.output / FILE, fold.facts(), photographs.digest, settings, folder=place).save()


def _fold_request(request: Request, number: int) -> Request:
    """Returns the arguments of the fit of a fold, whose settings are known already."""
    return replace(
        request,
        output=request.output / FOLDS_FOLDER / f"fold_{number}",
        whole=request.output,
        folds=0,
        find_lr=False,
        find_batch=False,
    )


def _begun_fold(request: Request, number: int) -> tuple[Request, FitProgress]:
    """Returns the arguments and the progress of a fold.

    Raises:
        DataError: its files are missing or damaged.
    """
    fold = _fold_request(request, number)
    progress = read_progress(fold.output, ())
    minutes = progress.arguments.get(_MINUTES) if progress else None
    if progress is None or not is_number(minutes):
        raise DataError(f"{fold.output / FILE} is missing or damaged: give another --output")
    fold = replace(fold, minutes=float(minutes or 0))
    progress.continue_with(fold.facts(), request.weights)
    return fold, progress


def reserve_time_of_folds(request: Request, clock: Clock) -> None:
    """Takes the time of the folds from the clock of the fit of all photographs.

    Raises:
        DataError: a file of the first fold is missing or damaged.
    """
    if request.folds:
        clock.reserve(60 * request.folds * _begun_fold(request, 1)[0].minutes)


def cross_validate(request: Request, progress: FitProgress, *, run_folder: Path, train: Train) -> None:
    """Trains the folds that are not finished yet, and writes the figures and predictions of all.

    Args:
        request: arguments of ``fit``.
        progress: progress of the fit of all photographs, which is finished.
        run_folder: its run folder, which receives ``folds.json`` and ``fold_predictions.csv``.
        train: function that trains a fold.

    Raises:
        ConfigError, DataError, CheckpointError, TrainingError, OSError: a fold has failed.
    """
    runs = []
    for number in range(1, request.folds + 1):
        fold, fold_progress = _begun_fold(request, number)
        if FINISHED not in fold_progress.finished_steps:
            logger.info(f"fold {number} of {request.folds}")
            if not progress.settings.feature_size and not fold_progress.finished_steps:
                fold_progress.settings = progress.settings  # also what --find-lr and --find-batch have found
            clock = Clock(fold.minutes, fold_progress.used_seconds)
            fold_progress.clock = clock
            train(fold, fold_progress, clock)
            fold_progress.finish(FINISHED)
            progress.finish(f"fold {number}")
        runs.append(Path(short_path(config_of(fold, fold.output / TRAIN_YAML).run_folder)))
    folds = [_figures(run) for run in runs]
    config = config_of(request, request.output / TRAIN_YAML)
    # Otherwise the first figure of the evaluation decides, as in a training.
    content = FoldFile(config.Global.best_metric or next(iter(folds[0])), folds)
    rows = {"format": FORMAT, "figure": content.figure, "folds": content.folds}
    write_bytes(run_folder / FOLD_PREDICTIONS, _predictions(runs))
    write_text(run_folder / FOLDS, json_text(rows, indent=1, is_ascii=True) + "\n")
    remove_features(request.output / STAGES_FOLDER)
    count = sum(int(fold.get(IMAGE_COUNT) or 0) for fold in content.folds)
    logger.info(
        f"{len(runs)} folds, {count:,} photographs that each was not trained on, mean ± standard deviation: "
        f"{', '.join(map(str, content.means))}"
    )
    progress.finish(FINISHED)


def _figures(run: Path) -> dict[str, float | None]:
    """Returns the figures of a fold: metrics, losses and the number of its images."""
    values: dict[str, Any] = read_json(
        read_regular(run / EVALUATION, _MAX_EVALUATION_BYTES), is_nan_null=True
    )
    return {
        name: value
        for name, value in values.items()
        if name not in _FACTS and (value is None or is_number(value)) and name != "checkpoint"
    }


def _predictions(runs: Sequence[Path]) -> bytes:
    """Returns the predictions of all folds in one table."""
    tables = [read_regular(run / PREDICTIONS, _MAX_PREDICTIONS_BYTES) for run in runs]
    head = tables[0].split(b"\n", 1)[0]
    return head + b"\n" + b"".join(table.split(b"\n", 1)[1] for table in tables)
