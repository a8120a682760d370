"""Applies ``base: FILE`` in a YAML, which inherits the keys of another YAML and changes some of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ppxcls.config.checks import ConfigPlace, KeyPath, list_index, shorten_value, unknown_word_message

BASE_KEY = "base"
_BASES = Path(__file__).parent / "bases"  # named in a YAML without folder and extension
_MAX_BASES = 10  # length of a chain of bases
Reader = Callable[[Path, dict[KeyPath, str]], dict[str, Any]]


def with_bases(
    raw: dict[str, Any], file: Path | None, sources: dict[KeyPath, str], read: Reader
) -> dict[str, Any]:
    """Merges the mapping of a YAML with that of its base, which may have a base itself.

    A mapping changes the keys that it contains. A component with another ``name`` replaces the base's
    component. A list replaces the base's list. A mapping in the place of a list changes single items, which
    it names by index or component.

    Args:
        raw: mapping of the YAML; ``base`` is removed from it.
        file: file of the mapping; None if there is none. Paths are relative to its folder.
        sources: source of each key. The sources of the base's keys are added.
        read: function that reads a YAML and fills the sources of its keys.

    Raises:
        ConfigError: a base can't be read, is its own base, or does not fit.
    """
    layers = [(raw, sources)]
    files = [file.resolve()] if file else []
    folder = file.parent if file else Path()
    while BASE_KEY in layers[-1][0]:
        child, key_sources = layers[-1]
        where = ConfigPlace((BASE_KEY,), key_sources)
        path = _path(child.pop(BASE_KEY), folder, where)
        if path.resolve() in files or len(files) > _MAX_BASES:
            raise where.error(
                f"{path} is a base of itself"
                if path.resolve() in files
                else f"more than {_MAX_BASES} bases in a row"
            )
        files.append(path.resolve())
        folder = path.parent
        base_sources: dict[KeyPath, str] = {}
        layers.append((read(path, base_sources), base_sources))
    result, key_sources = layers.pop()
    while layers:
        child, child_sources = layers.pop()
        result = _merge(result, child, ConfigPlace((), child_sources))
        key_sources = _merge_sources(key_sources, child_sources)
    result_sources = dict(key_sources)
    sources.clear()
    sources.update(result_sources)
    return result


def _path(value: Any, folder: Path, where: ConfigPlace) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise where.error(f"expected a YAML, received {shorten_value(value)}")
    names = sorted(path.stem for path in _BASES.glob("*.yaml"))
    if value in names:
        return _BASES / f"{value}.yaml"
    if "/" not in value and "." not in value:
        raise where.error(unknown_word_message(value, names, "base"))
    return folder / value


def _merge(base: Any, value: Any, where: ConfigPlace) -> Any:
    """Returns the base's value with the changes of ``value``."""
    if isinstance(base, dict) and isinstance(value, dict):
        if "name" in value and "name" in base and value["name"] != base["name"]:
            return value
        return {
            **base,
            **{
                key: _merge(base[key], item, where / key) if key in base else item
                for key, item in value.items()
            },
        }
    if isinstance(base, list) and isinstance(value, dict):
        items = list(base)
        for key, item in value.items():
            index = list_index(items, str(key), where / key, "list item")
            # a component, such as {RandCropImage: {size: 299}}
            is_component = isinstance(items[index], dict) and key in items[index]
            items[index] = (
                {key: _merge(items[index][key] or {}, item, where / key)}
                if is_component
                else _merge(items[index], item, where / key)
            )
        return items
    return value


def _merge_sources(base_sources: dict[KeyPath, str], child_sources: dict[KeyPath, str]) -> dict[KeyPath, str]:
    """Returns the source of each key. Items that a mapping changes by name keep the source of their list."""
    return {**base_sources, **{keys: place for keys, place in child_sources.items() if keys != (BASE_KEY,)}}
