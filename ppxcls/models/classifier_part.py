"""Tells a network's classifier from its trunk, and the head of a file of weights from the rest."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import paddle
from paddle import nn

from ppxcls.checkpoints.files import CheckpointError, State
from ppxcls.models.foreign_weights import ForeignWeights
from ppxcls.system.arrays import Array

_MAX_SHOWN_KEYS = 4  # keys in a message


@dataclass(frozen=True)
class Difference:
    """A difference between a file and a network, because of which something was not set.

    Attributes:
        kind: ``head`` if the file has no classifier, or another head in its place, ``size`` if a tensor of
            the classifier has another shape, ``rest`` if the file has further layers, ``channels`` if the
            first convolution was fitted to another number of channels.
        text: description, such as ``the file has no classifier``.
        key: state key of the tensor of another shape; empty for other kinds.
        array: this tensor in the file, with the number type of the network; None for other kinds.
    """

    kind: Literal["head", "size", "rest", "channels"]
    text: str
    key: str = ""
    array: Array | None = None


def state_tensors(model: nn.Layer) -> dict[str, paddle.Tensor]:
    """Returns a model's parameters and statistics themselves, by state key.

    ``state_dict`` of a model that Paddle's AMP has prepared may return copies in another precision.
    """
    tensors: dict[str, paddle.Tensor] = model.state_dict(use_hook=False)
    return tensors


def classifier_keys(model: nn.Layer) -> set[str]:
    """Returns the state keys of the last linear layer."""
    names = [name for name, layer in model.named_sublayers() if isinstance(layer, nn.Linear)]
    return {f"{names[-1]}.weight", f"{names[-1]}.bias"} if names else set()


def fitting_part(
    weights: ForeignWeights, model: nn.Layer, file: Path, *, keep_trunk: bool
) -> tuple[State, list[Difference]]:
    """Leaves out the head of a file if it is another one than the network's classifier.

    Args:
        weights: arrays by state key, and a description of layers that are not among them.
        model: network that will use them.
        file: name of the file, for messages.
        keep_trunk: True if the network may keep its own classifier.

    Returns:
        The arrays, with the network's own classifier if the file has none, and what was left out or is
        missing.

    Raises:
        CheckpointError: the file has no classifier, but everything else, and ``keep_trunk`` is false.
    """
    state = weights.state
    tensors, classifier = state_tensors(model), classifier_keys(model)
    trunk_keys = [key for key in tensors if key not in classifier]
    trunk_words = {_word(key) for key in trunk_keys}
    extra_keys = [key for key in state if key not in tensors and _word(key) not in trunk_words]
    has_classifier = classifier <= state.keys()
    if has_classifier and not extra_keys:
        return state, []
    head = weights.head or _text_of(extra_keys, state)
    if not keep_trunk:
        if not has_classifier and not classifier & state.keys() and state.keys() >= set(trunk_keys):
            addition = f"; its head is another one: {head}" if head else ""
            raise CheckpointError(
                f"{file} has no classifier, so it can only start a training (Arch.pretrained, "
                f"fit --weights): {' and '.join(sorted(classifier))} are not in the file{addition}"
            )
        return state, []
    state = {key: value for key, value in state.items() if key not in extra_keys}
    if has_classifier:
        return state, [Difference("rest", f"the file has further layers, which are left out: {head}")]
    note = "the file has no classifier"
    if head:
        note = f"the file has another head, which is left out: {head}"
    elif part := sorted(classifier & state.keys()):
        note = f"the file has only a part of a classifier, which is left out: {_text_of(part, state)}"
    own_arrays = {key: _own_array(tensors[key]) for key in classifier}
    return state | own_arrays, [Difference("head", note)]


def _own_array(tensor: paddle.Tensor) -> Array:
    """Returns a copy of a tensor's values. Half-precision numbers become float32, as in files."""
    is_half = tensor.dtype in (paddle.float16, paddle.bfloat16)
    array: Array = (tensor.astype("float32") if is_half else tensor).numpy().copy()
    return array


def _word(key: str) -> str:
    """Returns the first word of a state key without numbers: ``block`` for ``block12.rep.0.weight``."""
    return re.sub(r"\d+", "", key.partition(".")[0])


def _text_of(keys: list[str], state: State) -> str:
    texts = [f"{key} {list(np.shape(state[key]))}" for key in keys[:_MAX_SHOWN_KEYS]]
    more = f" and {len(keys) - _MAX_SHOWN_KEYS} more" if len(keys) > _MAX_SHOWN_KEYS else ""
    return ", ".join(texts) + more
