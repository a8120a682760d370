"""YAML as configs need it: a line for every key, numbers of YAML 1.2, and PaddleClas's ``None``.

YAML 1.1, which PyYAML reads, takes ``010`` for 8, ``1:30`` for 90 and ``2026-11-25`` for a date. Here they
are strings: a key that wants a number refuses them, and a key that wants a string gets what is written.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from ppxcls.config.checks import ConfigError, KeyPath

_MAX_DEPTH, _MAX_KEYS = 50, 20_000  # limits, because an alias can repeat or contain itself
_PREFIX = "tag:yaml.org,2002:"
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
    """The class with the resolvers of plain scalars that are described above; PyYAML's for booleans and merge keys stay."""
    replaced = {_PREFIX + name for name in ("int", "float", "null", "timestamp")}
    kept = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in replaced]
        for first, resolvers in kind.yaml_implicit_resolvers.items()
    }
    kind.yaml_implicit_resolvers = kept
    for name, pattern, first in _NUMBERS_AND_NULL:
        characters = ["" if c == "\0" else c for c in first]  # the empty string begins with no character
        kind.add_implicit_resolver(_PREFIX + name, re.compile(f"(?:{pattern})$"), characters)
    return kind


@_with_resolvers
class _Loader(yaml.SafeLoader):
    pass


@_with_resolvers
class _Dumper(yaml.SafeDumper):
    pass


_CONSTRUCTOR = _Loader("")


def read_yaml(text: str, name: str, sources: dict[KeyPath, str] | None = None) -> Any:
    """The value of a YAML text.

    Args:
        text: the YAML.
        name: of the file or the override, for error messages.
        sources: filled with ``name:line`` of every key path; None if the text has no lines worth naming.

    Raises:
        ConfigError: it is not valid YAML, a key is written twice, or it is nested too deeply.
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


def write_yaml(value: Any) -> str:
    """The YAML of plain values, which ``read_yaml`` reads back to the same values."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


class _Document:
    """Turns nodes into values. An alias is a node like any other, so what it repeats is counted each time."""

    def __init__(self, name: str, sources: dict[KeyPath, str] | None) -> None:
        self._name, self._sources = name, sources
        self._count = 0

    def error(self, mark: Any, message: str) -> ConfigError:
        """An error that names the file and, if there are lines, the line."""
        line = f":{mark.line + 1}" if mark is not None and self._sources is not None else ""
        return ConfigError(f"{self._name}{line}: {message}")

    def value(self, node: yaml.Node, keys: KeyPath) -> Any:
        """The plain value of a node; records the line of every key path below it."""
        self._count_one(len(keys))
        self._record(keys, node)
        if isinstance(node, yaml.MappingNode):
            mapping = {}
            for key, (key_node, value_node) in self._pairs(node, keys).items():
                mapping[key] = self.value(value_node, (*keys, key))
                self._record((*keys, key), key_node)
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
        """Key and value nodes by key. A mapping's own keys take precedence over what it merges by ``<<``."""
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key_node, value_node in node.value:
            self._count_one(len(keys) + depth)
            if key_node.tag == f"{_PREFIX}merge":
                for source in reversed(
                    value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                ):
                    if not isinstance(source, yaml.MappingNode):
                        raise self.error(
                            key_node.start_mark, f"{'.'.join((*keys, '<<'))}: expected a mapping to merge"
                        )
                    merged |= self._pairs(source, keys, depth + 1)
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.error(key_node.start_mark, f"{'.'.join(keys)}: expected a word as key")
            if key_node.value in own:
                path = ".".join((*keys, key_node.value))
                raise self.error(key_node.start_mark, f"{path}: written twice in the same mapping")
            own[key_node.value] = (key_node, value_node)
        return {**merged, **own}

    def _count_one(self, depth: int) -> None:
        self._count += 1
        if depth > _MAX_DEPTH or self._count > 2 * _MAX_KEYS:
            limits = f"nested more than {_MAX_DEPTH} deep or more than {_MAX_KEYS} keys"
            raise ConfigError(f"{self._name}: {limits}: anchors that repeat themselves?")

    def _record(self, keys: KeyPath, node: yaml.Node) -> None:
        if keys and self._sources is not None:
            self._sources[keys] = f"{self._name}:{node.start_mark.line + 1}"


def _reason(error: Exception) -> str:
    """PyYAML's own words, in one line."""
    return getattr(error, "problem", None) or " ".join(str(error).split())
