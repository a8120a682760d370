"""From a config to the objects that train and evaluate; the only module that reads one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import paddle
from paddle import nn
from tqdm import tqdm

from ppxcls import __version__
from ppxcls.checkpoints.compatibility import RunFacts
from ppxcls.checkpoints.run_folder import RunFolder
from ppxcls.config.checks import Where
from ppxcls.config.load import Config, DatasetSection
from ppxcls.config.registry import DATASETS, MODELS, SAMPLERS, split_block
from ppxcls.data.bad_samples import BadSamples
from ppxcls.data.check import DataReport, check_lists
from ppxcls.data.dataset import ImageNetDataset
from ppxcls.data.loader import Loader
from ppxcls.models.common_keys import channels_last, prepare_training
from ppxcls.models.preprocessing import disagreements
from ppxcls.models.weights import load_weights, weights_file
from ppxcls.system import distributed
from ppxcls.system.logs import Curves, logger, set_up_logging
from ppxcls.system.watchdog import Watchdog
from ppxcls.train.ema import WeightAverage
from ppxcls.train.evaluation import evaluate_model
from ppxcls.train.losses import build_loss
from ppxcls.train.lr_schedules import build_lr_schedule
from ppxcls.train.metrics import build_metrics
from ppxcls.train.mixing import build_batch_transforms
from ppxcls.train.optimizers import build_optimizer
from ppxcls.train.precision import autocast, set_precision
from ppxcls.train.trainer import Plan, Trainer, Watched


def list_models() -> list[str]:
    """Names of all networks."""
    return MODELS.names()


def build_model(name: str, **arguments: Any) -> nn.Layer:
    """A network with fresh weights.

    Args:
        name: one of ``list_models()``.
        arguments: the network's own, such as ``class_num=37``.

    Raises:
        ConfigError: unknown name or argument.
    """
    model: nn.Layer = MODELS.build(name, arguments, Where(("Arch",)))
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
    loss = _required(config, "Loss")
    spec = _required(config, "Optimizer")
    train = _required(config, "DataLoader.Train")
    folder = RunFolder(config.run_folder, config.Global.keep_last)
    _start(config, folder)
    keys = MODELS.build_common(config.Arch, config.where("Arch"))
    model = _build_network(config, config.Global.pretrained_model or keys.pretrained, keep_trunk=True)
    prepare_training(model, keys, config.where("Arch"))
    loader = build_loader(config, "Train")
    evaluates = config.Global.eval_during_train and config.DataLoader and config.DataLoader.Eval
    eval_loader = build_loader(config, "Eval") if evaluates else None
    where = config.where("Optimizer")
    steps_per_epoch = -(-len(loader) // config.Global.update_freq)
    lr_at = build_lr_schedule(spec["lr"], config.Global.epochs, steps_per_epoch, where / "lr")
    optimizer, scheduler = build_optimizer(spec, dict(model.named_parameters()), lr_at, where)
    model, optimizer, precision = set_precision(config.AMP, model, optimizer)
    if keys.use_sync_bn:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    ema = WeightAverage(model, config.EMA.decay, config.EMA.warmup) if config.EMA and config.EMA.use_ema else None
    facts = _facts(config, loader, steps_per_epoch, eval_loader.dataset.index.digest() if eval_loader else "")
    trainer = Trainer(
        model=paddle.DataParallel(model) if distributed.world_size() > 1 else model,
        loss_fn=build_loss(loss.Train, config.where("Loss.Train"), bool(train.dataset.get("batch_transform_ops"))),
        metrics=build_metrics(
            config.Metric.Train if config.Metric else None, config.where("Metric.Train"), class_num(config), training=True
        ),
        optimizer=optimizer,
        lr_scheduler=scheduler,
        loader=loader,
        plan=Plan(**{f.name: getattr(config.Global, f.name) for f in fields(Plan)}),
        folder=folder,
        facts=facts,
        precision=precision,
        batch_transforms=build_batch_transforms(
            train.dataset.get("batch_transform_ops"),
            class_num(config),
            config.where("DataLoader.Train.dataset.batch_transform_ops"),
        ),
        evaluate=_build_evaluation(config, model, eval_loader) if eval_loader else None,
        ema=ema,
        curves=_curves(config, folder.path),
        hang_timeout=config.Global.hang_timeout,
    )
    _resume(config, trainer)
    if distributed.rank() == 0:
        (folder.path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    return trainer


def _resume(config: Config, trainer: Trainer) -> None:
    """Go on from ``Global.checkpoints``, where it says so; all ranks from the same step."""
    path: Path | str | None = config.Global.checkpoints
    if path == "auto":
        path = trainer.folder.newest_whole()
        if path is None:
            logger.info(f"no checkpoint in {trainer.folder.path}: the run starts afresh")
    if path:
        trainer.resume(path, config.Global.allow_changes)
    elif distributed.rank() == 0 and (bad_samples := trainer.loader.bad_samples):
        bad_samples.start()
    distributed.require_same({"checkpoint to resume from": str(trainer.progress)})


def _facts(config: Config, loader: Loader, steps_per_epoch: int, eval_list: str) -> RunFacts:
    facts = RunFacts(
        ppxcls=__version__,
        paddle=paddle.__version__,
        config=config.to_yaml(),
        train_list=loader.dataset.index.digest(),
        eval_list=eval_list,
        samples=len(loader.dataset),
        global_batch=loader.sampler.batch_size * loader.sampler.world_size,
        update_freq=config.Global.update_freq,
        steps_per_epoch=steps_per_epoch,
        world_size=distributed.world_size(),
    )
    distributed.require_same(facts.of_all_ranks())
    return facts


def evaluate(config: Config) -> dict[str, float]:
    """Evaluate the weights that ``Global.pretrained_model`` names, or else the run's ``best_model``, on ``DataLoader.Eval``.

    Returns:
        Metrics as shares, losses as means over samples, and ``num_samples``.

    Raises:
        ConfigError, DataError, CheckpointError: as ``build_trainer``.
    """
    weights = config.Global.pretrained_model or _best_model(config)
    _required(config, "DataLoader.Eval")
    _start(config)
    model = _build_network(config, weights, keep_trunk=False)
    if config.AMP and config.AMP.use_amp and config.AMP.level == "O2":
        model = paddle.amp.decorate(models=model, level="O2", save_dtype="float32")
    loader = build_loader(config, "Eval")
    distributed.require_same({"evaluation list": loader.dataset.index.digest()})
    with Watchdog(config.Global.hang_timeout, distributed.rank(), distributed.world_size(), loader.files_being_read) as watchdog:
        return _build_evaluation(config, model, loader)(lambda batches: watchdog.batches(batches, "the evaluation"))


def _required(config: Config, path: str) -> Any:
    value: Any = config
    for key in path.split("."):
        value = getattr(value, key)
        if value is None:
            raise config.where(path).error("the section is missing")
    return value


def _start(config: Config, folder: RunFolder | None = None) -> None:
    """Device, processes, the run's folder where it is to be locked, log."""
    start_processes(config)
    if folder and distributed.rank() == 0:
        folder.lock()
    set_up_logging(distributed.rank(), config.run_folder / "train.log")
    if config.Global.deterministic:
        logger.info(distributed.determinism())
    paddle.seed(config.Global.seed or 0)  # the initial weights


def _best_model(config: Config) -> str:
    """The weights that training with this config leaves to be evaluated."""
    prefix = config.run_folder / "best_model"
    if not weights_file(prefix).exists():
        message = f"expected the weights to evaluate, received null, and there is no {weights_file(prefix)}"
        raise config.where("Global.pretrained_model").error(message)
    return str(prefix)


def _build_network(config: Config, weights: str | None, keep_trunk: bool) -> nn.Layer:
    """The network; ``keep_trunk`` is of training, evaluation takes the average of the weights where the config has one."""
    model: nn.Layer = MODELS.build(*split_block(config.Arch), config.where("Arch"))
    if MODELS.build_common(config.Arch, config.where("Arch")).data_format == "NHWC":
        channels_last(model)
    if weights:
        left = load_weights(model, weights, keep_trunk, average=config.EMA is not None and not keep_trunk)
        logger.info(f"Loaded {weights}")
        if config.DataLoader and config.DataLoader.Eval and not weights_file(weights).with_suffix(".json").exists():
            for line in disagreements(config.Arch["name"], config.DataLoader.Eval.dataset.get("transform_ops") or []):
                logger.warning(f"evaluation transforms against {weights}: {line}")
        if left:
            logger.warning(f"the classifier starts anew, since its size differs: {'; '.join(left)}")
    return model


def _build_evaluation(config: Config, model: nn.Layer, loader: Loader) -> Callable[[Watched], dict[str, float]]:
    """A function that evaluates the model on the loader's data."""
    losses = (config.Loss and config.Loss.Eval) or [{"CELoss": {}}]
    amp = config.AMP if config.AMP and config.AMP.use_amp else None
    if amp and amp.level == "O1" and not amp.use_fp16_test:
        amp = None  # O2's weights are float16: they can only be evaluated as they are trained
    return partial(
        evaluate_model,
        model,
        loader,
        build_loss(losses, config.where("Loss.Eval"), soft_labels=False),
        build_metrics(
            config.Metric.Eval if config.Metric else [{"TopkAcc": {"topk": [1, 5]}}], config.where("Metric.Eval"), class_num(config)
        ),
        autocast(amp),
    )


def _curves(config: Config, output_dir: Path) -> Curves:
    try:
        return Curves(output_dir / "vdl" if config.Global.use_visualdl and distributed.rank() == 0 else None)
    except ImportError as error:
        raise config.where("Global.use_visualdl").error(f"expected false, received true: {error}") from None


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


def class_num(config: Config) -> int:
    """The number of classes of the config's network: from ``Arch``, or the network's own default."""
    default = inspect.signature(MODELS.get(config.Arch["name"], config.where("Arch"))).parameters["class_num"].default
    return int(config.Arch.get("class_num", default))


def build_dataset(config: Config, mode: str) -> ImageNetDataset:
    """The data set of ``DataLoader.Train`` or ``DataLoader.Eval``.

    Raises:
        ConfigError, DataError: as ``build_trainer``.
    """
    section: DatasetSection = getattr(config.DataLoader, mode)
    name, arguments = split_block(section.dataset)
    known = {"class_num": class_num(config), "patience": section.loader.read_patience}
    dataset: ImageNetDataset = DATASETS.build(name, arguments, config.where(f"DataLoader.{mode}.dataset"), **known)
    return dataset


def build_loader(config: Config, mode: str) -> Loader:
    """The loader of ``DataLoader.Train`` or ``DataLoader.Eval``, for this process's part.

    Where ``Global.check_data`` says so, it looks for every file first.

    Raises:
        ConfigError, DataError: as ``build_trainer``.
    """
    section: DatasetSection = getattr(config.DataLoader, mode)
    where = config.where(f"DataLoader.{mode}")
    if mode == "Eval" and section.sampler.get("drop_last"):
        raise (where / "sampler" / "drop_last").error("expected false: every sample is evaluated exactly once")
    dataset = build_dataset(config, mode)
    if config.Global.check_data:
        dataset.check_files()
    sampler = SAMPLERS.build(
        *split_block(section.sampler),
        where / "sampler",
        num_samples=len(dataset),
        labels=dataset.index.labels,
        seed=config.Global.seed or 0,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    bad_samples = None
    if config.Global.on_bad_image == "skip":
        bad_samples = BadSamples(config.run_folder / "bad_samples.txt", dataset, config.Global.max_bad_share)
    return Loader(dataset, sampler, section.loader.num_workers, bad_samples, config.Global.hang_timeout)


def check_data(config: Config, progress_bar: bool = True) -> DataReport:
    """Decode every file of the config's lists and report what is wrong with them, with a progress bar on a terminal.

    Raises:
        ConfigError: there are no lists.
        DataError: a list can't be used.
    """
    modes = [mode for mode in ("Train", "Eval") if config.DataLoader and getattr(config.DataLoader, mode)]
    if not modes:
        raise config.where("DataLoader").error("the section is missing")
    datasets = [build_dataset(config, mode) for mode in modes]
    shown = None if progress_bar else True
    with tqdm(total=sum(map(len, datasets)), unit="file", disable=shown, leave=False) as bar:
        return check_lists(datasets, class_num(config), progress=bar.update)
