"""Writes JSON that every reader accepts, and reads only such JSON."""

from __future__ import annotations

import json
import math
from typing import Any

_MAX_DIGITS = 20  # digits of an integer of 64 bits, with its sign
_MAX_FLOAT_CHARACTERS = 400  # the largest float without an exponent, which a program may write, has 311
_MAX_DEPTH = 64  # lists and objects within each other; an exported program has 13


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


def read_json(data: bytes, *, is_nan_null: bool = False) -> Any:
    """Returns the value of a JSON text, which a stranger may have written.

    A byte order mark is skipped. Unlike ``json.loads``, it refuses what not every reader understands alike:
    ``NaN``, numbers that a float can't represent, integers of more than 64 bits, and repeated keys. It also
    refuses lists and objects that are nested more deeply than functions that call themselves can follow.

    Args:
        data: text in UTF-8.
        is_nan_null: True to read ``NaN`` and ``Infinity`` as null. ppxcls up to 0.12.0 wrote them.

    Raises:
        ValueError: the text is not such a JSON text. The message has no part of the text.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start + 1:,}") from None
    try:
        content = json.loads(
            text,
            parse_constant=_null if is_nan_null else _refuse_constant,
            parse_float=_finite_number,
            parse_int=_small_integer,
            object_pairs_hook=_unique_keys,
        )
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text.strip() else ""
        raise ValueError(f"not JSON ({error.msg}, {line}column {error.colno})") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if text.count("[") + text.count("{") > _MAX_DEPTH:
        _check_depth(content)
    return content


def is_count(value: Any, largest: int = 1 << 53) -> bool:
    """True for a whole number from 0. By default, the largest is what a float can represent exactly."""
    return type(value) is int and 0 <= value <= largest


def is_number(value: Any) -> bool:
    """True for a number. JSON's true and false are none."""
    return type(value) in (int, float)


def _check_depth(content: Any) -> None:
    parts = [content]
    for _ in range(_MAX_DEPTH + 1):
        parts = [
            inner
            for part in parts
            if isinstance(part, (list, dict))
            for inner in (part.values() if isinstance(part, dict) else part)
        ]
    if parts:
        raise ValueError("nested too deeply")


def _null(_: str) -> None:
    return None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _finite_number(text: str) -> float:
    if len(text) > _MAX_FLOAT_CHARACTERS:
        raise ValueError("a number has too many digits")
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def _small_integer(text: str) -> int:
    if len(text) > _MAX_DIGITS or not -(1 << 63) <= int(text) < 1 << 63:
        raise ValueError("an integer is too large")
    return int(text)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key is repeated")
    return values
