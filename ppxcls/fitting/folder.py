"""``ppxcls fit``: lists, settings, YAML, training, evaluation and report for a folder of photographs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ppxcls.build.evaluation import evaluate
from ppxcls.config.load import load_config
from ppxcls.data.errors import DataError
from ppxcls.data.held_out import Sample
from ppxcls.data.list_index import ListIndex
from ppxcls.fitting.clock import Clock
from ppxcls.fitting.configs import config_of
from ppxcls.fitting.cross_validation import (
    FINISHED,
    begin_folds,
    cross_validate,
    divided_photographs,
    reserve_time_of_folds,
)
from ppxcls.fitting.earlier_run import earlier_run, log_earlier_classes
from ppxcls.fitting.features import FeatureComputer
from ppxcls.fitting.imbalance import warn_if_unbalanced
from ppxcls.fitting.judging import judge
from ppxcls.fitting.lock import only_fit_in
from ppxcls.fitting.photographs import TRAIN_LIST, Photographs, check_photographs, list_photographs
from ppxcls.fitting.plan import least_fold_seconds
from ppxcls.fitting.progress import FILE, FitProgress, read_progress
from ppxcls.fitting.request import Request, checked_request
from ppxcls.fitting.settings import (
    MAX_EPOCHS,
    MIN_EPOCHS,
    MIN_EPOCHS_WITH_WEIGHTS,
    Settings,
    choose,
    provisional_settings,
)
from ppxcls.fitting.stage_settings import with_stages
from ppxcls.fitting.stages import Stages, counts_of
from ppxcls.fitting.training import EpochLimits, Training
from ppxcls.fitting.trial import build_and_close
from ppxcls.fitting.yaml_files import HEAD_YAML, LISTS, TRAIN_YAML, WITHOUT_WEIGHTS, head_yaml, train_yaml
from ppxcls.models.weights import weights_file
from ppxcls.system.atomic_files import write_text
from ppxcls.system.devices import DeviceError
from ppxcls.system.json_text import json_text
from ppxcls.system.logs import logger, set_up_logging
from ppxcls.system.paths import short_path
from ppxcls.system.signals import Preempted
from ppxcls.tuning import build as tuning

_MIN_STEPS_PER_EPOCH = 20  # optimizer steps in an epoch
_END_SECONDS = 20.0  # for evaluation and report after the training
_LAST_STEPS = ("train begun", "train planned", "train", "evaluate")  # steps that write to the run's folder


def fit(
    photos: str | Path,
    weights: str | None = None,
    *,
    from_run: str | Path | None = None,
    network: str | None = None,
    minutes: float = 10.0,
    output: str | Path | None = None,
    device: str | None = None,
    find_lr: bool = False,
    find_batch: bool = False,
    val_share: float | None = None,
    test_share: float | None = None,
    folds: int = 0,
    group: str | None = None,
    image: str | None = None,
    label: str | None = None,
    split: str | None = None,
    image_root: str | Path | None = None,
    overrides: Sequence[str] = (),
    trust: bool = False,
) -> Path:
    """Trains a classifier on a folder of photographs; the folder is not changed.

    Everything that can be checked is checked before anything is written. The photographs are decoded:
    unreadable ones are left out, and copies of the same picture are named. The same call continues a training
    that was interrupted or failed.

    Args:
        photos: folder with one subfolder per class, or with ``train/``, ``val/`` and ``test/`` that contain
            such subfolders, or a table in CSV; see ``make_lists``. Photographs of ``test/``, or else of
            ``val/``, judge the result.
        weights: weights to start from: a file, or a word for published ones; None for those on this machine,
            if there are any; ``none`` for fresh weights. With weights, a linear classifier of the network's
            features is trained first. Then all layers are trained, as far as the minutes go. If they are not
            better, they change nothing.
        from_run: folder of an earlier run to start from: its ``best_model``, with its network, its size and
            preparation of images, and its plugins. The classes are those of the photographs. A class of the
            run without photographs is left out. None for no run.
        network: name of the network; None for the network of the weights.
        minutes: time of the whole command on this machine, in minutes. The first result may take longer.
        output: folder for the lists, the YAML and the run; None for ``output/<name of the folder>``.
        device: device to train on; None for the best one of this machine.
        find_lr: True to find the learning rate by a range test of all layers.
        find_batch: True to find the batch size by trying increasing sizes, up to a twentieth of the training
            images.
        val_share: share of each class that chooses the best stage or epoch, from 0 to below 1, if no folder
            holds it; None for a fifth with weights and a tenth without. With weights, the chosen stage is
            trained again, on these photographs too, if there is time for it.
        test_share: share of each class that judges the result once, at the end, if there is neither ``test/``
            nor ``val/``; 0 for none. None for a fifth, or with folds for none.
        folds: number of folds of a cross-validation, beside the classifier of all photographs. Each fold
            judges photographs that it was not trained on. Only those that judge the result are in no fold.
            The minutes are divided between them. 0 for none.
        group: regular expression or column that finds the group of a photograph, such as its patient, to keep
            each group in one list; see ``make_lists``. None for no groups.
        image: column of the photographs' paths in a table; None for one with a usual name.
        label: column of the labels; None for one with a usual name.
        split: column of the parts; None for one with a usual name, if there is one.
        image_root: folder to which the paths of the table are relative; None for the folder of the table.
        overrides: config overrides ``A.b=value``, applied to the YAML.
        trust: True to run the plugins that an edited YAML file names; see ``load_config``.

    Returns:
        The run folder.

    Raises:
        ConfigError, DataError, CheckpointError, TrainingError, OSError: as in ``make_lists`` and
            ``build_trainer``.
    """
    set_up_logging()
    if from_run is not None:
        run = earlier_run(from_run, weights=weights, network=network, trust=trust)
        weights, network = run.weights, run.network
        overrides = [*run.overrides, *overrides]
    request = checked_request(
        photos,
        output,
        weights=weights,
        network=network,
        minutes=minutes,
        device=device,
        find_lr=find_lr,
        find_batch=find_batch,
        overrides=overrides,
        trust=trust,
        val_share=val_share,
        test_share=test_share,
        folds=folds,
        options={
            "group": group,
            "image": image,
            "label": label,
            "split": split,
            "image_root": str(Path(image_root).resolve()) if image_root is not None else None,
        },
    )
    with only_fit_in(request.output):
        return _fit(request)


def _fit(request: Request) -> Path:
    """Begins the work of a request, or continues it, and returns the run folder."""
    clock = Clock(request.minutes)
    computer = None
    progress = read_progress(request.output, (HEAD_YAML, TRAIN_YAML))
    if progress:
        clock.add(progress.used_seconds)
        progress.clock = clock
        progress.continue_with(request.facts(), request.weights)
    with tempfile.TemporaryDirectory(prefix="ppxcls_", ignore_cleanup_errors=True) as folder:
        photographs = list_photographs(
            request.photos,
            Path(folder) / LISTS,
            shares=request.shares,
            table=request.table,
            options=request.options,
            has_folds=request.folds > 0,
        )
        if request.weights:
            log_earlier_classes(request.weights, photographs.names)
        if progress is None:
            check_photographs(photographs)
            folds = divided_photographs(request, photographs)
            warn_if_unbalanced(photographs, request.overrides)
            settings, computer = _choose_settings(request, photographs, Path(folder), clock)
            progress = FitProgress(
                request.output / FILE,
                request.facts(),
                photographs.digest,
                settings,
                folder=str(request.output.resolve()),
            )
            progress.clock = clock
            _begin(request, photographs, progress, folds)
        elif progress.photographs != photographs.digest:
            raise DataError(
                f"the photographs in {request.photos} have changed since fit wrote {request.output}: "
                "give another --output"
            )
        elif not photographs.are_listed_in(request.output / LISTS):
            check_photographs(photographs)
            _begin(request, photographs, progress, divided_photographs(request, photographs))
    try:
        return _train(request, progress, clock, computer)
    except Preempted as stop:
        raise Preempted(stop.fact, "the same command continues it") from None
    except BaseException:  # also Ctrl-C
        logger.info("fit has not finished: the same command continues it")
        raise


def _choose_settings(
    request: Request, photographs: Photographs, folder: Path, clock: Clock
) -> tuple[Settings, FeatureComputer | None]:
    """Checks the config and the weights by building everything in a folder, and chooses the settings.

    Returns:
        The settings, and the compiled network of the stages with weights, if there are such stages.

    Raises:
        ConfigError, CheckpointError: an override or the weights can't be used.
        DataError: the device can't be used.
    """
    provisional = provisional_settings(
        len(photographs.names), network=request.network, weights=request.weights, device=request.device
    )
    _try_to_build(request, provisional, folder)
    choice = None
    counts = counts_of(photographs.lists)
    if request.weights and not (request.find_lr or request.find_batch):
        choice = with_stages(
            request,
            provisional,
            folder=folder,
            counts=counts,
            seconds=clock.left - request.folds * least_fold_seconds(counts),
        )
    if choice is None and provisional.head_epochs:
        _try_to_build_head(request, provisional, folder)
    settings, computer = choice or (_settings_of_training(request, photographs), None)
    for line in settings.reasons:
        logger.info(line)
    return settings, computer


def _settings_of_training(request: Request, photographs: Photographs) -> Settings:
    """Returns the settings for the training of all layers.

    Raises:
        DataError: the device can't be used.
    """
    try:
        return choose(
            request.photos,
            photographs.lists / TRAIN_LIST,
            class_num=len(photographs.names),
            network=request.network,
            weights=request.weights,
            minutes=request.minutes / (request.folds + 1),
            device=request.device,
        )
    except DeviceError as error:
        raise DataError(str(error)) from None


def _try_to_build(request: Request, settings: Settings, folder: Path) -> None:
    """Builds the trainer in a folder, without training, so that its errors come before any result."""
    write_text(folder / TRAIN_YAML, train_yaml(settings, request.photos, folder))
    output = f"Global.output_dir={json_text(str(folder / 'output'))}"
    # Without --weights, a key that needs weights is an error.
    without = WITHOUT_WEIGHTS if settings.weights else WITHOUT_WEIGHTS[:1]
    build_and_close(config_of(request, folder / TRAIN_YAML, [*without, output]))


def _try_to_build_head(request: Request, settings: Settings, folder: Path) -> None:
    """Builds the trainer of the classifier in a folder, without training."""
    output = f"Global.output_dir={json_text(str(folder / 'output'))}"
    write_text(folder / HEAD_YAML, head_yaml(settings, folder))
    build_and_close(config_of(request, folder / HEAD_YAML, [output]))


def _begin(
    request: Request,
    photographs: Photographs,
    progress: FitProgress,
    folds: Sequence[dict[str, list[Sample]]],
) -> None:
    """Writes the lists, the YAML files and the progress, also those of the folds."""
    request.output.mkdir(parents=True, exist_ok=True)
    progress.save()
    counts = counts_of(photographs.lists)
    begin_folds(request, progress, folds=folds, photographs=photographs, counts=counts)
    photographs.copy_lists(request.output / LISTS)
    _write_yaml_files(request, progress)


def _write_yaml_files(request: Request, progress: FitProgress) -> None:
    output = request.output
    progress.write_yaml(output / TRAIN_YAML, train_yaml(progress.settings, request.photos, output))
    if progress.settings.head_epochs:
        progress.write_yaml(output / HEAD_YAML, head_yaml(progress.settings, output))


def _train(request: Request, progress: FitProgress, clock: Clock, computer: FeatureComputer | None) -> Path:
    """Takes the steps that are not done yet, and returns the run folder."""
    if FINISHED not in progress.finished_steps:
        reserve_time_of_folds(request, clock)
    run_folder = _train_once(request, progress, clock, computer)
    if request.folds and FINISHED not in progress.finished_steps:
        cross_validate(request, progress, run_folder=run_folder, train=_train_once)
    if "evaluate" not in progress.finished_steps:
        judge(run_folder, trust=request.trust)
        progress.finish("evaluate")
        logger.info(f"fit took {clock.used / 60:.1f} of {request.minutes:g} minutes")
    else:
        logger.info(f"{run_folder} is complete; give another --output to train again")
    return run_folder


def _train_once(
    request: Request, progress: FitProgress, clock: Clock, computer: FeatureComputer | None = None
) -> Path:
    """Takes the steps of one training and of its evaluation, and returns the run folder."""
    _write_yaml_files(request, progress)
    run_folder = short_path(config_of(request, request.output / TRAIN_YAML).run_folder)
    if progress.settings.feature_size:
        if not weights_file(run_folder / "best_model").exists():
            progress.finished_steps = []
            clock.add(-progress.used_seconds)
        Stages(request, progress, clock, computer).run()
    else:
        _train_by_yaml(request, progress, run_folder, clock)
        if "evaluate" not in progress.finished_steps:
            evaluate(load_config(run_folder, trust=request.trust))
    return run_folder


def _train_by_yaml(request: Request, progress: FitProgress, run_folder: Path, clock: Clock) -> None:
    """Takes the steps of the training of all layers."""
    training = Training(request, progress, clock)
    if "train" in progress.finished_steps and not weights_file(run_folder / "latest").exists():
        progress.finished_steps = [step for step in progress.finished_steps if step not in _LAST_STEPS]
    if request.find_batch and "find_batch" not in progress.finished_steps:
        progress.settings = _with_batch_size(request, progress.settings)
        _write_yaml_files(request, progress)
        progress.finish("find_batch")
    if progress.settings.head_epochs and "head" not in progress.finished_steps:
        training.run("head", request.output / HEAD_YAML)
        progress.finish("head")
    if request.find_lr and "find_lr" not in progress.finished_steps:
        progress.settings = _with_learning_rate(request, progress.settings)
        _write_yaml_files(request, progress)
        progress.finish("find_lr")
    if "train" not in progress.finished_steps:
        min_epochs = MIN_EPOCHS_WITH_WEIGHTS if request.weights else MIN_EPOCHS
        max_epochs = progress.settings.epochs if request.whole else MAX_EPOCHS
        limits = EpochLimits(min_epochs=min_epochs, max_epochs=max_epochs, end_seconds=_END_SECONDS)
        training.run("train", request.output / TRAIN_YAML, limits=limits)
        progress.finish("train")


def _with_batch_size(request: Request, settings: Settings) -> Settings:
    """Returns the settings with the smallest batch size that is about as fast as the fastest.

    For a small data set it is smaller, so that an epoch has enough steps.
    """
    # The training of head.yaml has not yet written these weights.
    overrides = [*request.overrides, *WITHOUT_WEIGHTS]
    batch_sizes = tuning.find_batch(request.output / TRAIN_YAML, overrides, trust=request.trust)
    train_count = len(ListIndex(request.output / LISTS / TRAIN_LIST))
    size = max(min(batch_sizes.smallest_fast, train_count // _MIN_STEPS_PER_EPOCH), 2)
    reason = f"batches of {size}, after trying; {batch_sizes.largest} would fit"
    return replace(settings, batch_size=size, reasons=[*settings.reasons, reason])


def _with_learning_rate(request: Request, settings: Settings) -> Settings:
    """Returns the settings with the learning rate that the range test suggests, if it suggests one."""
    rate_range = tuning.find_lr(request.output / TRAIN_YAML, request.overrides, trust=request.trust)
    if rate_range.suggestion is None:
        logger.warning(f"{rate_range}; {settings.learning_rate:g} is kept")
    return replace(
        settings,
        learning_rate=rate_range.suggestion or settings.learning_rate,
        reasons=[*settings.reasons, str(rate_range)],
    )
