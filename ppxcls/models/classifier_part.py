"""Tells a network's classifier from its trunk, and the head of a file of weights from the rest."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import paddle
from paddle import nn

from ppxcls.checkpoints.files import CheckpointError, State

_MAX_SHOWN_KEYS = 4  # keys in a message


@dataclass(frozen=True)
class FittingPart:
    """The arrays of a file that a network may use.

    Attributes:
        state: arrays by state key, without another head.
        absent_keys: keys of the network's classifier that are not in the state.
        notes: descriptions of what the file has in place of the classifier; empty if it has one.
    """

    state: State
    absent_keys: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


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
    state: State, model: nn.Layer, file: Path, *, keep_trunk: bool, head: str = ""
) -> FittingPart:
    """Leaves out the head of a file if it is another one than the network's classifier.

    Args:
        state: arrays by state key.
        model: network that will use them.
        file: name of the file, for messages.
        keep_trunk: True if the network may keep its own classifier.
        head: description of layers of the file that are not in the state; empty if there are none.

    Raises:
        CheckpointError: the file has no classifier, but everything else, and ``keep_trunk`` is false.
    """
    tensors, classifier = state_tensors(model), classifier_keys(model)
    absent_keys = {key for key in classifier if key not in state}
    trunk_words = {_word(key) for key in tensors if key not in classifier}
    extra_keys = [key for key in state if key not in tensors and _word(key) not in trunk_words]
    if not extra_keys and not absent_keys:
        return FittingPart(state)
    if not keep_trunk:
        is_trunk = absent_keys == classifier and all(key in state for key in tensors if key not in classifier)
        if not is_trunk:
            return FittingPart(state)
        head = head or _text_of(extra_keys, state)
        raise CheckpointError(
            f"{file} has no classifier, so it can only start a training (Arch.pretrained, fit --weights): "
            f"{' and '.join(sorted(absent_keys))} are not in the file"
            + (f"; its head is another one: {head}" if head else "")
        )
    head = head or _text_of(extra_keys, state)
    if not absent_keys and not head:
        return FittingPart(state)
    skipped_keys = {*extra_keys, *(classifier if absent_keys else ())}
    note = f"the file has another head, which is left out: {head}" if head else "the file has no classifier"
    return FittingPart(
        {key: value for key, value in state.items() if key not in skipped_keys},
        classifier if absent_keys else set(),
        [note] if absent_keys else [],
    )


def _word(key: str) -> str:
    """Returns the first word of a state key without numbers: ``block`` for ``block12.rep.0.weight``."""
    return re.sub(r"\d+", "", key.partition(".")[0])


def _text_of(keys: list[str], state: State) -> str:
    texts = [f"{key} {list(np.shape(state[key]))}" for key in keys[:_MAX_SHOWN_KEYS]]
    more = f" and {len(keys) - _MAX_SHOWN_KEYS} more" if len(keys) > _MAX_SHOWN_KEYS else ""
    return ", ".join(texts) + more
