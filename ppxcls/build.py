"""From a config to the objects that train and evaluate. Only this module, and ``deploy/build.py`` for ``Infer``, read a config."""

from __future__ import annotations

import uuid
from dataclasses import fields
from typing import Any

import paddle
from paddle import nn
from tqdm import tqdm

from ppxcls import __version__
from ppxcls.checkpoints.compatibility import RunFacts
from ppxcls.checkpoints.run_folder import RunFolder
from ppxcls.config.checks import Where
from ppxcls.config.sections import Config, DatasetSection
from ppxcls.data.bad_samples import BadSamples
from ppxcls.data.check import DataReport, check_lists
from ppxcls.data.dataset import DATASETS, Dataset
from ppxcls.data.loader import Loader
from ppxcls.data.sampler import SAMPLERS
from ppxcls.models.common_keys import MODELS, channels_last, prepare_training
from ppxcls.models.preprocessing import differences
from ppxcls.models.weights import load_weights, weights_file
from ppxcls.system import distributed
from ppxcls.system.logs import logger, set_up_logging
from ppxcls.system.watchdog import Watchdog
from ppxcls.train.ema import WeightAverage
from ppxcls.train.evaluation import Evaluation
from ppxcls.train.learner import Learner
from ppxcls.train.losses import CELoss, WeightedSum, build_loss
from ppxcls.train.lr_schedules import build_lr_schedule
from ppxcls.train.metrics import Metric, TopkAcc, build_metrics
from ppxcls.train.mixing import build_batch_transforms
from ppxcls.train.optimizers import build_optimizer
from ppxcls.train.precision import evaluation_autocast, set_evaluation_precision, set_precision
from ppxcls.train.run import Run
from ppxcls.train.run_log import format_results
from ppxcls.train.trackers import TRACKERS, JsonLines, Tracker, VisualDL
from ppxcls.train.trained_model import (
    Purpose,
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


def list_models() -> list[str]:
    """Names of all networks."""
    return MODELS.names()


def build_model(name: str, **arguments: Any) -> nn.Layer:
    """A network with fresh weights, or with those of ``pretrained``.

    Args:
        name: one of ``list_models()``.
        arguments: the network's own, such as ``class_num=37``, and the common ones, such as ``freeze``.

    Raises:
        ConfigError: unknown name or argument, or an argument that this network or device can't follow.
        CheckpointError: the weights can't be used.
    """
    block = MODELS.block({"name": name, **arguments}, Where(("Arch",)))
    model, keys = MODELS.build(block), MODELS.common_keys(block)
    if keys.pretrained:
        load_weights(model, keys.pretrained, keep_trunk=True)
    if keys.data_format == "NHWC":
        channels_last(model)
    prepare_training(model, keys, block.where)
    return model


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
    folder = RunFolder(config.run_folder, config.Global.keep_last)
    start(config, folder)
    weights = weights_for(config, "train")
    network = build_network(config, "train", weights)
    loader = build_loader(config, "Train")
    if warning := unused_classes_warning(loader.dataset, class_num(config)):
        logger.warning(warning)
    evaluates = config.Global.eval_during_train and config.DataLoader and config.DataLoader.Eval
    evaluation = _build_evaluation(config) if evaluates else None
    steps_per_epoch = -(-len(loader) // config.Global.update_freq)
    learner = _build_learner(config, network, steps_per_epoch)
    facts = _facts(config, loader, steps_per_epoch, evaluation, weights)
    run = Run(folder, facts, _trackers(config), class_names_for(config), config.Global.hang_timeout)
    plan = Plan(**{f.name: getattr(config.Global, f.name) for f in fields(Plan)})
    trainer = Trainer(learner, loader, run, plan, evaluation)
    path = config.Global.checkpoints
    if path:
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
    dataset = _required(config, "DataLoader.Eval").dataset
    start(config)
    weights = weights_for(config, "evaluate")
    assert weights
    logger.info(describe(config, weights, dataset.get("transform_ops") or [], class_names_for(config)))
    network = set_evaluation_precision(config.AMP, build_network(config, "evaluate", weights))
    evaluation = _build_evaluation(config)
    loader = evaluation.loader
    distributed.require_same({"evaluation list": loader.dataset.digest()})
    with Watchdog(config.Global.hang_timeout, distributed.rank(), distributed.world_size(), loader.files_being_read) as watchdog:
        results = evaluation(network, watchdog.batches(loader.epoch(), "the evaluation"))
    if distributed.rank() == 0:
        if not weights.is_own and (warning := chance_warning(results, class_num(config))):
            logger.warning(warning)
        file = write_results(config, weights, results)
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


def build_network(config: Config, purpose: Purpose, weights: Weights | None) -> nn.Layer:
    """The network of a config with its weights.

    To train, the classifier may have another size than the weights'. Exported networks compute on [N, C, H, W], whatever
    ``data_format`` says.

    Raises:
        ConfigError: as ``prepare_training``.
        CheckpointError: the weights can't be used.
    """
    keys = MODELS.common_keys(config.Arch)
    network = MODELS.build(config.Arch)
    if weights:
        left = load_weights(network, weights.path, purpose == "train", weights.average)
        logger.info(f"Loaded {weights}")
        if left:
            logger.warning(f"the classifier starts anew, because its size differs: {'; '.join(left)}")
        _compare_with_published(config, weights)
    if keys.data_format == "NHWC" and purpose != "export":
        channels_last(network)
    if purpose == "train":
        prepare_training(network, keys, config.where("Arch"))
    return network


def _compare_with_published(config: Config, weights: Weights) -> None:
    published = MODELS.published(config.Arch.name)
    is_checkpoint = weights_file(weights.path).with_suffix(".json").exists()
    if published and not is_checkpoint and config.DataLoader and config.DataLoader.Eval:
        for line in differences(published, config.DataLoader.Eval.dataset.get("transform_ops") or []):
            logger.warning(f"evaluation transforms against {weights.path}: {line}")


def _build_learner(config: Config, network: nn.Layer, steps_per_epoch: int) -> Learner:
    mixing = _required(config, "DataLoader.Train").dataset.get("batch_transform_ops")
    loss = build_loss(_required(config, "Loss").Train, config.where("Loss.Train"), soft_labels=bool(mixing))
    block = _required(config, "Optimizer")
    schedule = build_lr_schedule(block.lr, config.Global.epochs, steps_per_epoch)
    optimizer, scheduler = build_optimizer(block, dict(network.named_parameters()), schedule)
    network, optimizer, precision = set_precision(config.AMP, network, optimizer)
    average = WeightAverage(network, config.EMA.decay, config.EMA.warmup) if config.EMA and config.EMA.use_ema else None
    blocks = config.Metric.Train if config.Metric else None
    metrics = build_metrics(blocks, config.where("Metric.Train"), class_num(config), training=True)
    mixes = build_batch_transforms(mixing, class_num(config))
    return Learner(network, loss, optimizer, scheduler, schedule, metrics, precision, average, mixes)


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
            trackers.append(VisualDL(folder))
        except ValueError as error:
            raise config.where("Global.use_visualdl").error(f"expected false, received true: {error}") from None
    return trackers + [TRACKERS.build(block, folder=folder) for block in config.Global.trackers or []]


def _facts(
    config: Config, loader: Loader, steps_per_epoch: int, evaluation: Evaluation | None, weights: Weights | None
) -> RunFacts:
    facts = RunFacts(
        ppxcls=__version__,
        paddle=paddle.__version__,
        config=config.to_yaml(is_run=True),
        train_list=loader.dataset.digest(),
        eval_list=evaluation.loader.dataset.digest() if evaluation else "",
        samples=len(loader.dataset),
        global_batch=loader.sampler.batch_size * loader.sampler.world_size,
        update_freq=config.Global.update_freq,
        steps_per_epoch=steps_per_epoch,
        world_size=distributed.world_size(),
        run=uuid.uuid4().hex,
        started_from=str(weights) if weights else None,
    )
    distributed.require_same(facts.of_all_ranks())
    return facts


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
    set_up_logging(distributed.rank(), (folder.path if folder else config.trained_folder) / "train.log")
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
        distributed.start(config.Global.device, config.Global.deterministic, config.Global.hang_timeout)
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
