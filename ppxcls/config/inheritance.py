"""Applies ``base: FILE`` in a YAML, which inherits the keys of another YAML and changes some of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ppxcls.config.checks import (
    ConfigPlace,
    KeyPath,
    component_of,
    list_index,
    shorten_value,
    unknown_word_message,
)
from ppxcls.config.device_switches import device_of, replace_device_switches

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
        if not os.path.exists(path):
            raise where.error(f"{path}: no such config file")
        files.append(path.resolve())
        folder = path.parent
        base_sources: dict[KeyPath, str] = {}
        layers.append((read(path, base_sources), base_sources))
    result, key_sources = layers.pop()
    replace_device_switches(result, key_sources)
    while layers:
        child, child_sources = layers.pop()
        replace_device_switches(child, child_sources, device_of(result))
        result = _Merge(key_sources, child_sources).merge(result, child, (), ())
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


class _Merge:
    """Merges the values of one YAML into those of its base, and the sources together with the values.

    Each value keeps the source of the file that wrote it. A value of the base that is replaced loses its
    source, and so do all values below it.

    Args:
        sources: sources of the base's values. They become those of the result.
        child_sources: sources of the values of the YAML that has the base.
    """

    def __init__(self, sources: dict[KeyPath, str], child_sources: Mapping[KeyPath, str]) -> None:
        self._sources = sources
        self._child_sources = child_sources

    def merge(self, base: Any, value: Any, keys: KeyPath, child_keys: KeyPath) -> Any:
        """Returns the base's value with the changes of ``value``.

        Args:
            base: value of the base.
            value: value of the YAML that has the base.
            keys: key path in the result, with indices for list items.
            child_keys: key path in the YAML, which may address list items by name.
        """
        is_other_component = (
            isinstance(base, dict)
            and isinstance(value, dict)
            and "name" in value
            and "name" in base
            and value["name"] != base["name"]
        )
        if isinstance(value, dict) and isinstance(base, dict | list) and not is_other_component:
            self._sources[keys] = ConfigPlace(child_keys, self._child_sources).source
            if isinstance(base, list):
                return self._merge_items(base, value, keys, child_keys)
            return self._merge_keys(base, value, keys, child_keys)
        self._forget(base, keys)
        self._record(value, keys, child_keys)
        return value

    def _merge_keys(
        self, base: dict[str, Any], value: dict[str, Any], keys: KeyPath, child_keys: KeyPath
    ) -> dict[str, Any]:
        result = dict(base)
        for key, item in value.items():
            result[key] = self.merge(base.get(key), item, (*keys, str(key)), (*child_keys, str(key)))
        return result

    def _merge_items(
        self, base: list[Any], value: dict[str, Any], keys: KeyPath, child_keys: KeyPath
    ) -> list[Any]:
        """Returns the items of a list, changed by a mapping from indices or names to new values."""
        items = list(base)
        for key, item in value.items():
            item_keys = (*child_keys, str(key))
            place = ConfigPlace(item_keys, self._child_sources)
            index = list_index(items, str(key), place, "list item")
            index_keys = (*keys, str(index))
            items[index] = component_of(items[index], str(key))
            if isinstance(items[index], dict) and key in items[index]:  # such as {RandCropImage: {size: 299}}
                arguments = items[index][key] or {}
                items[index] = {key: self.merge(arguments, item, (*index_keys, str(key)), item_keys)}
            elif _is_component(items[index]) and _is_component(item) and items[index].keys() != item.keys():
                self._forget(items[index], index_keys)
                self._record(item, index_keys, item_keys)
                items[index] = item
            else:
                items[index] = self.merge(items[index], item, index_keys, item_keys)
        return items

    def _forget(self, base: Any, keys: KeyPath) -> None:
        """Removes the sources of a value of the base, and of all values below it."""
        self._sources.pop(keys, None)
        for key, item in _entries(base):
            self._forget(item, (*keys, key))

    def _record(self, value: Any, keys: KeyPath, child_keys: KeyPath) -> None:
        """Sets the sources of a value of the YAML, and of all values below it."""
        self._sources[keys] = ConfigPlace(child_keys, self._child_sources).source
        for key, item in _entries(value):
            self._record(item, (*keys, key), (*child_keys, key))


def _is_component(item: Any) -> bool:
    """True if a list item has the form of a component, ``{Name: {...}}``."""
    return isinstance(item, dict) and len(item) == 1


def _entries(value: Any) -> list[tuple[str, Any]]:
    """Returns the keys or indices of a mapping or list, and their values; empty for any other value."""
    if isinstance(value, dict):
        return [(str(key), item) for key, item in value.items()]
    return [(str(i), item) for i, item in enumerate(value)] if isinstance(value, list) else []
