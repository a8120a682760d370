"""Loads and saves the weights of networks, by state key."""

from __future__ import annotations

import os
from collections.abc import Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ppxcls.checkpoints.files import (
    AVERAGE,
    WEIGHTS,
    CheckpointError,
    State,
    parts_of,
    read_manifest,
    read_part,
    with_extension,
    write_state,
)
from ppxcls.checkpoints.safe_states import PARAMETER_NAMES_KEY
from ppxcls.models.classifier_part import Difference, classifier_keys, fitting_part, state_tensors
from ppxcls.models.first_convolution import fitted_to_channels
from ppxcls.models.foreign_weights import SUFFIXES, ForeignWeights, foreign_weights
from ppxcls.models.logits import network_name
from ppxcls.models.network_keys import networks_with
from ppxcls.models.number_types import as_float32_array, converted, is_convertible, numpy_type_name
from ppxcls.models.torch_weights import with_classifier_name, without_unused_layers
from ppxcls.models.weight_parts import without_prefix
from ppxcls.system.arrays import Array
from ppxcls.system.logs import warn_once
from ppxcls.system.paths import url_problem

_MAX_SHOWN_KEYS = 5  # keys in a message


def weights_file(path: str | Path) -> Path:
    """Returns the weights file of a prefix such as ``output/Xception41/best_model``.

    This is the ``.pdparams`` file, or the ``.safetensors`` file if only that exists. A path with an extension
    is returned unchanged, and so is the path of a file with any other name.

    Raises:
        CheckpointError: the path is a URL.
    """
    if (problem := url_problem(path)) is not None:
        raise CheckpointError(problem)
    path = Path(path)
    if path.suffix.lower() in (WEIGHTS, *SUFFIXES):
        return path
    file, safe = with_extension(path, WEIGHTS), with_extension(path, ".safetensors")
    existing_files = [candidate for candidate in (file, safe) if os.path.exists(candidate)]
    if existing_files:
        return existing_files[0]
    return path if os.path.isfile(path) else file


def load_weights(
    model: nn.Layer, path: str | Path, *, keep_trunk: bool = False, average: bool = False
) -> list[str]:
    """Sets a model's parameters and batch-norm statistics by state key.

    Args:
        model: network to change.
        path: ``.pdparams`` file, with or without its extension, or a file of timm or Keras. The parts of a
            checkpoint are compared with its manifest.
        keep_trunk: True to leave the classifier unchanged if the weights have another number of classes,
            another head, or no classifier at all, instead of raising. The first convolution of weights for
            RGB images is fitted to a network for another number of channels.
        average: True to load the average of the weights (EMA), if the checkpoint has one.

    Returns:
        Descriptions of what was not set: keys and shapes of the classifier's parameters, or the head that the
        file has in its place, and further layers of the file. They are empty if everything was set.

    Raises:
        CheckpointError: the file can't be used, or tensors are missing, unknown, of another shape, integers
            instead of numbers, or not finite. The message names them.
    """
    differences = load_fitting_weights(model, path, keep_trunk=keep_trunk, average=average)
    return [difference.text for difference in differences]


def load_fitting_weights(
    model: nn.Layer, path: str | Path, *, keep_trunk: bool = False, average: bool = False
) -> list[Difference]:
    """Sets a model's parameters as ``load_weights``, and returns what was not set with its kind."""
    file = weights_file(path)
    manifest = manifest_of(file)
    if manifest:
        part = AVERAGE if average and AVERAGE in parts_of(manifest) else WEIGHTS
        weights = ForeignWeights(read_part(file.with_suffix(""), manifest, part))
    else:
        weights = _read_weights(file, model)
    return _set_weights(model, weights, file, keep_trunk=keep_trunk)


def _read_weights(file: Path, model: nn.Layer) -> ForeignWeights:
    """Reads a file of any program, with the keys of a model."""
    weights = foreign_weights(file)
    keys, classifier = state_tensors(model).keys(), classifier_keys(model)
    state = with_classifier_name(without_prefix(weights.state, keys, file), keys, classifier)
    return replace(weights, state=without_unused_layers(state, classifier, file))


def manifest_of(file: Path) -> dict[str, Any] | None:
    """Returns the manifest that describes a weights file; None if there is none.

    Raises:
        CheckpointError: the manifest is damaged, and the file is a ``.pdparams``.
    """
    prefix = file.with_suffix("")
    if file.suffix not in (WEIGHTS, ".safetensors") or not os.path.exists(with_extension(prefix, ".json")):
        return None
    try:
        manifest = read_manifest(prefix)
    except CheckpointError:
        if file.suffix == WEIGHTS:
            raise
        return None  # other programs write their own JSON file beside a .safetensors file
    return manifest if file.suffix in manifest["parts"] or file.suffix == WEIGHTS else None


def check_weights_name(file: Path) -> None:
    """Raises CheckpointError if weights can't be written to a file of this name."""
    if file.suffix not in (WEIGHTS, ".safetensors"):
        raise CheckpointError(f"{file}: expected .pdparams or .safetensors")


def save_weights(model: nn.Layer, file: Path) -> None:
    """Writes a model's weights as ``.pdparams`` or ``.safetensors``.

    Raises:
        CheckpointError: the file has another extension, or safetensors is not installed.
        OSError: the file can't be written.
    """
    check_weights_name(file)
    write_state(file, model_state(model))


def set_weights(model: nn.Layer, state: State, file: Path, *, keep_trunk: bool = False) -> list[str]:
    """Sets a model's parameters and statistics from arrays by state key.

    Args:
        model: network to change.
        state: arrays by state key.
        file: name of the file, for messages.
        keep_trunk: True to leave the classifier unchanged if it is missing or has another shape.

    Returns:
        Descriptions of what was not set, as ``load_weights``.

    Raises:
        CheckpointError: same conditions as for ``check_fits`` and ``fitting_arrays``.
    """
    differences = _set_weights(model, ForeignWeights(state), file, keep_trunk=keep_trunk)
    return [difference.text for difference in differences]


def _set_weights(
    model: nn.Layer, weights: ForeignWeights, file: Path, *, keep_trunk: bool
) -> list[Difference]:
    plain_state = {key: value for key, value in weights.state.items() if key != PARAMETER_NAMES_KEY}
    plain_weights = replace(weights, state=plain_state)
    _check_network(plain_weights, model, file)
    state, differences = fitting_part(plain_weights, model, file, keep_trunk=keep_trunk)
    if keep_trunk:
        state, channel_differences = fitted_to_channels(state, model)
        differences = [*differences, *channel_differences]
    shape_differences = check_fits(state, model, file, classifier_keys(model) if keep_trunk else set())
    arrays = fitting_arrays(state, model, file, skipped_keys=shape_differences.keys())
    tensors = state_tensors(model)
    model.set_state_dict(  # with all keys, because Paddle warns about missing ones
        {
            key: _tensor_like(tensor, arrays[key]) if key in arrays else tensor
            for key, tensor in tensors.items()
        }
    )
    size_differences = [
        Difference("size", text, key, as_float32_array(state[key])) for key, text in shape_differences.items()
    ]
    return [*differences, *size_differences]


def _check_network(weights: ForeignWeights, model: nn.Layer, file: Path) -> None:
    """Raises CheckpointError if keys are those of another network of this package than the model."""
    tensors = state_tensors(model)
    own_names = networks_with(tensors.keys(), "paddle")
    names = networks_with(weights.state.keys(), weights.source)
    if own_names and names and not set(names) & set(own_names):
        name = network_name(model) or " or ".join(own_names)
        raise CheckpointError(
            f"{file} does not fit the model: it has the weights of {' or '.join(names)}, and the model is "
            f"{name}; name the file's network (Arch.name, --network, --model)"
        )


def fitting_arrays(
    state: State, model: nn.Layer, file: Path, skipped_keys: Set[str] = frozenset()
) -> dict[str, Array]:
    """Returns the arrays that a model's tensors are set to, in the types that the tensors have.

    Floating-point numbers of another type are converted, which a warning reports once for the file. Paddle
    stores bfloat16 as the integers of its bits, uint16.

    Args:
        state: arrays by state key, which ``check_fits`` accepts.
        model: network with these keys.
        file: name of the file, for messages.
        skipped_keys: keys to leave out.

    Raises:
        CheckpointError: integers are given for numbers, or an array has values that are not finite. The
            message names the first keys.
    """
    arrays: dict[str, Array] = {}
    conversions: dict[str, list[str]] = {}
    problems: dict[str, list[str]] = {}
    for key, tensor in state_tensors(model).items():
        if key in skipped_keys:
            continue
        value = np.asarray(state[key])
        expected_type = _numpy_type(tensor)
        if not is_convertible(value.dtype, expected_type):
            problem = f"are {value.dtype} in the file, {expected_type} in the model"
            problems.setdefault(problem, []).append(key)
            continue
        if value.dtype != expected_type:
            conversion = f"are converted from {numpy_type_name(value.dtype)} to {expected_type}"
            conversions.setdefault(conversion, []).append(key)
        arrays[key] = converted(value, expected_type)
    if not problems and (bad_keys := [key for key, array in arrays.items() if not np.isfinite(array).all()]):
        problems["have values that are not finite (NaN or infinity)"] = bad_keys
    for problem, keys in problems.items():
        example_keys = ", ".join(keys[:_MAX_SHOWN_KEYS])
        more = ", ..." if len(keys) > _MAX_SHOWN_KEYS else ""
        raise CheckpointError(f"{file}: {_number_of(keys, model)} {problem}: {example_keys}{more}")
    for conversion, keys in conversions.items():
        warn_once(f"{file}: {_number_of(keys, model)} {conversion}")
    return arrays


def _number_of(keys: Sequence[str], model: nn.Layer) -> str:
    return f"{len(keys)} of {len(state_tensors(model))} tensors"


def _numpy_type(tensor: paddle.Tensor) -> np.dtype[Any]:
    """Returns the type of a tensor's values in a file. Half-precision weights are stored as float32."""
    return np.dtype(np.float32) if is_half(tensor) else np.dtype(str(tensor.dtype).rpartition(".")[2])


def _tensor_like(tensor: paddle.Tensor, value: Array) -> paddle.Tensor:
    """Returns an array as a tensor. Half-precision weights are stored as float32 in files."""
    result = paddle.to_tensor(value)
    return result.astype(tensor.dtype) if is_half(tensor) else result


def is_half(tensor: paddle.Tensor) -> bool:
    """True if a tensor is float16 or bfloat16."""
    return tensor.dtype in (paddle.float16, paddle.bfloat16)


def check_fits(
    state: State, model: nn.Layer, file: Path, may_differ: Set[str] = frozenset()
) -> dict[str, str]:
    """Compares the keys and shapes of arrays with a model's.

    Returns:
        Descriptions of the shapes that differ, by key. All keys are in ``may_differ``.

    Raises:
        CheckpointError: any other key is missing or unknown, or has another shape.
    """
    tensors = state_tensors(model)
    state = {key: value for key, value in state.items() if key != PARAMETER_NAMES_KEY}
    problems = [f"{key} is not in the file" for key in tensors if key not in state]
    problems += [f"{key} is not in the model" for key in state if key not in tensors]
    problems += [
        f"{key} is not an array of numbers" for key in tensors if key in state and not is_numeric(state[key])
    ]
    shapes = {
        key: f"{key} is {list(np.shape(state[key]))} in the file, {list(tensors[key].shape)} in the model"
        for key in tensors
        if key in state and tuple(np.shape(state[key])) != tuple(tensors[key].shape)
    }
    problems += [text for key, text in shapes.items() if key not in may_differ]
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise CheckpointError(f"{file} does not fit the model: {'; '.join(problems[:8])}{more}")
    return shapes


def is_numeric(value: Any) -> bool:
    """True if ``value`` is an array of numbers."""
    return isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fiu"


def to_numpy(tree: Any) -> Any:
    """Copies the tensors in nested dicts to the host's memory. Half-precision tensors become float32."""
    if isinstance(tree, dict):
        return {key: to_numpy(value) for key, value in tree.items()}
    if not isinstance(tree, paddle.Tensor):
        return tree
    return (tree.astype("float32") if is_half(tree) else tree).numpy()


def model_state(model: nn.Layer) -> dict[str, Any]:
    """Returns copies of a model's state, and Paddle's names of the parameters.

    The optimizer's state uses these names as keys.
    """
    state = state_tensors(model)
    return {**to_numpy(state), PARAMETER_NAMES_KEY: {key: tensor.name for key, tensor in state.items()}}
