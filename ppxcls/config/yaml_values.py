"""Reads and writes YAML for configs: a line for every key, numbers of YAML 1.2, and PaddleClas's ``None``.

PyYAML reads YAML 1.1, in which ``010`` is 8, ``1:30`` is 90 and ``2026-11-25`` is a date. Here these are
strings. A key that expects a number refuses them, and a key that expects a string gets the written text.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

from ppxcls.config.checks import ConfigError, KeyPath

_MAX_DEPTH, _MAX_KEYS = 50, 20_000  # limits, because an alias can repeat or contain itself
_TAG_PREFIX = "tag:yaml.org,2002:"
_NUMBERS_AND_NULL = (
    ("int", r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0o[0-7]+|0b[01_]+)", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("null", r"~|null|Null|NULL|None|", "~nN\0"),
)


def _with_resolvers(kind: type[Any]) -> type[Any]:
    """Gives a class the resolvers of plain scalars that the module's docstring describes.

    PyYAML's resolvers of booleans and merge keys stay.
    """
    replaced_tags = {_TAG_PREFIX + name for name in ("int", "float", "null", "timestamp")}
    other_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in replaced_tags]
        for first, resolvers in kind.yaml_implicit_resolvers.items()
    }
    kind.yaml_implicit_resolvers = other_resolvers
    for name, pattern, first in _NUMBERS_AND_NULL:
        characters = ["" if c == "\0" else c for c in first]  # "" is the first character of the empty string
        kind.add_implicit_resolver(_TAG_PREFIX + name, re.compile(f"(?:{pattern})$"), characters)
    return kind


@_with_resolvers
class _Loader(yaml.SafeLoader):
    pass


@_with_resolvers
class _Dumper(yaml.SafeDumper):
    pass


_CONSTRUCTOR = _Loader("")


def read_yaml(text: str, name: str, sources: dict[KeyPath, str] | None = None) -> Any:
    """Returns the value of a YAML text.

    Args:
        text: YAML text.
        name: name of the file or the override, for error messages.
        sources: dictionary to fill with ``name:line`` of every key path; None if line numbers are not useful.

    Raises:
        ConfigError: the text is not valid YAML, a key is written twice, or the text is nested too deeply.
    """
    document = _Document(name, sources)
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise document.error(
            getattr(error, "problem_mark", None), f"not valid YAML: {_reason(error)}"
        ) from None
    except RecursionError:
        raise ConfigError(f"{name}: nested too deeply") from None
    return None if node is None else document.value(node, ())


def write_yaml(value: Any, *, is_one_line: bool = False) -> str:
    """Returns the YAML of plain values. ``read_yaml`` reads it back to the same values.

    Args:
        value: plain values.
        is_one_line: True to write a list or a mapping in one line, without its end.
    """
    options: dict[str, Any] = {"default_flow_style": True, "width": math.inf} if is_one_line else {}
    text = str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **options))
    return text.removesuffix("\n") if is_one_line else text


class _Document:
    """Turns nodes into values. An alias is a node like any other, so a repeated value counts each time."""

    def __init__(self, name: str, sources: dict[KeyPath, str] | None) -> None:
        self._name = name
        self._sources = sources
        self._count = 0

    def error(self, mark: Any, message: str) -> ConfigError:
        """Returns an error with the file and, if lines are recorded, the line."""
        line = f":{mark.line + 1}" if mark is not None and self._sources is not None else ""
        return ConfigError(f"{self._name}{line}: {message}")

    def value(self, node: yaml.Node, keys: KeyPath) -> Any:
        """Returns the plain value of a node, and records the line of every key path below it."""
        self._count_one(len(keys))
        self._record(keys, node)
        if isinstance(node, yaml.MappingNode):
            mapping = {}
            for key, (key_node, value_node) in self._pairs(node, keys).items():
                mapping[key] = self.value(value_node, (*keys, key))
                # An anchor stands before its aliases, and the value is written at the anchor.
                is_alias = value_node.start_mark.index < key_node.start_mark.index
                self._record((*keys, key), value_node if is_alias else key_node)
            return mapping
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*keys, str(i))) for i, item in enumerate(node.value)]
        try:
            return _CONSTRUCTOR.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            raise self.error(node.start_mark, f"{'.'.join(keys)}: {_reason(error)}") from None

    def _pairs(
        self, node: yaml.MappingNode, keys: KeyPath, depth: int = 0
    ) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Returns the key and value nodes of a mapping by key.

        A mapping's own keys take precedence over the keys that it merges by ``<<``.
        """
        merged_pairs: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        own_pairs: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key_node, value_node in node.value:
            self._count_one(len(keys) + depth)
            if key_node.tag == f"{_TAG_PREFIX}merge":
                for source in reversed(
                    value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                ):
                    if not isinstance(source, yaml.MappingNode):
                        raise self.error(
                            key_node.start_mark, f"{'.'.join((*keys, '<<'))}: expected a mapping to merge"
                        )
                    merged_pairs |= self._pairs(source, keys, depth + 1)
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.error(key_node.start_mark, f"{'.'.join(keys)}: expected a word as key")
            if key_node.value in own_pairs:
                path = ".".join((*keys, key_node.value))
                raise self.error(key_node.start_mark, f"{path}: written twice in the same mapping")
            own_pairs[key_node.value] = (key_node, value_node)
        return {**merged_pairs, **own_pairs}

    def _count_one(self, depth: int) -> None:
        self._count += 1
        if depth > _MAX_DEPTH or self._count > 2 * _MAX_KEYS:
            limits = f"nested more than {_MAX_DEPTH} deep or more than {_MAX_KEYS} keys"
            raise ConfigError(f"{self._name}: {limits}: anchors that repeat themselves?")

    def _record(self, keys: KeyPath, node: yaml.Node) -> None:
        if keys and self._sources is not None:
            self._sources[keys] = f"{self._name}:{node.start_mark.line + 1}"


def _reason(error: Exception) -> str:
    """Returns PyYAML's own message, in one line."""
    return getattr(error, "problem", None) or " ".join(str(error).split())
