"""Computes the disk space that the checkpoints of a run need."""

from __future__ import annotations

import shutil
from pathlib import Path

from paddle import nn

from ppxcls.config.sections import Config
from ppxcls.models.classifier_part import state_tensors
from ppxcls.system.logs import logger
from ppxcls.train.optimizers import OPTIMIZERS

_BYTES_PER_GB = 1e9


def checkpoint_bytes(config: Config, network: nn.Layer) -> tuple[int, int]:
    """Returns the size of one checkpoint.

    Returns:
        Bytes of the weights, including their average if there is one; and bytes of the optimizer's state.
    """
    assert config.Optimizer
    weight_bytes = sum(4 * int(tensor.size) for tensor in state_tensors(network).values())
    trained_bytes = sum(4 * int(p.size) for p in network.parameters() if not p.stop_gradient)
    has_average = config.EMA is not None and config.EMA.use_ema
    state_copies = OPTIMIZERS.fact(config.Optimizer.name, "state_copies")
    return weight_bytes * (1 + has_average), trained_bytes * state_copies


def report_disk_space(config: Config, network: nn.Layer, folder: Path) -> None:
    """Logs the largest disk space that a run's checkpoints need, as a warning if less is free.

    These checkpoints count: ``keep_last`` checkpoints ``step_N``, one that is being written, all ``epoch_N``,
    and ``best_model``. ``best_model`` has no optimizer state unless ``Global.best_model_optimizer`` is set.
    ``latest`` shares the files of the newest ``step_N``.
    """
    weight_bytes, state_bytes = checkpoint_bytes(config, network)
    section = config.Global
    count = section.keep_last + 1 + section.epochs // section.save_interval
    checkpoint_size = weight_bytes + state_bytes
    best_size = weight_bytes + state_bytes * section.best_model_optimizer
    max_bytes = count * checkpoint_size + best_size
    free_bytes = shutil.disk_usage(folder).free
    message = (
        f"checkpoints of {checkpoint_size / _BYTES_PER_GB:.2g} GB each need up to "
        f"{max_bytes / _BYTES_PER_GB:.3g} GB at {folder}: {count}, "
        f"and best_model of {best_size / _BYTES_PER_GB:.2g} GB"
    )
    if free_bytes < max_bytes:
        advice = "Global.save_interval and Global.keep_last decide how many are kept"
        logger.warning(f"{message}; only {free_bytes / _BYTES_PER_GB:.3g} GB are free; {advice}")
    else:
        logger.info(message)
