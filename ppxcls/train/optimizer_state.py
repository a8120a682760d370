"""An optimizer's state: taken from it, and set again exactly in whatever process and under whatever names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import paddle
from paddle import nn
from paddle.optimizer import Optimizer

from ppxcls.checkpoints.files import CheckpointError, State
from ppxcls.checkpoints.safe_states import NAMES
from ppxcls.models.weights import is_numeric, to_numpy

_SCHEDULER = "LR_Scheduler"  # the rate is a function of the step, so the scheduler has no state of its own


def optimizer_state(optimizer: Optimizer) -> State:
    """Copies of the accumulators in the host's memory, by Paddle's names."""
    # Before the first step, Paddle 2.6 leaves out what was loaded.
    loaded = optimizer._accumulators_holder if not optimizer._accumulators else {}
    state: State = to_numpy(
        {key: value for key, value in {**loaded, **optimizer.state_dict()}.items() if key != _SCHEDULER}
    )
    return state


def load_optimizer_state(
    optimizer: Optimizer, state: State, weights: State, model: nn.Layer, file: Path
) -> None:
    """Set the accumulators under this process's names of the parameters, which depend on what was built before
    them.

    Args:
        optimizer: of this process.
        state: by the names of the process that saved it.
        model: whose parameters the optimizer has.
        weights: saved with it; holds those names by state key.
        file: for messages.

    Raises:
        CheckpointError: it belongs to other parameters or another optimizer.
    """
    saved_names = weights.get(NAMES, {})
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
        raise CheckpointError(
            f"{file}: has no state for {len(trained - covered)} of {len(trained)} parameters of this model"
        )
    values[_SCHEDULER] = optimizer.state_dict().get(_SCHEDULER, {})  # Paddle 2.6 looks for it
    try:
        optimizer.set_state_dict(values)
    except (AssertionError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{file}: not the state of this optimizer: {reason}") from None
