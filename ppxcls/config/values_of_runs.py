"""Limits what the ``config.yaml`` of a run may name, because somebody else may have written the run's folder.

A YAML that a user names is the user's own request. A run's folder may be a download. So its config names no
place to write outside the folder, no place outside it to search for images, and no address in a network,
unless the command line repeats the key or has ``--trust``, or this user has trained the run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ppxcls.config.checks import ConfigPlace, KeyPath, shorten_value
from ppxcls.config.sections import Config, GlobalSection
from ppxcls.system.paths import is_address
from ppxcls.system.patterns import fixed_folder, is_pattern

_EXPORT_KEY, _IMAGES_KEY = "Global.save_inference_dir", "Infer.infer_imgs"
_FOLDERS_TO_WRITE = tuple(f"DataLoader.{mode}.dataset.cache_dir" for mode in ("Train", "Eval"))


def refuse_values_of_run(raw: Mapping[str, Any], config: Config, folder: Path) -> None:
    """Checks the values that a run's ``config.yaml`` contains, and the command line does not.

    ``Global.output_dir`` becomes the folder that the run's folder is in.

    It is called for a run that this user neither has trained nor trusts.

    Args:
        raw: values of the config.
        config: checked config with these values; it is changed.
        folder: folder of the run.

    Raises:
        ConfigError: a value is an address in a network, or a folder to write to outside the run's folder.
    """
    for keys, value in _texts(raw, ()):
        path = ".".join(keys)
        if config.is_override(path):
            continue
        if is_address(value):
            raise config.where(path).error(
                f"refused, because the config of a run names an address: {shorten_value(value)}; "
                f"if you trust it, repeat it: -o {path}=..., or give --trust"
            )
        if path in _FOLDERS_TO_WRITE:
            _refuse_outside(value, folder, config.where(path))
    if not config.is_override("Global.output_dir") and not _is_same(config.Global.output_dir, folder.parent):
        config.Global.output_dir = str(folder.parent)


def export_folder_of(config: Config) -> Path:
    """Returns the folder for the export of a config.

    Raises:
        ConfigError: a run's ``config.yaml`` names a folder outside the run's folder that is not the default.
    """
    name = config.Global.save_inference_dir
    is_default = os.path.normpath(name) == os.path.normpath(GlobalSection.save_inference_dir)
    if config.origin_folder and not is_default and not config.is_override(_EXPORT_KEY):
        _refuse_outside(name, config.origin_folder, config.where(_EXPORT_KEY))
    return Path(name)


def images_of(config: Config) -> tuple[str | None, Path | None]:
    """Returns ``Infer.infer_imgs``, and the folder in which its images must lie; None for any folder.

    Raises:
        ConfigError: a run's ``config.yaml`` names a folder or a pattern outside the run's folder.
    """
    path = config.Infer.infer_imgs if config.Infer else None
    if not path or not config.origin_folder or config.is_override(_IMAGES_KEY) or os.path.isfile(path):
        return path, None
    folder = path if os.path.isdir(path) else fixed_folder(path)
    if os.path.isdir(path) or is_pattern(path):
        _refuse_outside(folder or ".", config.origin_folder, config.where(_IMAGES_KEY), use="search")
    return path, config.origin_folder


def _refuse_outside(name: str, folder: Path, where: ConfigPlace, use: str = "write to") -> None:
    if Path(os.path.realpath(name)).is_relative_to(os.path.realpath(folder)):
        return
    raise where.error(
        f"refused, because the config of a run names a folder to {use} that is not in the run's folder: "
        f"{shorten_value(name)}; if you want it, repeat it: -o {'.'.join(where.keys)}=..., or give --trust"
    )


def _is_same(name: str, folder: Path) -> bool:
    return os.path.realpath(name) == os.path.realpath(folder)


def _texts(value: Any, keys: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """Yields the key path and value of each text in a config."""
    if isinstance(value, str):
        yield keys, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(key, str) and is_address(key):
                yield (*keys, key), key
            yield from _texts(item, (*keys, str(key)))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _texts(item, (*keys, str(i)))
