"""Checks the values of a YAML against type annotations, and writes the error messages."""

from __future__ import annotations

import contextlib
import math
import re
import types
import typing
from collections.abc import Container, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Annotated, Any, Literal, Protocol, Union

from ppxcls.config.paddleclas import is_harmless, unsupported_message
from ppxcls.system.errors import UserError
from ppxcls.system.paths import bounded, is_unicode
from ppxcls.system.spelling import nearest_spelling

KeyPath = tuple[str, ...]
_MAX_SHOWN_WORD = 120  # characters of a key or an unknown word in a message
_MAX_SHOWN_SOURCE = 200  # characters of a file name and a line number, or of an override
_INT64_LIMIT = 1 << 63
_LEADING_ZERO = re.compile(r"([-+]?)0+([1-9][0-9]*)")


class ConfigError(UserError):
    """The config is invalid. The message gives the place, the value, and what is allowed."""


@dataclass(frozen=True)
class ConfigPlace:
    """A place in a config: a key path, and the source of its value.

    Attributes:
        keys: key path, with list indices as decimal strings.
        sources: source of each key path: ``file:line``, or ``-o key=value`` for an override.
    """

    keys: KeyPath = ()
    sources: Mapping[KeyPath, str] = field(default_factory=dict)

    def __truediv__(self, key: str | int) -> ConfigPlace:
        return ConfigPlace((*self.keys, str(key)), self.sources)

    def __str__(self) -> str:
        return ".".join(self.keys)

    @property
    def source(self) -> str:
        """Source of this key, or of the nearest key above it; empty if there is none."""
        lengths = range(len(self.keys), -1, -1)
        return next((self.sources[self.keys[:n]] for n in lengths if self.keys[:n] in self.sources), "")

    def error(self, message: str) -> ConfigError:
        """Returns a ConfigError for this place. The message begins with the source and the key path."""
        # Each part is bounded alone, so that a long key does not hide what is allowed.
        place = (bounded(self.source, _MAX_SHOWN_SOURCE), bounded(str(self), _MAX_SHOWN_WORD))
        return ConfigError(": ".join(part for part in (*place, message) if part))


@dataclass(frozen=True)
class Bound:
    """The range of a number, for ``Annotated``."""

    gt: float = -math.inf
    ge: float = -math.inf
    lt: float = math.inf
    le: float = math.inf

    def allows(self, value: float) -> bool:
        """True if the value is in the range. NaN and infinity never are."""
        return math.isfinite(value) and self.ge <= value <= self.le and self.gt < value < self.lt

    def __str__(self) -> str:
        signs = (("above", self.gt), ("at least", self.ge), ("below", self.lt), ("at most", self.le))
        return " and ".join(f"{sign} {number:.10g}" for sign, number in signs if math.isfinite(number))


Finite = Annotated[float, Bound()]
Positive = Annotated[float, Bound(gt=0)]
NotNegative = Annotated[float, Bound(ge=0)]
Share = Annotated[float, Bound(ge=0, le=1)]
BelowOne = Annotated[float, Bound(ge=0, lt=1)]
OpenShare = Annotated[float, Bound(gt=0, lt=1)]
Count = Annotated[int, Bound(ge=1)]
CountOrZero = Annotated[int, Bound(ge=0)]
# A longer wait overflows the timers of the system, and nobody waits for more than a month.
MAX_SECONDS = 30 * 24 * 3600
Seconds = Annotated[float, Bound(gt=0, le=MAX_SECONDS)]
SecondsOrZero = Annotated[float, Bound(ge=0, le=MAX_SECONDS)]
Minutes = Annotated[float, Bound(gt=0, le=MAX_SECONDS // 60)]


def type_name(hint: Any) -> str:
    """Returns an annotation in words for an error message, such as ``an integer at least 1``."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "null"
    if origin is Annotated:
        if args[1] == Bound():
            return "a finite number"
        return f"{type_name(args[0])} {args[1]}" if isinstance(args[1], Bound) else type_name(args[0])
    if origin is Literal:
        return " or ".join(_literal_text(value) for value in args)
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(a) for a in args)
    if origin is list:
        return f"a list, each {type_name(args[0])}"
    if origin is dict:
        return f"a mapping of names, each to {type_name(args[1])}"
    if origin is tuple:
        return f"a list of {len(args)}, each {type_name(args[0])}"
    names = {
        int: "an integer",
        float: "a number",
        str: "a string",
        bool: "true or false",
        dict: "a mapping",
        list: "a list",
    }
    return "a mapping" if is_dataclass(hint) else names.get(hint, getattr(hint, "__name__", str(hint)))


def _literal_text(value: Any) -> str:
    """Returns a value of a Literal as YAML writes it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def parse_number(text: str) -> float:
    """Returns the number in a string, which may be a fraction such as PaddleClas's ``1.0/255.0``.

    YAML 1.1 reads numbers such as ``1e-3`` as strings, so this function parses them too.

    Raises:
        ValueError: the string is neither a number nor a fraction.
    """
    numerator, slash, denominator = text.partition("/")
    if _LEADING_ZERO.match(text) or not text.isascii():
        raise ValueError("a leading zero, or digits that are not ASCII")
    if not slash:
        return float(text)
    if float(denominator) == 0:
        raise ValueError("division by zero")
    return float(numerator) / float(denominator)


def _check_scalar(value: Any, hint: type, where: ConfigPlace) -> Any:
    if hint is float and isinstance(value, str):
        with contextlib.suppress(ValueError, OverflowError):
            return parse_number(value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            return float(value)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool) and abs(value) < _INT64_LIMIT:
        return value
    if hint is str and isinstance(value, str) and ("\0" in value or not is_unicode(value)):
        raise where.error(f"expected text without NUL and lone surrogates, received {shorten_value(value)}")
    if hint in (str, dict, list) and isinstance(value, hint):
        return value
    raise _mismatch(value, hint, where)


def _mismatch(value: Any, hint: Any, where: ConfigPlace) -> ConfigError:
    message = f"expected {type_name(hint)}, received {shorten_value(value)}"
    if isinstance(value, str) and (number := _LEADING_ZERO.fullmatch(value)):
        message += f"; write {number[1] or ''}{number[2]}, or 0o{number[2]} for octal"
    if where.keys and typing.get_origin(hint) is Literal and (advice := unsupported_message(where.keys[-1])):
        message += f": {advice}"
    return where.error(message)


def shorten_value(value: Any) -> str:
    """Returns a value of a config for an error message, in at most 120 characters."""
    try:
        text = "null" if value is None else repr(value)
    except ValueError:  # Python refuses to convert integers of more than 4,300 digits to text
        text = "a number of more than 4,300 digits"
    return text if len(text) < 120 else text[:117] + "..."


def check_value(value: Any, hint: Any, where: ConfigPlace) -> Any:
    """Checks a value of a YAML against a type annotation.

    Returns:
        The value, with numbers converted to the annotated type and mappings to the annotated dataclass.

    Raises:
        ConfigError: the type is wrong, or the number is out of range.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        return _check_annotated(value, args[0], args[1], where)
    if origin is Literal:
        if any(value == a and type(value) is type(a) for a in args):
            return value
        raise _mismatch(value, hint, where)
    if origin in (Union, types.UnionType):
        return _check_union(value, hint, args, where)
    if origin in (list, tuple):
        if not isinstance(value, list | tuple) or (origin is tuple and len(value) != len(args)):
            raise _mismatch(value, hint, where)
        items = [check_value(v, args[0], where / i) for i, v in enumerate(value)]
        return items if origin is list else tuple(items)
    if origin is dict:  # a notebook may have numbers as keys; those of a YAML are text
        items = check_value(value, dict, where)
        return {_text_key(key, where): check_value(v, args[1], where / str(key)) for key, v in items.items()}
    if is_dataclass(hint):
        return check_section(value, typing.cast(type, hint), where)
    return _check_scalar(value, hint, where)


def _text_key(key: Any, where: ConfigPlace) -> str:
    """Returns the key of a mapping as text. Raises ConfigError if it is neither text nor an integer."""
    if key in ("__class__", "__dict__"):  # keys become attributes of an EasyDict, which can't have these
        raise where.error(f"expected another name, received {key!r}")
    is_integer = isinstance(key, int) and not isinstance(key, bool)
    return str(key) if is_integer else str(check_value(key, str, where))


def _check_union(value: Any, hint: Any, args: tuple[Any, ...], where: ConfigPlace) -> Any:
    if value is None and type(None) in args:
        return None
    choices = [a for a in args if a is not type(None)]
    if isinstance(value, list | dict):  # only some choices can take it
        choices = [a for a in choices if _takes_items(a, type(value))] or choices
    if len(choices) == 1:  # the message of the inner check is more precise, and so is its place
        return check_value(value, choices[0], where)
    for choice in choices:
        try:
            return check_value(value, choice, where)
        except ConfigError:
            continue
    raise _mismatch(value, hint, where)


def _takes_items(hint: Any, kind: type) -> bool:
    """True if values of this annotation can be of this kind, a list or a mapping."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return not isinstance(args[1], Bound) or _takes_items(args[0], kind)
    if origin in (list, tuple) or hint is list:
        return kind is list
    return hint is Any or (kind is dict and (is_dataclass(hint) or dict in (hint, origin)))


def _check_annotated(value: Any, hint: Any, annotation: Any, where: ConfigPlace) -> Any:
    if not isinstance(annotation, Bound):
        return typing.cast(Validator, annotation).check(value, where)
    try:
        number = check_value(value, hint, where)
    except ConfigError:
        raise _mismatch(value, Annotated[hint, annotation], where) from None
    if not annotation.allows(number):
        raise _mismatch(value, Annotated[hint, annotation], where)
    return number


class Validator(Protocol):
    """An annotation beside a type in ``Annotated``, which checks the value itself."""

    def check(self, value: Any, where: ConfigPlace) -> Any:
        """Returns the checked value, or raises ConfigError."""


@dataclass(frozen=True)
class Requires:
    """Annotates a switch that this installation may be unable to turn on.

    Attributes:
        what: missing requirement, such as ``Paddle 3.0``; None if nothing is missing.
    """

    what: str | None

    def check(self, value: Any, where: ConfigPlace) -> bool:
        """Returns the switch.

        Raises:
            ConfigError: the value is no boolean, or it is true and a requirement is missing.
        """
        if check_value(value, bool, where) and self.what is not None:
            raise where.error(f"needs {self.what}")
        return bool(value)


class RegularExpression:
    """Annotates a string that must be a regular expression."""

    def check(self, value: Any, where: ConfigPlace) -> str:
        """Returns the string.

        Raises:
            ConfigError: the value is no regular expression.
        """
        pattern = str(check_value(value, str, where))
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise where.error(
                f"expected a regular expression, received {shorten_value(pattern)}: {error}"
            ) from None
        return pattern


Pattern = Annotated[str, RegularExpression()]


def matching_keys(pattern: str, keys: Iterable[str], where: ConfigPlace) -> set[str]:
    """Returns the state keys that contain a match of a regular expression.

    Raises:
        ConfigError: no key matches.
    """
    matches = {key for key in keys if re.search(pattern, key)}
    if not matches:
        raise where.error(f"pattern {pattern!r} matches no parameter")
    return matches


def unknown_word_message(word: str, allowed: list[str], what: str) -> str:
    """Returns the message for a word that is not allowed; it suggests the nearest spelling."""
    if (message := unsupported_message(word, in_section=what == "key")) is not None:
        return message
    nearest_word = nearest_spelling(str(word), allowed)
    suggestion = f" (did you mean {nearest_word!r}?)" if nearest_word is not None else ""
    word_text = bounded(repr(word), _MAX_SHOWN_WORD)
    return f"unknown {what} {word_text}{suggestion}; allowed: {', '.join(allowed) or 'none'}"


def list_index(items: list[Any], key: str, where: ConfigPlace, what: str) -> int:
    """Returns the index of a list item. Its number takes precedence over a component's name.

    Args:
        items: the list.
        key: a number, or the name of a component that occurs once.
        where: place for the error.
        what: words for the item in the error, such as ``list item``.

    Raises:
        ConfigError: no item has this number or name, or several have the name.
    """
    if is_index(key) and int(key) < len(items):
        return int(key)
    names = [str(next(iter(item), "")) if isinstance(item, dict) else str(item) for item in items]
    if names.count(key) == 1:
        return names.index(key)
    raise where.error(unknown_word_message(key, [*map(str, range(len(items))), *names], what))


def component_of(item: Any, key: str) -> Any:
    """Returns a list item that is a component's name alone as ``{name: null}``; another item unchanged.

    Args:
        item: the list item.
        key: the component's name; an index changes nothing.
    """
    return {key: None} if item == key and not is_index(key) else item


def is_index(key: str) -> bool:
    """True if a key is the number of a list item."""
    return key.isascii() and key.isdecimal() and len(key) < 10


def drop_unused_keys(values: Mapping[str, Any], supported_keys: Container[str]) -> dict[str, Any]:
    """Returns the values without the keys of PaddleClas that ask for what happens here anyway."""
    return {k: v for k, v in values.items() if k in supported_keys or not is_harmless(k, v)}


def check_section(value: Any, section: type, where: ConfigPlace) -> Any:
    """Checks a mapping against a dataclass, field by field, and creates the instance.

    Raises:
        ConfigError: the value is not a mapping, a key is unknown or missing, or the value of a key is
            invalid.
    """
    value = check_value(value, dict, where)
    hints = typing.get_type_hints(section, include_extras=True)
    hints = {f.name: hints[f.name] for f in fields(section) if f.init}
    value = drop_unused_keys(value, hints)
    for key in value:
        if key not in hints:
            raise (where / key).error(unknown_word_message(key, list(hints), "key"))
    for f in fields(section):
        if f.name in hints and f.name not in value and f.default is MISSING and f.default_factory is MISSING:
            raise where.error(f"the key {f.name} is missing: expected {type_name(hints[f.name])}")
    return section(**{key: check_value(v, hints[key], where / key) for key, v in value.items()})
