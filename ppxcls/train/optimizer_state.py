"""Copies an optimizer's state, and restores it exactly in any process and under any parameter names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn
from paddle.optimizer import Optimizer

from ppxcls.checkpoints.files import CheckpointError, State
from ppxcls.checkpoints.safe_states import PARAMETER_NAMES_KEY
from ppxcls.models.classifier_part import state_tensors
from ppxcls.models.number_types import as_float32_array
from ppxcls.models.weights import is_half, is_numeric, to_numpy
from ppxcls.system.arrays import Array

# Paddle's name of a parameter's float32 copy continues with this; accumulators are named after the copy.
_COPY_SUFFIX = "_fp32_master_0"
_SCHEDULER_KEY = "LR_Scheduler"  # left out of states, because the rate depends on the step alone


def forget_parameter_lists(optimizer: Optimizer) -> None:
    """Makes an optimizer that updates all parameters with one operator list them again in its next step.

    Paddle lists the parameters with gradients, their accumulators and float32 copies in the first step only.
    """
    for name, lists in list(vars(optimizer).items()):
        # "FP32_DenseTensor", or "FP32_LODTensor" before Paddle 3.1
        if isinstance(lists, dict) and any(str(key).startswith("FP32_") for key in lists):
            empty_lists = optimizer._create_multi_tensor_dict()
            absent_lists = {key: None for key, value in lists.items() if value is None}
            setattr(optimizer, name, {**empty_lists, **absent_lists})


def list_parameters_in_each_step(optimizer: Optimizer) -> None:
    """Makes an optimizer list the parameters again if those with a gradient change.

    A network may use a part of its parameters in one step and another part in the next. Paddle would then
    apply gradients to other parameters.
    """
    run_pass = optimizer._create_optimization_pass
    known_names: list[str] = []

    def run_pass_on_current(parameters_and_grads: Any, *arguments: Any, **keys: Any) -> Any:
        names = [p.name for p, gradient in parameters_and_grads if gradient is not None]
        if names != known_names:
            known_names[:] = names
            forget_parameter_lists(optimizer)
        return run_pass(parameters_and_grads, *arguments, **keys)

    optimizer._create_optimization_pass = run_pass_on_current


def optimizer_state(optimizer: Optimizer) -> State:
    """Returns copies of the accumulators in the host's memory, by Paddle's names."""
    # Before the first step, Paddle 2.6 leaves out loaded accumulators.
    accumulators = optimizer._accumulators_holder if not optimizer._accumulators else {}
    state: State = to_numpy(
        {
            key: value
            for key, value in {**accumulators, **optimizer.state_dict()}.items()
            if key != _SCHEDULER_KEY
        }
    )
    return state


def _accumulator(value: Array) -> paddle.Tensor:
    """Returns an accumulator as a tensor.

    Paddle keeps single numbers, such as Adam's powers of the betas, on the host. It copies them there in the
    next step. From a device, such a copy may be made after the step has changed the number.
    """
    if np.size(value) == 1:
        return paddle.to_tensor(value, place=paddle.CPUPlace())
    return paddle.to_tensor(value)


def _float32_copy(array: Array, parameter_name: str) -> paddle.Tensor:
    """Returns the float32 copy of a half-precision parameter under the name that its accumulators have."""
    copy = paddle.to_tensor(array)
    copy.name = parameter_name + _COPY_SUFFIX
    return copy


def _set_float32_weights(parameters: Mapping[str, paddle.Tensor], copies: Mapping[str, Array]) -> None:
    """Sets float32 weights from the copies of a run that had them in half precision.

    Args:
        parameters: trained parameters by this process's names.
        copies: saved float32 copies by the same names.
    """
    for name in copies.keys() & parameters.keys():
        if parameters[name].dtype == paddle.float32:
            with paddle.no_grad():
                paddle.assign(paddle.to_tensor(copies[name]), parameters[name])


def load_optimizer_state(
    optimizer: Optimizer, state: State, *, weights: State, model: nn.Layer, file: Path
) -> None:
    """Sets the accumulators under this process's names of the parameters.

    Paddle's names depend on the layers that the process has built before.

    Args:
        optimizer: optimizer of this process.
        state: accumulators by the names of the process that saved them.
        model: network with the optimizer's parameters.
        weights: weights that were saved with the state. They include the saved names by state key.
        file: file of the state, for error messages.

    Raises:
        CheckpointError: the state belongs to other parameters or another optimizer.
    """
    saved_names = weights.get(PARAMETER_NAMES_KEY, {})
    current_names = {key: tensor.name for key, tensor in state_tensors(model).items()}
    name_map = {
        saved_name: current_names[key] for key, saved_name in saved_names.items() if key in current_names
    }
    trained_parameters = {p.name: p for p in optimizer._parameter_list if not p.stop_gradient}
    trained_names = set(trained_parameters)
    has_copies = getattr(optimizer, "_multi_precision", False)
    half_names = {name for name, p in trained_parameters.items() if has_copies and is_half(p)}

    sorted_names = sorted(name_map, key=len, reverse=True)  # one name can be a prefix of another

    def rename(key: str) -> str | None:
        """Returns this process's name of an accumulator; None if the parameter is unknown.

        A name such as ``conv2d_0.w_0_velocity_0`` consists of the parameter's and the accumulator's name.
        """
        name = next((n for n in sorted_names if key.startswith(n + "_")), None)
        if name is None:
            return None
        suffix = re.sub(r"^_fp32_master_\d+(?=_)", "", key[len(name) :])
        is_of_copy = name_map[name] in half_names
        return name_map[name] + (_COPY_SUFFIX if is_of_copy else "") + suffix

    values: dict[str, Any] = {}
    for key, value in state.items():
        if is_numeric(value) and (new_key := rename(key)) is not None:
            values[new_key] = _accumulator(as_float32_array(value))
    saved_copies = state.get("master_weights")
    if not isinstance(saved_copies, dict):
        saved_copies = {}
    copies = {
        name_map[name]: as_float32_array(value) for name, value in saved_copies.items() if name in name_map
    }
    if half_names:  # without a saved copy, the weight itself was float32
        saved_weights = {current_names[key]: weights[key] for key in saved_names if key in current_names}
        values["master_weights"] = {
            name: _float32_copy(copies.get(name, saved_weights[name]), name) for name in half_names
        }
    covered_names = {name for name in trained_names if any(key.startswith(name + "_") for key in values)}
    if values.keys() - {"master_weights"} and covered_names != trained_names:
        raise CheckpointError(
            f"{file}: has no state for {len(trained_names - covered_names)} "
            f"of {len(trained_names)} parameters of this model"
        )
    values[_SCHEDULER_KEY] = optimizer.state_dict().get(_SCHEDULER_KEY, {})  # Paddle 2.6 looks up this key
    forget_parameter_lists(optimizer)
    try:
        optimizer.set_state_dict(values)
    except (AssertionError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{file}: not the state of this optimizer: {reason}") from None
    _set_float32_weights(trained_parameters, copies)
