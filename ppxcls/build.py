"""From a config to the objects that train and evaluate; the only module that reads one."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import paddle
from paddle import nn

from ppxcls import __version__, distributed
from ppxcls.checkpoint import load_weights, weights_file
from ppxcls.config import AMP, Config, DatasetSection
from ppxcls.data.batch_transforms import build_batch_transforms
from ppxcls.data.loader import Loader
from ppxcls.evaluation import evaluate_model
from ppxcls.logger import logger, set_up_logging
from ppxcls.losses import build_loss
from ppxcls.lr_schedules import build_lr_schedule
from ppxcls.metrics import build_metrics
from ppxcls.optimizers import build_optimizer
from ppxcls.registry import DATASETS, MODELS, SAMPLERS, split_block
from ppxcls.schema import Where
from ppxcls.trainer import Precision, Schedule, Trainer

Autocast = Callable[[], contextlib.AbstractContextManager[Any]]


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
        OSError: the output folder can't be written.
    """
    loss = _required(config, "Loss")
    spec = _required(config, "Optimizer")
    train = _required(config, "DataLoader.Train")
    output_dir = _start(config)
    if distributed.rank() == 0:
        (output_dir / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    model = _build_network(config, config.Global.pretrained_model, keep_trunk=True)
    loader = build_loader(config, "Train")
    if config.Global.check_data:
        loader.dataset.check_files()
    where = config.where("Optimizer")
    steps_per_epoch = -(-len(loader) // config.Global.update_freq)
    lr_at = build_lr_schedule(spec["lr"], config.Global.epochs, steps_per_epoch, where / "lr")
    optimizer, scheduler = build_optimizer(spec, model.parameters(), lr_at, where)
    model, optimizer, precision = _set_precision(config.AMP, model, optimizer)
    evaluate_now = None
    if config.Global.eval_during_train:
        evaluate_now = _build_evaluation(config, model)
    trainer = Trainer(
        model=paddle.DataParallel(model) if distributed.world_size() > 1 else model,
        loss_fn=build_loss(loss.Train, config.where("Loss.Train")),
        metrics=build_metrics(config.Metric.Train if config.Metric else None, config.where("Metric.Train")),
        optimizer=optimizer,
        lr_scheduler=scheduler,
        loader=loader,
        schedule=_schedule(config),
        output_dir=output_dir,
        precision=precision,
        batch_transforms=build_batch_transforms(
            train.dataset.get("batch_transform_ops"),
            class_num(config),
            config.where("DataLoader.Train.dataset.batch_transform_ops"),
        ),
        evaluate=evaluate_now,
        curves=_curves(config, output_dir),
        facts={"ppxcls": __version__, "paddle": paddle.__version__, "config": config.to_yaml()},
    )
    if config.Global.checkpoints:
        trainer.resume(config.Global.checkpoints)
    return trainer


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
    run = _build_evaluation(config, model)
    assert run is not None
    return run()


def class_num(config: Config) -> int:
    """The number of classes of the config's network: from ``Arch``, or the network's own default."""
    default = inspect.signature(MODELS.get(config.Arch["name"], config.where("Arch"))).parameters["class_num"].default
    return int(config.Arch.get("class_num", default))


def build_loader(config: Config, mode: str) -> Loader:
    """The loader of ``DataLoader.Train`` or ``DataLoader.Eval``, for this process's part.

    Raises:
        ConfigError, DataError: as ``build_trainer``.
    """
    section: DatasetSection = getattr(config.DataLoader, mode)
    where = config.where(f"DataLoader.{mode}")
    dataset = DATASETS.build(*split_block(section.dataset), where / "dataset", class_num=class_num(config))
    sampler = SAMPLERS.build(
        *split_block(section.sampler),
        where / "sampler",
        num_samples=len(dataset),
        seed=config.Global.seed or 0,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    return Loader(dataset, sampler, section.loader.num_workers)


def _required(config: Config, path: str) -> Any:
    """A section that must be there."""
    value: Any = config
    for key in path.split("."):
        value = getattr(value, key)
        if value is None:
            raise config.where(path).error("the section is missing")
    return value


def _output_dir(config: Config) -> Path:
    return Path(config.Global.output_dir) / config.Arch["name"]


def _start(config: Config) -> Path:
    """Device, processes, log; returns the folder of the run."""
    try:
        distributed.start(config.Global.device)
    except distributed.DeviceError as error:
        raise config.where("Global.device").error(str(error)) from None
    output_dir = _output_dir(config)
    set_up_logging(distributed.rank(), output_dir / "train.log")
    paddle.seed(config.Global.seed or 0)  # the initial weights
    return output_dir


def _best_model(config: Config) -> str:
    """The weights that training with this config leaves to be evaluated."""
    prefix = _output_dir(config) / "best_model"
    if not weights_file(prefix).exists():
        message = f"expected the weights to evaluate, received null, and there is no {weights_file(prefix)}"
        raise config.where("Global.pretrained_model").error(message)
    return str(prefix)


def _build_network(config: Config, weights: str | None, keep_trunk: bool) -> nn.Layer:
    model: nn.Layer = MODELS.build(*split_block(config.Arch), config.where("Arch"))
    if weights:
        left = load_weights(model, weights, keep_trunk)
        logger.info(f"Loaded {weights}")
        if left:
            logger.warning(f"the classifier starts anew, since its size differs: {'; '.join(left)}")
    return model


def _build_evaluation(config: Config, model: nn.Layer) -> Callable[[], dict[str, float]] | None:
    """A function that evaluates the model on ``DataLoader.Eval``; None where there is no such section."""
    if config.DataLoader is None or config.DataLoader.Eval is None:
        return None
    where = config.where("DataLoader.Eval.sampler")
    if config.DataLoader.Eval.sampler.get("drop_last"):
        raise (where / "drop_last").error("expected false: every sample is evaluated exactly once")
    loader = build_loader(config, "Eval")
    if config.Global.check_data:
        loader.dataset.check_files()
    losses = (config.Loss and config.Loss.Eval) or [{"CELoss": {}}]
    amp = config.AMP if config.AMP and config.AMP.use_amp else None
    if amp and amp.level == "O1" and not amp.use_fp16_test:
        amp = None  # O2's weights are float16: they can only be evaluated as they are trained
    return partial(
        evaluate_model,
        model,
        loader,
        build_loss(losses, config.where("Loss.Eval")),
        build_metrics(config.Metric.Eval if config.Metric else [{"TopkAcc": {"topk": [1, 5]}}], config.where("Metric.Eval")),
        _autocast(amp),
    )


def _autocast(amp: AMP | None) -> Autocast:
    if amp is None:
        return contextlib.nullcontext
    return partial(paddle.amp.auto_cast, enable=True, level=amp.level, use_promote=amp.use_promote)


def _set_precision(
    amp: AMP | None, model: nn.Layer, optimizer: paddle.optimizer.Optimizer
) -> tuple[nn.Layer, paddle.optimizer.Optimizer, Precision]:
    if amp is None or not amp.use_amp:
        return model, optimizer, Precision()
    if amp.level == "O2":
        # Float16 weights, float32 master copies in the optimizer, float32 in the files.
        model, optimizer = paddle.amp.decorate(
            models=model, optimizers=optimizer, level="O2", master_weight=True, save_dtype="float32"
        )
    scaler = paddle.amp.GradScaler(init_loss_scaling=amp.scale_loss, use_dynamic_loss_scaling=amp.use_dynamic_loss_scaling)
    return model, optimizer, Precision(_autocast(amp), scaler)


def _schedule(config: Config) -> Schedule:
    g = config.Global
    return Schedule(g.epochs, g.update_freq, g.print_batch_step, g.save_interval, g.eval_interval, g.start_eval_epoch)


def _curves(config: Config, output_dir: Path) -> Any:
    if not config.Global.use_visualdl or distributed.rank() != 0:
        return None
    try:
        from visualdl import LogWriter
    except ImportError:
        message = "expected false, since VisualDL is not installed: pip install 'ppxcls[visualdl]', received true"
        raise config.where("Global.use_visualdl").error(message) from None
    return LogWriter(logdir=str(output_dir / "vdl"))
