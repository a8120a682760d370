"""The disk space that the checkpoints of a run need."""

from __future__ import annotations

import shutil
from pathlib import Path

from paddle import nn

from ppxcls.config.sections import Config
from ppxcls.system.logs import logger
from ppxcls.train.optimizers import OPTIMIZERS

_GIGABYTE = 1e9


def checkpoint_bytes(config: Config, network: nn.Layer) -> tuple[int, int]:
    """Bytes of the weights in one checkpoint, with their average if there is one; and of the optimizer's state."""
    assert config.Optimizer
    weights = sum(4 * int(tensor.size) for tensor in network.state_dict().values())
    trained = sum(4 * int(p.size) for p in network.parameters() if not p.stop_gradient)
    has_average = config.EMA is not None and config.EMA.use_ema
    return weights * (1 + has_average), trained * OPTIMIZERS.fact(config.Optimizer.name, "state_copies")


def report_disk_space(config: Config, network: nn.Layer, folder: Path) -> None:
    """Log the room that a run's checkpoints need at most, as a warning if the disk has less.

    They are ``keep_last`` of ``step_N``, one that is being written, ``epoch_N``, and ``best_model``, which
    has no optimizer's state unless ``Global.best_model_optimizer`` is set. ``latest`` shares the files of the
    newest ``step_N``.
    """
    weights, state = checkpoint_bytes(config, network)
    section = config.Global
    count = section.keep_last + 1 + section.epochs // section.save_interval
    most = count * (weights + state) + weights + state * section.best_model_optimizer
    free = shutil.disk_usage(folder).free
    needed = (
        f"checkpoints of {(weights + state) / _GIGABYTE:.2g} GB each need up to {most / _GIGABYTE:.3g} GB at {folder}: {count}, "
        f"and best_model of {(weights + state * section.best_model_optimizer) / _GIGABYTE:.2g} GB"
    )
    if free < most:
        advice = "Global.save_interval and Global.keep_last decide how many are kept"
        logger.warning(f"{needed}; only {free / _GIGABYTE:.3g} GB are free; {advice}")
    else:
        logger.info(needed)
