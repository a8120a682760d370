"""Builds the schedules of a run from a config: its learning rate, and its times."""

from __future__ import annotations

import math
from dataclasses import asdict, fields, replace

from ppxcls.build.start import required_section
from ppxcls.config.sections import Config
from ppxcls.data.loader import Loader
from ppxcls.system.logs import logger
from ppxcls.train.early_stop import EarlyStop
from ppxcls.train.lr_schedules import LRSchedule, build_lr_schedule
from ppxcls.train.run_schedule import RunSchedule


def run_schedule(config: Config, update_freq: int) -> RunSchedule:
    """Returns the times of log lines, evaluations, checkpoints and the end of the run.

    Args:
        config: config of the run.
        update_freq: number of batches per optimizer step.
    """
    settings = {f.name: getattr(config.Global, f.name) for f in fields(RunSchedule)}
    return replace(RunSchedule(**settings), update_freq=update_freq, early_stop=early_stop(config))


def update_freq_of(config: Config, loader: Loader) -> int:
    """Returns the number of micro-batches per optimizer step.

    It follows from ``Global.samples_per_step`` if that is set; otherwise it is ``Global.update_freq``.

    Raises:
        ConfigError: ``samples_per_step`` is not a multiple of the global batch, or contradicts
            ``update_freq``.
    """
    samples, configured_update_freq = config.Global.samples_per_step, config.Global.update_freq
    if samples is None:
        return configured_update_freq
    sampler = loader.sampler
    global_batch = sampler.batch_size * sampler.world_size
    where = config.where("Global.samples_per_step")
    if samples % global_batch:
        batches_text = f"{sampler.world_size} processes with batches of {sampler.batch_size}"
        raise where.error(f"expected a multiple of {global_batch} ({batches_text}), received {samples}")
    update_freq = samples // global_batch
    if configured_update_freq not in (1, update_freq):
        raise where.error(
            f"{samples} samples are {update_freq} micro-batches, but "
            f"Global.update_freq is {configured_update_freq}; set only one of them"
        )
    return update_freq


def early_stop(config: Config) -> EarlyStop | None:
    """Returns the rule of ``Global.early_stop``; None if it is not set."""
    section = config.Global.early_stop
    return EarlyStop(**asdict(section)) if section else None


def learning_rate(config: Config, steps_per_epoch: int, samples_per_step: int) -> LRSchedule:
    """Builds the learning-rate schedule of a run.

    Args:
        config: config of the run.
        steps_per_epoch: number of optimizer steps per epoch.
        samples_per_step: number of samples of all processes in an optimizer step.

    Raises:
        ConfigError: the schedule is invalid, or ``Global.scale_lr`` is set, but ``Global.base_batch_size`` is
            not.
    """
    return build_lr_schedule(
        required_section(config, "Optimizer").lr,
        config.Global.epochs,
        steps_per_epoch=steps_per_epoch,
        factor=_lr_factor(config, samples_per_step),
    )


def _lr_factor(config: Config, samples_per_step: int) -> float:
    """Returns the factor by which ``Global.scale_lr`` multiplies the learning rate; 1 if it is not set.

    Raises:
        ConfigError: ``Global.scale_lr`` is set, but ``Global.base_batch_size`` is not.
    """
    rule, base_batch_size = config.Global.scale_lr, config.Global.base_batch_size
    if rule is None:
        return 1.0
    if base_batch_size is None:
        place = config.where("Global.base_batch_size")
        raise place.error("expected the samples per step that the learning rate was chosen for")
    ratio = samples_per_step / base_batch_size
    return ratio if rule == "linear" else math.sqrt(ratio)


def log_scaling(config: Config, schedule: LRSchedule, samples_per_step: int) -> None:
    """Logs the factor of the learning rate if ``Global.scale_lr`` is set."""
    if (rule := config.Global.scale_lr) is not None:
        logger.info(
            f"the learning rate is multiplied by {schedule.factor:g}: {samples_per_step} "
            f"samples per step instead of {config.Global.base_batch_size} ({rule})"
        )
