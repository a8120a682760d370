"""Reads a YAML with overrides and returns a checked ``Config``."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppxcls.config.channels import check_image_channels
from ppxcls.config.checks import (
    ConfigError,
    ConfigPlace,
    KeyPath,
    check_section,
    check_value,
    component_of,
    is_index,
    list_index,
    shorten_value,
)
from ppxcls.config.device_switches import (
    DEVICE_KEY,
    DEVICE_SWITCHES,
    SECTION,
    device_of,
    replace_device_switches,
)
from ppxcls.config.figures import check_figures
from ppxcls.config.inheritance import BASE_KEY, with_bases
from ppxcls.config.paths import folder_of_source, resolve_paths
from ppxcls.config.plugins import find_plugin, import_plugins
from ppxcls.config.post_process_checks import check_post_process
from ppxcls.config.section_keys import refuse_foreign_keys, refuse_misplaced_keys
from ppxcls.config.sections import Config, GlobalSection, to_plain
from ppxcls.config.values_of_runs import RunText, check_values_of_run
from ppxcls.config.yaml_values import read_yaml
from ppxcls.system.atomic_files import read_regular, reason_of
from ppxcls.system.paths import url_problem

_MAX_YAML_BYTES = 1 << 20  # limit of a YAML
RUN_CONFIG = "config.yaml"  # the resolved config in a run's folder
RUN_CONFIG_HEADER = (
    "# Written by ppxcls: the config of the run in this folder. Edit another file.\n"  # first line
)
_PLUGINS: KeyPath = ("Global", "plugins")
_PACKAGED_CLASS_NAMES = Path(__file__).parents[1] / "data" / "imagenet1k_classes.txt"


def load_config(
    path: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), *, trust: bool = False
) -> Config:
    """Reads a YAML and its ``base``, applies the overrides, imports the plugins, and checks all values.

    Paths that do not exist from the current folder are searched for as in ``resolve_paths``.

    Args:
        path: YAML file, or folder of a run. In a notebook also the YAML's content as nested dicts and lists.
        overrides: ``A.b.c=value`` strings with the value in YAML. A list item is addressed by its index, or
            by a component's name.
        trust: True to run the plugins that the file or one of its bases names, and to remember this. Without
            it, only those run that this user has trusted before and that have not changed. Plugins in an
            override or in nested dicts are the caller's own, so they run. It also accepts addresses and
            folders outside the run's folder in the config of a run that this user has not trained.

    Raises:
        ConfigError: the file is missing or is not valid YAML, a plugin is not trusted or can't be imported,
            or a key, name, type or value is invalid. The message gives file, line and key.
    """
    sources: dict[KeyPath, str] = {}
    file = None
    own_folder = None
    runs: list[RunText] = []
    read_base = functools.partial(_read_base, runs)
    own_plugins: list[str] = []
    if isinstance(path, Mapping):
        own_plugins = _plugin_names(path)
        raw = with_bases(copy.deepcopy(to_plain(path)), None, sources, read_base)
    else:
        if (problem := url_problem(path)) is not None:
            raise ConfigError(problem)
        file = Path(path) / RUN_CONFIG if os.path.isdir(path) else Path(path)
        text = _read_text(file)
        raw = _mapping(text, file, sources)
        own_folder = _folder_of_run(file, text)
        if run_folder := own_folder or _folder_with_results(Path(path), file):
            runs.append(RunText(file, text, run_folder, is_base=False))
            _refuse_base(raw, sources)
        raw = with_bases(raw, file, sources, read_base)
        resolve_paths(raw, file, sources, is_of_run=own_folder is not None)
    override_keys = [_apply_override(raw, override, sources) for override in overrides]
    own_plugins += [
        name
        for i, name in enumerate(_plugin_names(raw))
        if any((*_PLUGINS, str(i))[: len(keys)] == keys for keys in override_keys)
    ]
    _import_plugins(raw, file, own_names=own_plugins, sources=sources, is_trusted=trust)
    refuse_foreign_keys(raw, ConfigPlace((), sources))
    refuse_misplaced_keys(raw, ConfigPlace((), sources))
    config: Config = check_section(raw, Config, ConfigPlace((), sources))
    config.sources = sources
    config.overrides = override_keys
    if not config.is_override("Global.output_dir") and not config.is_override("Arch.name"):
        config.own_folder = own_folder
    for run in runs:
        check_values_of_run(raw, config, run, is_trusted=trust)
    check_image_channels(config)
    check_figures(config)
    check_post_process(config)
    _resolve_class_names(config)
    return config


def _read_base(runs: list[RunText], file: Path, sources: dict[KeyPath, str]) -> dict[str, Any]:
    """Reads a base. If it is the config of a run, the run is added to ``runs``."""
    text = _read_text(file)
    raw = _mapping(text, file, sources)
    if run_folder := _folder_of_run(file, text) or _folder_with_results(file, file):
        runs.append(RunText(file, text, run_folder, is_base=True))
        _refuse_base(raw, sources)
    return raw


def _refuse_base(raw: Mapping[str, Any], sources: Mapping[KeyPath, str]) -> None:
    if BASE_KEY in raw:
        raise ConfigPlace((BASE_KEY,), sources).error("the config of a run has no base")


def is_config_of_run(file: Path, *, is_header_required: bool = False) -> bool:
    """True if a file exists and is a ``config.yaml`` that a run wrote.

    Args:
        file: file to examine.
        is_header_required: True to refuse the files of older versions, which have no header.
    """
    try:
        text = _read_text(file)
    except ConfigError:
        return False
    if is_header_required:
        return text.startswith(RUN_CONFIG_HEADER)
    return _folder_of_run(file, text) is not None


def _folder_of_run(file: Path, text: str) -> Path | None:
    """Returns the folder of the run that wrote a YAML into it; None for any other YAML.

    Older versions wrote no first line with ``RUN_CONFIG_HEADER``.
    """
    has_results = any((file.parent / f"{name}.json").exists() for name in ("latest", "best_model"))
    return (
        file.parent
        if file.name == RUN_CONFIG and (text.startswith(RUN_CONFIG_HEADER) or has_results)
        else None
    )


def _folder_with_results(path: Path, file: Path) -> Path | None:
    """Returns the folder of a config if it may be a run's, whoever wrote the config; None for any other YAML.

    Args:
        path: file or folder that the user names.
        file: file of the config.
    """
    if path.is_dir():
        return file.parent
    names = ("metrics.jsonl", "latest.*", "best_model.*", "epoch_*.pdparams", "epoch_*.safetensors")
    has_results = file.name == RUN_CONFIG and any(next(file.parent.glob(name), None) for name in names)
    return file.parent if has_results else None


def _plugin_names(raw: Mapping[str, Any]) -> list[str]:
    """Returns the texts in ``Global.plugins``, which is not checked yet."""
    section = raw.get("Global")
    names = section.get("plugins") if isinstance(section, Mapping) else None
    if isinstance(names, Mapping):  # changes of a base's list
        names = list(names.values())
    if not isinstance(names, list):
        return []
    return [name if isinstance(name, str) else "" for name in names]


def _import_plugins(
    raw: dict[str, Any],
    file: Path | None,
    *,
    own_names: Sequence[str],
    sources: Mapping[KeyPath, str],
    is_trusted: bool,
) -> None:
    """Imports ``Global.plugins``, if all of them are trusted.

    Replaces each entry by the name or path that finds the plugin from any folder.

    Args:
        raw: content of the config; it is changed.
        file: YAML; None for nested dicts.
        own_names: names that the user wrote in nested dicts or in an override, not in a file.
        sources: source of each key.
        is_trusted: True if the user agrees to run the plugins of files.
    """
    section = raw.get("Global")
    if not isinstance(section, dict) or section.get("plugins") is None:
        return
    where = ConfigPlace(_PLUGINS, sources)
    plugins = []
    for i, name in enumerate(check_value(section["plugins"], list[str], where)):
        home = file.parent if file else Path()
        folders = [folder_of_source((where / i).source, home), home]
        is_own = name in own_names
        folders = [Path(), *folders] if is_own else [*folders, Path()]
        plugins.append(find_plugin(name, folders, where / i, is_word=is_own))
    section["plugins"] = [plugin.lasting_name for plugin in plugins]
    import_plugins(plugins, raw, is_trusted=is_trusted)


def _read_text(path: Path) -> str:
    try:
        return read_regular(path, _MAX_YAML_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file") from None
    except (OSError, ValueError) as error:  # also bytes that are not UTF-8, and a path with a NUL
        raise ConfigError(f"{path}: can't be read: {reason_of(error)}") from None


def _mapping(text: str, path: Path, sources: dict[KeyPath, str]) -> dict[str, Any]:
    raw = read_yaml(text, str(path), sources)
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, such as Global and Arch")
    sources[()] = str(path)
    return raw


def _apply_override(raw: dict[str, Any], override: str, sources: dict[KeyPath, str]) -> KeyPath:
    """Sets one key, and returns its path.

    The whole config is checked later, including unknown keys.
    """
    source = f"-o {override}"
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"{source}: expected KEY.KEY=value")
    value = read_yaml(text, source)
    if keys[0] == SECTION and (len(keys) == 1 or keys[1] in DEVICE_SWITCHES):
        section = value if len(keys) == 1 else {keys[1]: value}
        device = device_of(raw) or GlobalSection.device
        replace_device_switches({SECTION: section}, {(): source}, device)
        if len(keys) == 2:
            keys, value = [SECTION, DEVICE_KEY], section.get(DEVICE_KEY, device)
    parent, key, key_path = _descend(raw, keys, source, sources)
    if isinstance(parent, list):
        parent[int(key)] = value
    else:
        parent[key] = value
    for child_path in [k for k in sources if k[: len(key_path)] == key_path]:
        del sources[child_path]
    sources[key_path] = source
    return key_path


def _descend(
    raw: dict[str, Any], keys: list[str], source: str, sources: dict[KeyPath, str]
) -> tuple[dict[str, Any] | list[Any], str, KeyPath]:
    """Finds the mapping or list that an override changes, and creates missing sections.

    Returns:
        The mapping or list, the key in it, and the key path.
    """
    target: Any = raw
    key_path: KeyPath = ()
    remaining_keys = list(keys)
    while True:
        key = remaining_keys.pop(0)
        if isinstance(target, list) and not is_index(key):
            remaining_keys.insert(0, key)  # a component's name: used for the item, then for the key in it
        if isinstance(target, list):
            index = list_index(target, key, ConfigPlace(key_path, {(): source}), "list index")
            if remaining_keys:
                target[index] = component_of(target[index], key)
            key = str(index)
        key_path = (*key_path, key)
        if not remaining_keys:
            return target, key, key_path
        if isinstance(target, dict) and target.get(key) is None:
            target[key] = {}
            sources[key_path] = source
        target = target[int(key)] if isinstance(target, list) else target[key]
        if not isinstance(target, dict | list):
            raise ConfigError(f"{source}: {'.'.join(key_path)} is {shorten_value(target)}: it has no keys")


def _resolve_class_names(config: Config) -> None:
    """Replaces the class names of PaddleClas's source tree by those of this package.

    PaddleClas's YAMLs name a file of its source tree. If that does not exist, this package has the same
    names.
    """
    process = config.Infer and config.Infer.PostProcess
    if config.own_folder and not config.is_override("Infer.PostProcess.class_id_map_file"):
        return  # the run's folder contains the names
    if process and process.class_id_map_file and not Path(process.class_id_map_file).exists():
        if Path(process.class_id_map_file).name != "imagenet1k_label_list.txt":
            raise config.where("Infer.PostProcess.class_id_map_file").error(
                "expected a file of lines 'id name', received "
                f"{process.class_id_map_file!r}, which does not exist"
            )
        process.class_id_map_file = str(_PACKAGED_CLASS_NAMES)
