"""A model's and an optimizer's state: taken from them and set again exactly, whatever process and library wrote it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ppxcls.checkpoints.files import CheckpointError, State, beside, read_checkpoint, write_checkpoint
from ppxcls.checkpoints.progress import Progress, checkpoint_prefix, manifest_of, read_paddleclas, read_progress
from ppxcls.models.weights import NAMES, check_fits, is_numeric, model_state, set_weights, to_numpy
from ppxcls.train.ema import WeightAverage


def snapshot(model: nn.Layer, optimizer: paddle.optimizer.Optimizer, ema: WeightAverage | None = None) -> dict[str, State]:
    """Copies of the states in the host's memory, by the extension of their files.

    Raises:
        CheckpointError: a weight is not finite, so it is not worth saving; names it.
    """
    states = {".pdparams": model_state(model), ".pdopt": _optimizer_state(optimizer)}
    for key, value in states[".pdparams"].items():
        if isinstance(value, np.ndarray) and not np.isfinite(value).all():
            raise CheckpointError(f"{key} has values that are not finite: no checkpoint is made of it")
    if ema is not None:
        states[".pdema"] = ema.state_dict()
    return states


def save_checkpoint(
    prefixes: Sequence[Path],
    model: nn.Layer,
    optimizer: paddle.optimizer.Optimizer,
    progress: Progress,
    facts: Mapping[str, Any],
) -> None:
    """Save one state under one or more prefixes, each whole or not at all.

    Args:
        facts: written into the manifest for readers: the package's version, the config.

    Raises:
        OSError: it can't be written; earlier checkpoints stay whole.
        CheckpointError: a weight is not finite.
    """
    prefixes[0].parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(prefixes, snapshot(model, optimizer), manifest_of(progress, facts))


def load_checkpoint(
    prefix: str | Path,
    model: nn.Layer,
    optimizer: paddle.optimizer.Optimizer,
    check: Callable[[Mapping[str, Any]], None] = lambda manifest: None,
    ema: WeightAverage | None = None,
) -> tuple[Progress, dict[str, Any]]:
    """Load weights and optimizer state of a checkpoint, PaddleClas's included.

    Args:
        check: sees the manifest before anything is set, and may raise.

    Returns:
        Where the run stood, and the manifest; of PaddleClas's, whose files do not say the step, an empty one and step 0.

    Raises:
        CheckpointError: missing, damaged, of a newer format, or of another model or optimizer.
    """
    prefix = checkpoint_prefix(prefix)
    if not beside(prefix, ".json").exists() and beside(prefix, ".pdstates").exists():
        states, progress, manifest = read_paddleclas(prefix)
    else:
        states, manifest = read_checkpoint(prefix)
        progress = read_progress(manifest["progress"], prefix)
    check(manifest)
    weights = states[".pdparams"]
    set_weights(model, weights, beside(prefix, ".pdparams"), keep_trunk=False)
    _set_optimizer_state(optimizer, states[".pdopt"], weights.get(NAMES, {}), model, beside(prefix, ".pdopt"))
    if ema is not None:
        average = states.get(".pdema", weights)  # a run that had none begins it with the weights
        check_fits(average, model, beside(prefix, ".pdema"))
        ema.load_state_dict(average)
    return progress, manifest


def _optimizer_state(optimizer: paddle.optimizer.Optimizer) -> dict[str, Any]:
    return to_numpy({key: value for key, value in optimizer.state_dict().items() if key != "LR_Scheduler"})


def _set_optimizer_state(
    optimizer: paddle.optimizer.Optimizer,
    state: dict[str, Any],
    saved_names: dict[str, str],
    model: nn.Layer,
    file: Path,
) -> None:
    """Set the state under this process's names of the parameters, which depend on what was built before them."""
    own_names = {key: tensor.name for key, tensor in model.state_dict().items()}
    renamed = {saved: own_names[key] for key, saved in saved_names.items() if key in own_names}
    trained = {p.name for p in optimizer._parameter_list if not p.stop_gradient}

    longest_first = sorted(renamed, key=len, reverse=True)  # one name can begin another

    def rename(key: str) -> str | None:
        """``conv2d_0.w_0_velocity_0`` is the parameter's name and the accumulator's."""
        name = next((n for n in longest_first if key.startswith(n + "_")), None)
        return None if name is None else renamed[name] + key[len(name) :]

    values: dict[str, Any] = {}
    for key, value in state.items():
        if key == "master_weights" and isinstance(value, dict):
            values[key] = {renamed[name]: paddle.to_tensor(v) for name, v in value.items() if name in renamed}
        elif is_numeric(value) and (new := rename(key)) is not None:
            values[new] = paddle.to_tensor(value)
    covered = {name for name in trained if any(key.startswith(name + "_") for key in values)}
    if values and covered != trained:
        raise CheckpointError(f"{file}: has no state for {len(trained - covered)} of {len(trained)} parameters of this model")
    try:
        optimizer.set_state_dict(values)
    except (AssertionError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{file}: not the state of this optimizer: {reason}") from None
