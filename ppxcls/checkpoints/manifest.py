"""What a checkpoint's manifest may contain. A stranger may have written it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ppxcls.system.json_text import is_count, is_number

_MAX_TEXT_LENGTH = 1 << 22  # characters; a config is the longest text
_MAX_LIST_LENGTH = 16
_SHA256 = re.compile(r"[0-9a-f]{64}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_TEXT_LENGTH


def _is_text_or_none(value: Any) -> bool:
    return value is None or _is_text(value)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_list_of_texts_or_none(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(map(_is_text, value)))


def _is_number_or_none(value: Any) -> bool:
    return value is None or is_number(value)


def _has_plain_values(value: Any) -> bool:
    """True for plain values by name, or short lists of numbers: Paddle's loss scale is a list of one."""
    return isinstance(value, dict) and all(
        item is None
        or isinstance(item, int | float | str)
        or (isinstance(item, list) and len(item) <= _MAX_LIST_LENGTH and all(map(_is_number_or_none, item)))
        for item in value.values()
    )


def _has_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_number_or_none, value.values()))


def _is_best(value: Any) -> bool:
    """True for the best evaluation: empty, or with its metric, value and epoch."""
    if not isinstance(value, dict) or not value:
        return value == {}
    return (
        _is_text(value.get("metric"))
        and _is_number_or_none(value.get("value", "missing"))
        and is_count(value.get("epoch"))
        and _is_number_or_none(value.get("loss"))
    )


_COUNT, _TEXT = (is_count, "a whole number from 0"), (_is_text, "a text")
_TEXT_OR_NULL = _is_text_or_none, "a text or null"
# The facts about a run. Each may be missing, as in checkpoints of older versions.
_FACTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("ppxcls", "paddle", "config", "train_list", "eval_list", "best_metric"), _TEXT),
    **dict.fromkeys(("run", "started_from"), _TEXT_OR_NULL),
    **dict.fromkeys(("samples", "global_batch", "update_freq", "steps_per_epoch", "world_size"), _COUNT),
    # ``ppxcls average`` writes the names of the checkpoints in a mean.
    "averaged_from": (_is_list_of_texts_or_none, "a list of texts or null"),
    "class_names": (_is_list_of_texts_or_none, "a list of texts or null"),
    # ``ppxcls fit`` trains on the list of evaluation too, after it has chosen the result.
    "trained_on_eval_list": (_is_bool, "true or false"),
}
_PROGRESS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        ("epoch", "batches_done", "step", "skipped", "skipped_total", "stale_evaluations"), _COUNT
    ),
    **dict.fromkeys(("best", "improvement"), (_is_best, "a metric, its value and its epoch")),
    "totals": (_has_numbers, "numbers by name"),
    "scaler": (_has_plain_values, "plain values by name"),
    "plateau": (_has_numbers, "numbers by name"),
    "started": _TEXT,
}


def check_manifest(manifest: Mapping[str, Any], extensions: tuple[str, ...]) -> None:
    """Checks the types and ranges of all values that the package reads. Unknown keys are not checked.

    Args:
        manifest: content of the manifest.
        extensions: extensions of all files that can contain a part.

    Raises:
        ValueError: a value is invalid. The message names its key, and not the value.
    """
    parts, progress = manifest.get("parts"), manifest.get("progress")
    if not isinstance(parts, dict) or not isinstance(progress, dict):
        raise ValueError("expected 'parts' and 'progress' as objects")
    for extension, part in parts.items():
        if extension not in extensions:
            raise ValueError("an unknown extension in 'parts'")
        is_valid = isinstance(part, dict) and is_count(part.get("size"))
        if not is_valid or not _SHA256.fullmatch(str(part.get("sha256"))):
            raise ValueError(f"expected a size and a SHA-256 as 'parts.{extension}'")
    for place, values, rules in (("", manifest, _FACTS), ("progress.", progress, _PROGRESS)):
        for key, (is_valid_value, words) in rules.items():
            if key in values and not is_valid_value(values[key]):
                raise ValueError(f"expected {words} as '{place}{key}'")
