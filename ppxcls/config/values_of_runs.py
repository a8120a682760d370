"""Limits what the ``config.yaml`` of a run may name, because somebody else may have written the run's folder.

A YAML that a user names is the user's own request. A run's folder may be a download. So its config names no
place to write outside the folder, no place outside it to search for images, and no address in a network,
unless the command line repeats the key or has ``--trust``, or this user has trained the run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppxcls.config.checks import ConfigPlace, KeyPath, shorten_value
from ppxcls.config.sections import Config, GlobalSection
from ppxcls.config.trust import config_codes, record_trust
from ppxcls.system.paths import is_address
from ppxcls.system.patterns import fixed_folder, is_pattern

_EXPORT_KEY, _OUTPUT_KEY = "Global.save_inference_dir", "Global.output_dir"
_IMAGES_KEY = "Infer.infer_imgs"
_FOLDERS_TO_WRITE = tuple(f"DataLoader.{mode}.dataset.cache_dir" for mode in ("Train", "Eval"))
_REASON = "refused, because the config of a run that was not trained here (or was moved since) names"


@dataclass(frozen=True)
class RunText:
    """The ``config.yaml`` of a run that a config was read from.

    Attributes:
        file: the file.
        text: its content.
        folder: folder of the run.
        is_base: True if it is the base of another YAML.
    """

    file: Path
    text: str
    folder: Path
    is_base: bool


def check_values_of_run(raw: Mapping[str, Any], config: Config, run: RunText, *, is_trusted: bool) -> None:
    """Checks the values that the ``config.yaml`` of a run contains, and no other YAML or the command line.

    Unless this user has trained or trusts the run at this place, ``Global.output_dir`` becomes the folder
    that the run's folder is in, and ``config.untrusted_folder`` the run's folder. A base may name neither
    another ``output_dir`` nor a folder for the export.

    Args:
        raw: values of the config.
        config: checked config with these values; it is changed.
        run: the run.
        is_trusted: True if the user trusts the run now, which is remembered.

    Raises:
        ConfigError: a value is an address in a network, and this user has not trained or trusted a run with
            this config. Or it is a folder to write to outside the run's folder.
    """
    codes = config_codes(run.file, run.text)
    if is_trusted:
        record_trust(codes)
    file_code, text_code = codes
    if file_code.is_trusted:
        return
    has_addresses = text_code.is_trusted
    folders_to_write = _FOLDERS_TO_WRITE
    if run.is_base:
        folders_to_write += tuple(
            key for key in (_EXPORT_KEY, _OUTPUT_KEY) if not _is_default(config, key, run)
        )
    for keys, value in _texts(raw, ()):
        path = ".".join(keys)
        if not _is_of_run(config.where(path), run) or config.is_override(path):
            continue
        if is_address(value) and not has_addresses:
            raise config.where(path).error(
                f"{_REASON} an address: {shorten_value(value)}; "
                f"if you trust it, repeat it: -o {path}=..., or give --trust"
            )
        if path in folders_to_write and not is_address(value):
            _refuse_outside(value, run.folder, config.where(path))
    if run.is_base:
        return
    config.untrusted_folder = run.folder
    if not config.is_override(_OUTPUT_KEY) and not _is_same(config.Global.output_dir, run.folder.parent):
        config.Global.output_dir = str(run.folder.parent)


def _is_of_run(where: ConfigPlace, run: RunText) -> bool:
    """True if a value comes from the run, and not from the YAML whose base the run is."""
    return not run.is_base or where.source.startswith(f"{run.file}:") or where.source == str(run.file)


def _is_default(config: Config, key: str, run: RunText) -> bool:
    """True if a base names the folder that every config has without it, or the folder beside the run."""
    name = key.removeprefix("Global.")
    folder, default = getattr(config.Global, name), getattr(GlobalSection, name)
    return os.path.normpath(folder) == os.path.normpath(default) or (
        key == _OUTPUT_KEY and _is_same(folder, run.folder.parent)
    )


def export_folder_of(config: Config) -> Path:
    """Returns the folder for the export of a config.

    Raises:
        ConfigError: a run's ``config.yaml`` names a folder outside the run's folder that is not the default.
    """
    name = config.Global.save_inference_dir
    is_default = os.path.normpath(name) == os.path.normpath(GlobalSection.save_inference_dir)
    if config.untrusted_folder and not is_default and not config.is_override(_EXPORT_KEY):
        _refuse_outside(name, config.untrusted_folder, config.where(_EXPORT_KEY))
    return Path(name)


def images_of(config: Config) -> tuple[str | None, Path | None]:
    """Returns ``Infer.infer_imgs``, and the folder in which its images must lie; None for any folder.

    Raises:
        ConfigError: a run's ``config.yaml`` names a folder or a pattern outside the run's folder.
    """
    path = config.Infer.infer_imgs if config.Infer else None
    if not path or not config.untrusted_folder or config.is_override(_IMAGES_KEY) or os.path.isfile(path):
        return path, None
    folder = path if os.path.isdir(path) else fixed_folder(path)
    if os.path.isdir(path) or is_pattern(path):
        _refuse_outside(folder or ".", config.untrusted_folder, config.where(_IMAGES_KEY), use="search")
    return path, config.untrusted_folder


def _refuse_outside(name: str, folder: Path, where: ConfigPlace, use: str = "write to") -> None:
    if Path(os.path.realpath(name)).is_relative_to(os.path.realpath(folder)):
        return
    raise where.error(
        f"{_REASON} a folder to {use} that is not in the run's folder: "
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
