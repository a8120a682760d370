"""From a config to the objects that train and evaluate. Only this module, and ``deploy/build.py`` for ``Infer``, read a config."""

from __future__ import annotations

import importlib.util
import math
import uuid
from dataclasses import fields, replace
from typing import Any

import paddle
from paddle import nn
from tqdm import tqdm

from ppxcls import __version__
from ppxcls.checkpoints.compatibility import RunFacts
from ppxcls.checkpoints.run_folder import RunFolder
from ppxcls.checkpoints.safe_states import INSTALL
from ppxcls.config.sections import Config, DatasetSection
from ppxcls.data.bad_samples import BadSamples
from ppxcls.data.check import DataReport, check_lists
from ppxcls.data.dataset import DATASETS, Dataset
from ppxcls.data.loader import Loader
from ppxcls.data.sampler import SAMPLERS
from ppxcls.models.weights import weights_file
from ppxcls.system import distributed
from ppxcls.system.logs import logger, set_up_logging
from ppxcls.system.watchdog import Watchdog
from ppxcls.train import tensorboard_tracker, visualdl_tracker  # noqa: F401  they register themselves
from ppxcls.train.ema import WeightAverage
from ppxcls.train.evaluation import Evaluation
from ppxcls.train.learner import Learner
from ppxcls.train.losses import CELoss, WeightedSum, build_loss
from ppxcls.train.lr_schedules import build_lr_schedule
from ppxcls.train.metrics import Metric, TopkAcc, build_metrics
from ppxcls.train.mixing import build_batch_transforms
from ppxcls.train.network import build_network, static_network
from ppxcls.train.optimizers import build_optimizer
from ppxcls.train.precision import evaluation_autocast, set_evaluation_precision, set_precision
from ppxcls.train.predictions import OTHER_PREDICTIONS, PREDICTIONS, write_predictions
from ppxcls.train.room import report_room
from ppxcls.train.run import Run
from ppxcls.train.run_log import format_results
from ppxcls.train.trackers import TRACKERS, JsonLines, Tracker
from ppxcls.train.trained_model import (
    EVALUATION,
    Weights,
    chance_warning,
    class_names_for,
    class_num,
    describe,
    unused_classes_warning,
    weights_for,
    write_results,
)
from ppxcls.train.trainer import Plan, Trainer


def build_trainer(config: Config) -> Trainer:
    """Everything that training needs; ``.fit()`` trains. Under ``paddle.distributed.launch`` it joins the other processes.

    Raises:
        ConfigError: a section that training needs is missing, or the device is not there.
        DataError: a data set can't be used.
        CheckpointError: the weights or the checkpoint to start from can't be used.
        RunFolderError: another run has the output folder.
        OSError: the output folder can't be written.
    """
    for section in ("Loss", "Optimizer", "DataLoader.Train"):
        _required(config, section)
    is_safe = config.Global.weights_format == "safetensors"
    if is_safe and importlib.util.find_spec("safetensors") is None:
        raise config.where("Global.weights_format").error(f"safetensors needs the package of that name, {INSTALL}")
    folder = RunFolder(config.run_folder, config.Global.keep_last, is_safe, config.Global.best_model_optimizer)
    start(config, folder)
    weights = weights_for(config, "train")
    if weights and folder.is_checkpoint(weights_file(weights.path)):
        moved = "a new run moves its files aside: go on from them with Global.checkpoints, or choose another output_dir"
        raise config.where("Global.pretrained_model").error(f"{weights.path} lies in the run's own folder, and {moved}")
    network = build_network(config, "train", weights)
    loader = build_loader(config, "Train")
    if warning := unused_classes_warning(loader.dataset, class_num(config)):
        logger.warning(warning)
    if config.Global.start_eval_epoch > config.Global.epochs:
        logger.warning(f"Global.start_eval_epoch {config.Global.start_eval_epoch} is after the last epoch: nothing is evaluated")
    evaluates = config.Global.eval_during_train and config.DataLoader and config.DataLoader.Eval
    evaluation = _build_evaluation(config) if evaluates else None
    update_freq = _update_freq(config, loader)
    facts = _facts(config, loader, update_freq, evaluation, weights)
    learner = _build_learner(config, network, facts.steps_per_epoch, facts.global_batch * update_freq)
    if distributed.rank() == 0:
        report_room(config, network, folder.path)
    distributed.require_same(facts.of_all_ranks())
    run = Run(folder, facts, _trackers(config), class_names_for(config, "train"), config.Global.hang_timeout)
    plan = replace(Plan(**{f.name: getattr(config.Global, f.name) for f in fields(Plan)}), update_freq=update_freq)
    trainer = Trainer(learner, loader, run, plan, evaluation)
    if path := config.Global.checkpoints:
        trainer.resume(path, config.Global.allow_changes)
    distributed.require_same({"checkpoint to resume from": str(trainer.progress)})
    return trainer


def evaluate(config: Config) -> dict[str, float]:
    """Evaluate the weights of ``weights_for`` on ``DataLoader.Eval``, and write the result to the run's folder.

    Returns:
        Metrics as shares, losses as means over samples, and ``num_samples``.

    Raises:
        ConfigError, DataError, CheckpointError: as ``build_trainer``.
    """
    _required(config, "DataLoader.Eval")
    start(config)
    weights = weights_for(config, "evaluate")
    assert weights
    names = class_names_for(config, "evaluate")
    logger.info(describe(config, weights, config.evaluation_transforms, names))
    network = set_evaluation_precision(config.AMP, build_network(config, "evaluate", weights))
    if config.Global.to_static:
        network = static_network(network)
    evaluation = _build_evaluation(config)
    loader = evaluation.loader
    distributed.require_same({"evaluation list": loader.dataset.digest()})
    with Watchdog(config.Global.hang_timeout, distributed.rank(), distributed.world_size(), loader.files_being_read) as watchdog:
        results = evaluation(network, watchdog.batches(loader.epoch(), "the evaluation"))
    if distributed.rank() == 0:
        if not weights.is_own and (warning := chance_warning(results, class_num(config))):
            logger.warning(warning)
        file = write_results(config, weights, results)
        assert evaluation.predictions
        table = PREDICTIONS if file.name == EVALUATION else OTHER_PREDICTIONS
        write_predictions(file.with_name(table), evaluation.predictions, loader.dataset, names)
        logger.info(f"[Eval][Avg]{format_results(results)} (written to {file})")
    return results


def check_data(config: Config, progress_bar: bool = True) -> DataReport:
    """Decode every sample of the config's data sets and report what is wrong. Raises ConfigError and DataError."""
    modes = [mode for mode in ("Train", "Eval") if config.DataLoader and getattr(config.DataLoader, mode)]
    if not modes:
        raise config.where("DataLoader").error("the section is missing")
    datasets = [build_dataset(config, mode, patience=0) for mode in modes]
    with tqdm(total=sum(map(len, datasets)), unit="file", disable=None if progress_bar else True, leave=False) as bar:
        return check_lists(datasets, class_num(config), progress=bar.update)


def _build_learner(config: Config, network: nn.Layer, steps_per_epoch: int, samples_per_step: int) -> Learner:
    mixing = _required(config, "DataLoader.Train").dataset.get("batch_transform_ops")
    loss = build_loss(_required(config, "Loss").Train, config.where("Loss.Train"), soft_labels=bool(mixing))
    block = _required(config, "Optimizer")
    schedule = build_lr_schedule(block.lr, config.Global.epochs, steps_per_epoch, factor=_lr_factor(config, samples_per_step))
    optimizer, scheduler = build_optimizer(block, dict(network.named_parameters()), schedule)
    network, optimizer, precision = set_precision(config.AMP, network, optimizer)
    average = WeightAverage(network, config.EMA.decay, config.EMA.warmup) if config.EMA and config.EMA.use_ema else None
    blocks = config.Metric.Train if config.Metric else None
    metrics = build_metrics(blocks, config.where("Metric.Train"), class_num(config), training=True)
    mixes = build_batch_transforms(mixing, class_num(config))
    if config.Global.to_static:
        network = static_network(network)
    buffer = config.Global.comm_buffer_size
    return Learner(network, loss, optimizer, scheduler, schedule, metrics, precision, average, mixes, buffer)


def _update_freq(config: Config, loader: Loader) -> int:
    """Micro-batches per optimizer step, from ``Global.samples_per_step`` if it is given."""
    wanted, own = config.Global.samples_per_step, config.Global.update_freq
    if wanted is None:
        return own
    together = loader.sampler.batch_size * loader.sampler.world_size
    where = config.where("Global.samples_per_step")
    if wanted % together:
        parts = f"{loader.sampler.world_size} processes with batches of {loader.sampler.batch_size}"
        raise where.error(f"expected a multiple of {together} ({parts}), received {wanted}")
    if own not in (1, wanted // together):
        raise where.error(f"{wanted} samples are {wanted // together} micro-batches, and Global.update_freq says {own}; give one")
    return wanted // together


def _lr_factor(config: Config, samples_per_step: int) -> float:
    """By how much ``Global.scale_lr`` multiplies the learning rate."""
    rule, base = config.Global.scale_lr, config.Global.base_batch_size
    if rule is None:
        return 1.0
    if base is None:
        raise config.where("Global.base_batch_size").error("expected the samples per step that the learning rate was chosen for")
    share = samples_per_step / base
    factor = share if rule == "linear" else math.sqrt(share)
    logger.info(f"the learning rate is multiplied by {factor:g}: {samples_per_step} samples per step, chosen for {base} ({rule})")
    return factor


def _build_evaluation(config: Config) -> Evaluation:
    loss = WeightedSum([("CELoss", 1.0, CELoss())])
    metrics: list[Metric] = [TopkAcc([1, 5])]
    if config.Loss and config.Loss.Eval:
        loss = build_loss(config.Loss.Eval, config.where("Loss.Eval"), soft_labels=False)
    if config.Metric:
        metrics = build_metrics(config.Metric.Eval, config.where("Metric.Eval"), class_num(config))
    return Evaluation(build_loader(config, "Eval"), loss, metrics, evaluation_autocast(config.AMP))


def _trackers(config: Config) -> list[Tracker]:
    """Those of the first process; the others have none."""
    if distributed.rank() != 0:
        return []
    folder = config.run_folder
    trackers: list[Tracker] = [JsonLines(folder / "metrics.jsonl")]
    if config.Global.use_visualdl:
        try:
            trackers.append(visualdl_tracker.VisualDL(folder))
        except ValueError as error:
            raise config.where("Global.use_visualdl").error(f"expected false, received true: {error}") from None
    return trackers + [TRACKERS.build(block, folder=folder) for block in config.Global.trackers or []]


def _facts(config: Config, loader: Loader, update_freq: int, evaluation: Evaluation | None, weights: Weights | None) -> RunFacts:
    return RunFacts(
        ppxcls=__version__,
        paddle=paddle.__version__,
        config=config.to_yaml(is_run=True),
        train_list=loader.dataset.digest(),
        eval_list=evaluation.loader.dataset.digest() if evaluation else "",
        samples=len(loader.dataset),
        global_batch=loader.sampler.batch_size * loader.sampler.world_size,
        update_freq=update_freq,
        steps_per_epoch=-(-len(loader) // update_freq),
        world_size=distributed.world_size(),
        run=uuid.uuid4().hex,
        started_from=str(weights) if weights else None,
    )


def _required(config: Config, path: str) -> Any:
    value: Any = config
    for key in path.split("."):
        value = getattr(value, key)
        if value is None:
            raise config.where(path).error("the section is missing")
    return value


def start(config: Config, folder: RunFolder | None = None) -> None:
    """Select the device, join the other processes under a launcher, lock the run's folder if there is one, begin the log.

    Raises:
        ConfigError: the device is not there.
        JobError: the other processes can't be reached.
        RunFolderError: another run has the folder.
        OSError: the log can't be written.
    """
    start_processes(config)
    if folder and distributed.rank() == 0:
        folder.lock()
    set_up_logging(distributed.rank(), config.run_folder / "train.log")
    if config.Global.deterministic:
        logger.info(distributed.determinism())
    paddle.seed(config.Global.seed or 0)  # the initial weights


def start_processes(config: Config) -> None:
    """Select the device and, under a launcher, join the other processes.

    Raises:
        ConfigError: the device is not there.
        JobError: the other processes can't be reached.
    """
    try:
        wishes = config.Global
        distributed.start(wishes.device, wishes.deterministic, wishes.hang_timeout, wishes.cudnn_search)
    except distributed.DeviceError as error:
        raise config.where("Global.device").error(str(error)) from None


def build_dataset(config: Config, mode: str, patience: float | None = None) -> Dataset:
    """The data set of ``DataLoader.Train`` or ``DataLoader.Eval``. Raises ConfigError and DataError, as ``build_trainer``."""
    section: DatasetSection = getattr(config.DataLoader, mode)
    seconds = section.loader.read_patience if patience is None else patience
    return DATASETS.build(section.dataset, class_num=class_num(config), patience=seconds)


def build_loader(config: Config, mode: str) -> Loader:
    """The loader of ``DataLoader.Train`` or ``DataLoader.Eval``, for this process's part.

    If ``Global.check_data`` is set, it looks for every file first.

    Raises:
        ConfigError, DataError: as ``build_trainer``.
    """
    section: DatasetSection = getattr(config.DataLoader, mode)
    if mode == "Eval" and section.sampler.get("drop_last"):
        raise config.where("DataLoader.Eval.sampler.drop_last").error("expected false: every sample is evaluated exactly once")
    dataset = build_dataset(config, mode)
    if config.Global.check_data:
        dataset.check_files()
    process = {"seed": config.Global.seed or 0, "rank": distributed.rank(), "world_size": distributed.world_size()}
    sampler = SAMPLERS.build(section.sampler, num_samples=len(dataset), labels=dataset.labels, **process)
    bad_samples = None
    if config.Global.on_bad_image == "skip":
        bad_samples = BadSamples(config.run_folder / "bad_samples.txt", dataset, config.Global.max_bad_share)
    return Loader(dataset, sampler, section.loader.num_workers, bad_samples, config.Global.hang_timeout)
