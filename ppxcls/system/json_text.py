"""Writes JSON that every reader accepts."""

from __future__ import annotations

import json
import math
from typing import Any


def json_text(value: Any, *, indent: int | None = None, is_ascii: bool = False) -> str:
    """Returns a value as JSON. Numbers that JSON does not have, such as NaN, become null.

    Args:
        value: nested dicts, lists and plain values.
        indent: number of spaces of each level; None for one line.
        is_ascii: True to escape all other characters, such as the bytes of a file name that are not UTF-8.
    """
    return json.dumps(_without_nan(value), indent=indent, ensure_ascii=is_ascii, allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
