"""Converts the keys and shapes of torch's weights to Paddle's."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import numpy as np

from ppxcls.checkpoints.files import State
from ppxcls.checkpoints.safe_states import PARAMETER_NAMES_KEY
from ppxcls.system.logs import warn_once

# Names that torch's programs give to the last linear layer. A number follows if it is in a sequence.
_CLASSIFIER = re.compile(r"(?:last_linear|fc|classifier|head|head\.fc)(?:\.\d+)?\.(weight|bias)")

_UNUSED_PREFIX = "adjust_channel."  # layer of DeepfakeBench's Xception


def is_of_paddle(keys: Collection[str]) -> bool:
    """True if keys are those of Paddle, so that this package or PaddleClas wrote the file."""
    return PARAMETER_NAMES_KEY in keys or any(key.endswith(("._mean", "._variance")) for key in keys)


def from_torch(state: State) -> State:
    """Renames batch-norm statistics to Paddle's names, and transposes linear weights to [in, out].

    Pointwise convolutions have two dimensions in the oldest files of Xception.
    """
    if is_of_paddle(state):
        return state
    paddle_state = {}
    for key, value in state.items():
        if key.endswith("num_batches_tracked"):
            continue
        paddle_key = re.sub(r"\.running_var$", "._variance", re.sub(r"\.running_mean$", "._mean", key))
        if value.ndim != 2:
            paddle_state[paddle_key] = value
        elif key.endswith(".pointwise.weight"):
            paddle_state[paddle_key] = value[:, :, None, None]
        else:
            paddle_state[paddle_key] = np.ascontiguousarray(value.T)
    return paddle_state


def is_classifier_name(key: str) -> bool:
    """True if a key is one that torch's programs give to the weight or bias of the last linear layer."""
    return _CLASSIFIER.fullmatch(key) is not None


def with_classifier_name(state: State, keys: Collection[str], classifier: Collection[str]) -> State:
    """Returns a state in which the only linear classifier has the network's name of it.

    Other layers of a head stay as they are, so that they are named.

    Args:
        state: arrays by state key.
        keys: state keys of the network.
        classifier: state keys of its classifier, a weight and a bias.
    """
    if not classifier or any(key in state for key in classifier):
        return state
    matches = {key: match for key in state if key not in keys and (match := _CLASSIFIER.fullmatch(key))}
    layers = {key.rpartition(".")[0] for key in matches}
    if len(matches) != 2 or len(layers) != 1:
        return state
    ends = {name.rpartition(".")[2]: name for name in classifier}
    names = {key: ends[match[1]] for key, match in matches.items()}
    return {names.get(key, key): value for key, value in state.items()}


def without_unused_layers(state: State, classifier: Collection[str], file: Path) -> State:
    """Returns a state without the layers that detectors of forgeries save beside a classifier.

    DeepfakeBench's Xception always has a layer ``adjust_channel``, and uses it in place of the classifier's
    features only in other detectors. So it is left out if there is a classifier, and a warning says so.

    Args:
        state: arrays by state key.
        classifier: state keys of the network's classifier.
        file: name of the file, for messages.
    """
    unused_keys = [key for key in state if key.startswith(_UNUSED_PREFIX)]
    if not unused_keys or not all(key in state for key in classifier):
        return state
    warn_once(
        f"{file}: the {len(unused_keys)} tensors of {_UNUSED_PREFIX}* are left out, because the classifier "
        "does not use them"
    )
    return {key: value for key, value in state.items() if key not in unused_keys}
