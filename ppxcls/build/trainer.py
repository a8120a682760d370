"""Builds the trainer from a config: network, data, loss, optimizer, schedule, metrics, trackers, folder."""

from __future__ import annotations

import importlib.util
import uuid
from dataclasses import replace

import paddle
from paddle import nn

from ppxcls._version import __version__
from ppxcls.build.calibration import HAS_CHOSEN, calibration_source
from ppxcls.build.choices import Weights, class_names_for, class_num, network_classes, weights_for
from ppxcls.build.data import build_loader
from ppxcls.build.disk_space import report_disk_space
from ppxcls.build.evaluation import build_evaluation, check_choice
from ppxcls.build.losses import classes_for_losses, evaluation_loss, training_loss
from ppxcls.build.network import build_network, mixed_precision, static_network
from ppxcls.build.schedules import learning_rate, log_scaling, run_schedule, update_freq_of
from ppxcls.build.start import required_section, start_job, start_terminal_log
from ppxcls.checkpoints.compatibility import RunFacts
from ppxcls.checkpoints.run_folder import RunFolder
from ppxcls.checkpoints.safe_states import INSTALL_HINT
from ppxcls.config.early_stop_checks import check_early_stop
from ppxcls.config.sections import Config
from ppxcls.data.class_balance import unused_classes_warning
from ppxcls.data.label_mapping import ClassNames
from ppxcls.data.loader import Loader
from ppxcls.models.common_keys import network_blocks
from ppxcls.models.weights import weights_file
from ppxcls.system import distributed
from ppxcls.system.logs import logger
from ppxcls.train import METRICS_FILE
from ppxcls.train.ema import WeightAverage
from ppxcls.train.evaluation import Evaluation
from ppxcls.train.learner import Learner
from ppxcls.train.losses import WeightedSum
from ppxcls.train.metrics import build_metrics
from ppxcls.train.mixing import build_batch_transforms
from ppxcls.train.optimizers import OPTIMIZERS, build_optimizer
from ppxcls.train.precision import set_precision
from ppxcls.train.run import Run
from ppxcls.train.trackers import TRACKERS, JsonLines, Tracker
from ppxcls.train.trainer import Trainer
from ppxcls.train.visualdl_tracker import VisualDL


def build_trainer(config: Config) -> Trainer:
    """Builds the trainer with everything that training needs. Its method ``fit`` trains.

    Under ``paddle.distributed.launch``, this process joins the other processes.

    Raises:
        ConfigError: a section that training needs is missing, the device does not exist, or no evaluation
            counts for ``Global.early_stop``.
        DataError: a data set can't be used.
        CheckpointError: the weights or the checkpoint to start from can't be used.
        RunFolderError: another run uses the output folder.
        OSError: the output folder can't be written.
    """
    for section in ("Loss", "Optimizer", "DataLoader.Train"):
        required_section(config, section)
    check_early_stop(config)
    folder = _run_folder(config)
    start_terminal_log()
    weights = weights_for(config, "train")  # before anything is written
    start_job(config, folder)
    if weights and folder.is_checkpoint(weights_file(weights.path)):
        raise config.where("Global.pretrained_model").error(
            f"{weights.path} is in this run's output folder, whose files a new run moves aside. "
            "Resume with Global.checkpoints, or choose another output_dir."
        )
    classes = network_classes(config, "train", weights)
    network = build_network(config, "train", weights)
    loader = build_loader(config, "Train", classes)
    if warning := unused_classes_warning(loader.dataset, class_num(config)):
        logger.warning(warning)
    names = class_names_for(config, "train")
    counted_classes = classes_for_losses(config, classes, names, loader.dataset)
    evaluation = _training_evaluation(config, classes, names, loss=evaluation_loss(config, counted_classes))
    update_freq = update_freq_of(config, loader)
    facts = _facts(config, loader, update_freq=update_freq, evaluation=evaluation, weights=weights)
    # The names of the list, because ``names`` may be other words for the same classes.
    facts = replace(facts, class_names=list(classes.names) if classes else names)
    loss = training_loss(config, counted_classes)
    learner = _build_learner(config, network, loss, facts)
    if distributed.rank() == 0:
        report_disk_space(config, network, folder.path)
    # The ranks of several nodes may have other absolute paths.
    distributed.require_same(replace(facts, config=config.to_yaml(is_run=True)).of_all_ranks())
    is_own = config.untrusted_folder is None
    run = Run(folder, facts, _trackers(config), names, config.Global.hang_timeout, is_own=is_own)
    times = run_schedule(config, update_freq)
    trainer = Trainer(learner, loader, run=run, run_schedule=times, evaluation=evaluation)
    if path := config.Global.checkpoints:
        trainer.resume(path, allow_changes=config.Global.allow_changes)
    distributed.require_same({"checkpoint to resume from": str(trainer.progress)})
    return trainer


def _run_folder(config: Config) -> RunFolder:
    section = config.Global
    is_safe = section.weights_format == "safetensors"
    if is_safe and importlib.util.find_spec("safetensors") is None:
        raise config.where("Global.weights_format").error(
            f"safetensors needs the package safetensors, {INSTALL_HINT}"
        )
    return RunFolder(
        config.run_folder, section.keep_last, safe=is_safe, best_with_optimizer=section.best_model_optimizer
    )


def _build_learner(config: Config, network: nn.Layer, loss: WeightedSum, facts: RunFacts) -> Learner:
    optimizer_block = required_section(config, "Optimizer")
    samples_per_step = facts.global_batch * facts.update_freq
    schedule = learning_rate(config, facts.steps_per_epoch, samples_per_step)
    log_scaling(config, schedule, samples_per_step)
    optimizer, scheduler = build_optimizer(
        optimizer_block,
        dict(network.named_parameters()),
        lr_at=schedule,
        blocks=list(network_blocks(network)),
    )
    network, optimizer, precision = set_precision(
        mixed_precision(config.AMP),
        network,
        optimizer,
        takes_float32_gradients=OPTIMIZERS.fact(optimizer_block.name, "takes_float32_gradients"),
    )
    average = None
    if config.EMA and config.EMA.use_ema:
        average = WeightAverage(network, config.EMA.decay, warmup=config.EMA.warmup, optimizer=optimizer)
    blocks = config.Metric.Train if config.Metric else None
    metrics = build_metrics(blocks, config.where("Metric.Train"), class_num=class_num(config), training=True)
    mixing_blocks = required_section(config, "DataLoader.Train").dataset.get("batch_transform_ops")
    mixing = build_batch_transforms(mixing_blocks, class_num(config))
    if config.Global.to_static:
        network = static_network(network, with_cinn=config.Global.to_static == "CINN")
    return Learner(
        network,
        loss,
        optimizer=optimizer,
        scheduler=scheduler,
        schedule=schedule,
        metrics=metrics,
        precision=precision,
        average=average,
        mixing=mixing,
        comm_buffer_size=config.Global.comm_buffer_size,
    )


def _training_evaluation(
    config: Config, classes: ClassNames | None, names: list[str], *, loss: WeightedSum
) -> Evaluation | None:
    """Builds the evaluation between epochs.

    Returns:
        The evaluation; None without ``DataLoader.Eval`` or ``Global.eval_during_train``.
    """
    first, last = config.Global.start_eval_epoch, config.Global.epochs
    if first > last:
        logger.warning(f"Global.start_eval_epoch {first} is after the last epoch: nothing is evaluated")
    if not (config.Global.eval_during_train and config.DataLoader and config.DataLoader.Eval):
        return None
    source = None
    if config.Global.calibrate:
        source = calibration_source(config.DataLoader.Eval.dataset, HAS_CHOSEN)
    evaluation = build_evaluation(config, classes, names=names, loss=loss, calibration_source=source)
    check_choice(config, evaluation)
    return evaluation


def _trackers(config: Config) -> list[Tracker]:
    """Builds the trackers. The list is empty on every rank except 0."""
    if distributed.rank() != 0:
        return []
    folder = config.run_folder
    trackers: list[Tracker] = [JsonLines(folder / METRICS_FILE)]
    if config.Global.use_visualdl:
        try:
            trackers.append(VisualDL(folder))
        except ValueError as error:
            raise config.where("Global.use_visualdl").error(
                f"expected false, received true: {error}"
            ) from None
    return trackers + [TRACKERS.build(block, folder=folder) for block in config.Global.trackers or []]


def _facts(
    config: Config,
    loader: Loader,
    *,
    update_freq: int,
    evaluation: Evaluation | None,
    weights: Weights | None,
) -> RunFacts:
    evaluation_facts = evaluation.facts if evaluation else {}
    return RunFacts(
        ppxcls=__version__,
        paddle=paddle.__version__,
        config=config.to_yaml(is_run=True, has_absolute_paths=True),
        train_list=loader.dataset.labelled_digest(),
        **evaluation_facts,
        samples=len(loader.dataset),
        global_batch=loader.sampler.batch_size * loader.sampler.world_size,
        update_freq=update_freq,
        steps_per_epoch=-(-len(loader) // update_freq),
        world_size=distributed.world_size(),
        run=uuid.uuid4().hex,
        started_from=str(weights) if weights else None,
    )
