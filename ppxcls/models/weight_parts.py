"""Finds the weights of a network in a file that has more than these.

Training programs store several states in one file, and wrappers put a prefix before each key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppxcls.checkpoints.files import CheckpointError, State
from ppxcls.checkpoints.safe_states import PARAMETER_NAMES_KEY
from ppxcls.checkpoints.torch_reader import OpaqueValue
from ppxcls.models.torch_weights import is_classifier_name
from ppxcls.system.logs import logger, warn_once

# Names of a part, without separators and capitals, in the order in which they are taken. timm takes the
# average first.
_NETWORK_NAMES = (
    *("statedict", "model", "modelstatedict", "modelstate", "network", "net", "module", "params"),
    *("weights", "state"),
)
_AVERAGE_WORDS = ("ema", "swa", "averaged", "average", "shadow")
_AVERAGE_NAMES = tuple(
    name
    for word in _AVERAGE_WORDS
    for part in (*_NETWORK_NAMES, "")
    for name in (f"{part}{word}", f"{word}{part}", f"model{word}{part}")
)
_MAX_LEVELS = 3  # levels of dictionaries in dictionaries
_MAX_SHOWN_PARTS = 12  # parts in a message


def network_part(tree: Any, file: Path) -> State:
    """Returns the weights of the network in a file's content, and logs which part was taken.

    An average of the weights (EMA) is preferred, as in timm.

    Args:
        tree: arrays by state key, or a dictionary that contains such dictionaries.
        file: name of the file, for messages.

    Raises:
        CheckpointError: there are no arrays by name, or several sets of unknown names.
    """
    path: list[str] = []
    for _ in range(_MAX_LEVELS):
        if not isinstance(tree, Mapping):
            break
        states = {str(key): part for key, part in tree.items() if _has_states(part)}
        name = _named_part(states)
        if name is None and not _is_state(tree):
            name = _only_part(states, file)
        if name is None:
            break
        path.append(name)
        _log_choice(".".join(path), name, tree, file)
        tree = states[name]
    if not _is_state(tree):
        raise CheckpointError(f"{file}: expected arrays by state key, received {_content(tree)}")
    arrays = {str(key): _array(part) for key, part in tree.items()}
    return {key: part for key, part in arrays.items() if _is_array(part) or key == PARAMETER_NAMES_KEY}


def without_prefix(state: State, keys: Collection[str], file: Path) -> State:
    """Returns arrays by a model's state keys if most of these keys have the same prefix in the file.

    Wrappers write such prefixes: ``module.``, ``_orig_mod.``, ``model.``. If two prefixes fit equally well,
    one with the name of an average is taken.

    Args:
        state: arrays by key.
        keys: state keys of the model.
        file: name of the file, for messages.

    Raises:
        CheckpointError: the file has two sets of weights, and none of them is an average.
    """
    counts: Counter[str] = Counter()
    for key in state:
        words = key.split(".")
        for i in range(1, len(words)):
            if ".".join(words[i:]) in keys:
                counts[".".join(words[:i]) + "."] += 1
    count = max(counts.values(), default=0)
    if count < max(1, len(keys) / 2) or sum(key in keys for key in state) >= count:
        return state
    prefix = _only_prefix([name for name in counts if counts[name] == count], state, file)
    arrays = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    outer_arrays = _beside(state, prefix, keys, has_classifier=any(map(is_classifier_name, arrays)))
    arrays |= {name: state[key] for key, name in outer_arrays.items() if name not in arrays}
    other_keys = [
        key
        for key in state
        if not key.startswith(prefix) and key not in outer_arrays and key != PARAMETER_NAMES_KEY
    ]
    if other_keys:
        excerpt = ", ".join(other_keys[:_MAX_SHOWN_PARTS])
        more = ", ..." if len(other_keys) > _MAX_SHOWN_PARTS else ""
        warn_once(f"{file}: the {count} tensors of {prefix}* are used; the file also has {excerpt}{more}")
    return arrays


def _only_prefix(prefixes: Sequence[str], state: State, file: Path) -> str:
    """Returns the prefix to take of those that fit equally well."""
    averages = [name for name in prefixes if any(word in name.lower() for word in _AVERAGE_WORDS)]
    candidates = averages or prefixes
    first = candidates[0]
    for rival_prefix in candidates[1:]:  # one network that has two names is saved twice
        if not _are_equal(state, first, rival_prefix):
            names = ", ".join(f"{name}*" for name in candidates[:_MAX_SHOWN_PARTS])
            raise CheckpointError(
                f"{file}: expected one set of weights, received {names}; save one of them alone"
            )
    return first


def _are_equal(state: State, first: str, second: str) -> bool:
    arrays = {key.removeprefix(first): value for key, value in state.items() if key.startswith(first)}
    return all(np.array_equal(value, state.get(f"{second}{key}", np.nan)) for key, value in arrays.items())


def _beside(state: State, prefix: str, keys: Collection[str], *, has_classifier: bool) -> dict[str, str]:
    """Returns the keys of a classifier beside the wrapped network, with their names in the network.

    The nearest one is taken, such as ``model.classifier`` beside ``model.backbone``, and ``fc`` only if there
    is none.
    """
    words = prefix.rstrip(".").split(".")
    names: dict[str, str] = {}
    for i in reversed(range(len(words))):
        outer = "".join(f"{word}." for word in words[:i])
        inner_names = {
            key: key.removeprefix(outer)
            for key in state
            if key.startswith(outer) and not key.startswith(prefix)
        }
        named_keys = {
            key: name
            for key, name in inner_names.items()
            if name in keys or (is_classifier_name(name) and not has_classifier)
        }
        names |= {key: name for key, name in named_keys.items() if name not in names.values()}
        has_classifier = has_classifier or any(map(is_classifier_name, names.values()))
    return names


def _array(part: Any) -> Any:
    """Returns the array of a tensor. Paddle pickles a tensor as a pair of name and array."""
    return part[1] if isinstance(part, tuple) and len(part) == 2 and _is_array(part[1]) else part


def _is_array(part: Any) -> bool:
    return isinstance(part, np.ndarray | np.generic)


def _is_state(tree: Any) -> bool:
    return isinstance(tree, Mapping) and any(
        isinstance(key, str) and isinstance(_array(part), np.ndarray) for key, part in tree.items()
    )


def _has_states(part: Any, levels: int = _MAX_LEVELS - 1) -> bool:
    """True if a part is a state by names, or contains one.

    Args:
        part: value in the file.
        levels: number of levels of dictionaries below the part that are searched.
    """
    if _is_state(part):
        return True
    return levels > 0 and isinstance(part, Mapping) and any(_has_states(p, levels - 1) for p in part.values())


def _plain_name(name: str) -> str:
    """Returns a name without separators and capitals."""
    return "".join(character for character in name.lower() if character.isalnum())


def _named_part(states: Mapping[str, Any]) -> str | None:
    """Returns the name of the part to take if it is the usual name of an average or of a network."""
    names = {
        _plain_name(name): name for name in reversed(list(states))
    }  # the first of two equal names counts
    return next((names[name] for name in (*_AVERAGE_NAMES, *_NETWORK_NAMES) if name in names), None)


def _only_part(states: Mapping[str, Any], file: Path) -> str | None:
    """Returns the name of the part that is no optimizer; None if there is none."""
    if len(states) > 1 and not any(_is_optimizer(name) for name in states):
        text = ", ".join(f"{name} ({_size(part)})" for name, part in states.items())
        raise CheckpointError(f"{file}: expected one set of weights, received {text}; save one of them alone")
    return next((name for name in states if not _is_optimizer(name)), None)


def _is_optimizer(name: str) -> bool:
    return any(word in name.lower() for word in ("optim", "scaler", "sched"))


def _log_choice(path: str, name: str, tree: Mapping[Any, Any], file: Path) -> None:
    other_parts = {str(key): part for key, part in tree.items() if str(key) != name}
    kind = "averaged weights" if _plain_name(name) in _AVERAGE_NAMES else "weights"
    rest = ", ".join(
        f"{key} ({_size(part)})" if _is_state(part) else key
        for key, part in list(other_parts.items())[:_MAX_SHOWN_PARTS]
    )
    more = ", ..." if len(other_parts) > _MAX_SHOWN_PARTS else ""
    text = f"{file}: {path} ({kind}) is used" + (f"; the file also has {rest}{more}" if rest else "")
    has_other_weights = any(_has_states(part) and not _is_optimizer(key) for key, part in other_parts.items())
    (warn_once if has_other_weights else logger.info)(text)


def _size(part: Any) -> str:
    count = sum(isinstance(_array(value), np.ndarray) for value in part.values())
    return f"{count} tensors" if count else "no tensors"


def _content(tree: Any) -> str:
    """Describes what a file has in the place of weights."""
    if isinstance(tree, OpaqueValue):
        return f"an object of {tree.name}; save its state_dict() instead"
    if not isinstance(tree, Mapping):
        return type(tree).__name__
    parts = [
        f"{key} (an object of {part.name})" if isinstance(part, OpaqueValue) else str(key)
        for key, part in list(tree.items())[:_MAX_SHOWN_PARTS]
    ]
    return f"a dictionary of {', '.join(parts)}" if parts else "an empty dictionary"
