"""Ranges of the keys that ``ppxcls tune`` searches, such as ``loguniform(1e-4,1e-1)``."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ppxcls.config.checks import ConfigError
from ppxcls.config.yaml_values import read_yaml, write_yaml

_FORMS = "loguniform(a,b), uniform(a,b), int(a,b) or choice(x,y,...)"
_RANGE = re.compile(r"\s*(loguniform|uniform|int|choice)\s*\((.*)\)\s*", re.DOTALL)
_DIGITS = 4  # significant digits of a value


@dataclass(frozen=True)
class SearchRange:
    """The values that a key may have.

    Attributes:
        key: path of the key in the config, such as ``Optimizer.lr.learning_rate``.
        kind: ``loguniform``, ``uniform``, ``int`` or ``choice``.
        low, high: smallest and largest parameter. For a choice, they are indices of ``choices``.
        choices: values of a choice; empty for other kinds.
    """

    key: str
    kind: str
    low: float
    high: float
    choices: tuple[Any, ...] = ()

    @property
    def text(self) -> str:
        """The range as it is written on the command line, in one form."""
        if self.choices:
            return f"choice({_one_line(list(self.choices))[1:-1]})"
        return f"{self.kind}({self.low!r},{self.high!r})"

    @property
    def probes(self) -> list[float]:
        """Parameters at which the config is checked before the first trial."""
        if self.choices:
            return [float(index) for index in range(len(self.choices))]
        middle = math.sqrt(self.low * self.high) if self.kind == "loguniform" else (self.low + self.high) / 2
        return [self.low, middle, self.high]

    def value(self, parameter: float) -> Any:
        """Returns the value of the key for a parameter of the search."""
        if self.choices:
            return self.choices[int(parameter)]
        if self.kind == "int":
            return int(parameter)
        return min(max(float(f"{parameter:.{_DIGITS}g}"), self.low), self.high)

    def override(self, parameter: float) -> str:
        """Returns the override that gives the key its value."""
        return f"{self.key}={self.value_text(parameter)}"

    def value_text(self, parameter: float) -> str:
        """Returns the value for a parameter as YAML in one line."""
        return _one_line([self.value(parameter)])[1:-1]

    def has(self, parameter: Any) -> bool:
        """True if a number is a parameter of this range."""
        is_whole = self.kind not in ("int", "choice") or parameter == int(parameter)
        return is_whole and self.low <= parameter <= self.high


def _one_line(values: list[Any]) -> str:
    return write_yaml(values, is_one_line=True)


def parse_ranges(texts: Sequence[str]) -> list[SearchRange]:
    """Parses ``KEY=RANGE`` texts.

    Raises:
        ConfigError: there are none, a text is not a range, a range is empty, or a key contains another one.
    """
    if not texts:
        raise ConfigError(f"expected at least one --set KEY=RANGE, with a range such as {_FORMS}")
    ranges = [_parse(text) for text in texts]
    for index, first in enumerate(ranges):
        for second in ranges[index + 1 :]:
            names = sorted((first.key, second.key), key=len)
            if f"{names[1]}.".startswith(f"{names[0]}."):
                raise ConfigError(f"--set {second.key}: {names[0]} is searched twice")
    return ranges


def _parse(text: str) -> SearchRange:
    key, equals, range_text = text.partition("=")
    key = key.strip()
    where = f"--set {text}"
    if not equals or not all(key.split(".")):
        raise ConfigError(f"{where}: expected KEY.KEY=RANGE, with a range such as {_FORMS}")
    match = _RANGE.fullmatch(range_text)
    if match is None:
        raise ConfigError(f"{where}: expected {_FORMS}, received {range_text!r}")
    kind, content = match.groups()
    if kind == "choice":
        return _parse_choice(key, content, where)
    words = content.split(",")
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if len(numbers) != 2 or not all(map(math.isfinite, numbers)):
        raise ConfigError(f"{where}: expected two numbers in {kind}(a,b), received {content!r}")
    low, high = numbers
    if low >= high:
        raise ConfigError(f"{where}: expected a smaller first number, received the empty range {range_text}")
    if kind == "loguniform" and low <= 0:
        raise ConfigError(f"{where}: expected numbers above 0 in loguniform(a,b), received {words[0]}")
    if kind == "int" and (low != int(low) or high != int(high) or max(-low, high) > 1 << 53):
        raise ConfigError(f"{where}: expected whole numbers in int(a,b), received {content!r}")
    return SearchRange(key, kind, low, high)


def _parse_choice(key: str, content: str, where: str) -> SearchRange:
    values = read_yaml(f"[{content}]", where)
    # Without this, 1e-3 would be a word: numbers of YAML have a point.
    choices = tuple(_number_of(value) for value in values)
    different_choices = {_one_line([value]) for value in choices}
    if len(choices) < 2 or len(different_choices) < len(choices):
        raise ConfigError(f"{where}: expected at least two different values in choice(x,y,...)")
    return SearchRange(key, "choice", 0, len(choices) - 1, choices)


def _number_of(value: Any) -> Any:
    """Returns the number that a word such as ``1e-3`` writes; any other value as it is."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?[0-9]+[eE][-+]?[0-9]+", value):
        return float(value)
    return value
