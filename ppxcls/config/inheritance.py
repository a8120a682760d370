"""``base: FILE`` in a YAML: the keys of another YAML, of which this one changes some."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ppxcls.config.checks import KeyPath, Where, list_index, shown, unknown

KEY = "base"
_BASES = Path(__file__).parent / "bases"  # what comes with the package is named without folder and extension
_MOST = 10  # files in a row
Reader = Callable[[Path, dict[KeyPath, str]], dict[str, Any]]


def with_bases(
    raw: dict[str, Any], file: Path | None, sources: dict[KeyPath, str], read: Reader
) -> dict[str, Any]:
    """The mapping of a YAML over that of its base, which may have a base itself.

    A mapping changes the keys that it names, and a component whose ``name`` is another replaces the base's. A
    list replaces the base's; a mapping in the place of a list changes the items that it names by index or
    component.

    Args:
        raw: of the YAML; ``base`` is taken out.
        file: that it was read from; paths are relative to its folder.
        sources: places of its keys; those of the base are added.
        read: reads a YAML and fills its places.

    Raises:
        ConfigError: a base can't be read, is its own base, or does not fit.
    """
    layers = [(raw, sources)]
    files = [file.resolve()] if file else []
    folder = file.parent if file else Path()
    while KEY in layers[-1][0]:
        upper, places = layers[-1]
        where = Where((KEY,), places)
        path = _path(upper.pop(KEY), folder, where)
        if path.resolve() in files or len(files) > _MOST:
            raise where.error(
                f"{path} is a base of itself"
                if path.resolve() in files
                else f"more than {_MOST} bases in a row"
            )
        files.append(path.resolve())
        folder = path.parent
        base_sources: dict[KeyPath, str] = {}
        layers.append((read(path, base_sources), base_sources))
    merged, places = layers.pop()
    while layers:
        upper, own = layers.pop()
        merged = _over(merged, upper, Where((), own))
        places = _places(places, own)
    merged_places = dict(places)
    sources.clear()
    sources.update(merged_places)
    return merged


def _path(value: Any, folder: Path, where: Where) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise where.error(f"expected a YAML, received {shown(value)}")
    names = sorted(path.stem for path in _BASES.glob("*.yaml"))
    if value in names:
        return _BASES / f"{value}.yaml"
    if "/" not in value and "." not in value:
        raise where.error(unknown(value, names, "base"))
    return folder / value


def _over(base: Any, value: Any, where: Where) -> Any:
    """The value over that of the base."""
    if isinstance(base, dict) and isinstance(value, dict):
        if "name" in value and "name" in base and value["name"] != base["name"]:
            return value
        return {
            **base,
            **{
                key: _over(base[key], item, where / key) if key in base else item
                for key, item in value.items()
            },
        }
    if isinstance(base, list) and isinstance(value, dict):
        items = list(base)
        for key, item in value.items():
            i = list_index(items, str(key), where / key, "list item")
            single = (
                isinstance(items[i], dict) and key in items[i]
            )  # a component: {RandCropImage: {size: 299}}
            items[i] = (
                {key: _over(items[i][key] or {}, item, where / key)}
                if single
                else _over(items[i], item, where / key)
            )
        return items
    return value


def _places(base: dict[KeyPath, str], own: dict[KeyPath, str]) -> dict[KeyPath, str]:
    """Where each key was written. Items that a mapping changes by name keep the place of their list."""
    return {**base, **{keys: place for keys, place in own.items() if keys != (KEY,)}}
