"""How much room the checkpoints of a run will take, and whether the disk has it."""

from __future__ import annotations

import shutil
from pathlib import Path

from paddle import nn

from ppxcls.config.sections import Config
from ppxcls.system.logs import logger

_COPIES = {"SGD": 0, "Momentum": 1, "Adagrad": 1}  # of the weights in the optimizer's state; others have two
_GIGABYTE = 1e9


def checkpoint_bytes(config: Config, network: nn.Layer) -> int:
    """Bytes of one checkpoint: weights, the optimizer's state, and the average of the weights, if there is one."""
    assert config.Optimizer
    weights = sum(4 * int(tensor.size) for tensor in network.state_dict().values())
    trained = sum(4 * int(p.size) for p in network.parameters() if not p.stop_gradient)
    has_average = config.EMA is not None and config.EMA.use_ema
    return weights * (1 + has_average) + trained * _COPIES.get(config.Optimizer.name, 2)


def report_room(config: Config, network: nn.Layer, folder: Path) -> None:
    """Log the room that a run's checkpoints need at most, as a warning if the disk has less.

    They are ``keep_last`` of ``step_N``, ``best_model``, one that is being written, and ``epoch_N``. ``latest`` shares its files.
    """
    one = checkpoint_bytes(config, network)
    count = config.Global.keep_last + 2 + config.Global.epochs // config.Global.save_interval
    free = shutil.disk_usage(folder).free
    needed = f"checkpoints of {one / _GIGABYTE:.2g} GB each need up to {count * one / _GIGABYTE:.3g} GB at {folder}"
    if free < count * one:
        logger.warning(f"{needed}, where {free / _GIGABYTE:.3g} GB are free; Global.save_interval decides how many are kept")
    else:
        logger.info(needed)
