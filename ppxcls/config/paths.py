"""Finds the files and folders that a config names, from whichever folder a command is called.

A relative path is relative to the current folder. If it does not exist there, it is searched for in the
folder of the YAML, and then in each folder above. A run writes its own ``config.yaml`` with absolute paths.
If its folder was moved together with the data, a path that is missing is searched for at the same place
relative to the folder. If the output folder was moved or renamed with the file in it, files that moved with
it come first, because another run may use the old folder.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppxcls.config.checks import KeyPath
from ppxcls.system import environment, patterns
from ppxcls.system.logs import logger
from ppxcls.system.paths import HUB_PREFIXES, MAX_MESSAGE_LENGTH, url_problem

_OUTPUT_DIR: KeyPath = ("Global", "output_dir")
_IMAGES: KeyPath = ("Infer", "infer_imgs")  # the only key that may be a pattern
# Keys of input files and folders. Those of one group belong together, so one folder must have all of them.
_GROUPS: tuple[tuple[KeyPath, ...], ...] = (
    *(
        tuple(("DataLoader", mode, "dataset", key) for key in ("image_root", "cls_label_path", "pack"))
        for mode in ("Train", "Eval")
    ),
    tuple(("DataLoader", "Test", key) for key in ("image_root", "cls_label_path")),
    (("Global", "pretrained_model"),),
    (("Global", "checkpoints"),),
    (("Arch", "pretrained"),),
    (_IMAGES,),
    (("Infer", "PostProcess", "class_id_map_file"),),
)
_FOLDERS_TO_WRITE: tuple[KeyPath, ...] = (
    _OUTPUT_DIR,
    *(("DataLoader", mode, "dataset", "cache_dir") for mode in ("Train", "Eval")),
)
# The last words of keys with paths, for comparisons of two configs.
PATH_KEYS = tuple(sorted({keys[-1] for group in (*_GROUPS, _FOLDERS_TO_WRITE) for keys in group}))
_CHECKPOINT_EXTENSIONS = ("", ".pdparams", ".safetensors", ".json", ".pdstates")  # they may be omitted
# These keys may also have a word for published weights. A folder of the same name is not meant.
_WEIGHTS: tuple[KeyPath, ...] = (("Global", "pretrained_model"), ("Arch", "pretrained"))
_WEIGHTS_EXTENSIONS = ("", ".pdparams", ".safetensors")


def resolve_paths(
    raw: dict[str, Any], file: Path, sources: Mapping[KeyPath, str], *, is_of_run: bool
) -> None:
    """Replaces the paths of a YAML that do not exist from the current folder, if they exist elsewhere.

    The log tells which folder is used instead.

    Args:
        raw: content of the YAML; it is changed.
        file: file of the YAML.
        sources: source of each key, ``file:line``.
        is_of_run: True if a run wrote the file into its own folder.
    """
    home = Path(os.path.abspath(file)).parent
    start_folder = _start_folder(raw, home, is_of_run=is_of_run)
    move = _move(raw, home, is_of_run=is_of_run)
    replacements: dict[KeyPath, str] = {}
    moved_keys: set[KeyPath] = set()  # keys of files that moved, and have others in their old place
    for group in (*_GROUPS, *_plugin_groups(raw)):
        paths = {keys: value for keys in group if (value := _path_at(raw, keys)) is not None}
        relative_paths = {keys: path for keys, path in paths.items() if not os.path.isabs(path)}
        folders = {
            keys: _folders(folder_of_source(sources.get(keys), home), start_folder, is_of_run=is_of_run)
            for keys in relative_paths
        }
        replacements |= _first_complete(relative_paths, folders)
        if move is None:
            continue
        for keys in paths.keys() - relative_paths.keys():
            path, candidate = paths[keys], move.new_path(paths[keys])
            is_replaced = _exists(keys, path)
            if _exists(keys, candidate) and (not is_replaced or move.has_taken(path)):
                moved_keys |= {keys} if is_replaced else set()
                replacements[keys] = candidate
    # A folder that was moved with the YAML in it is also the folder to write to.
    if (
        move
        and move.is_output_moved
        and any(os.path.isabs(_path_at(raw, keys) or "") for keys in replacements)
    ):
        replacements[_OUTPUT_DIR] = move.new_path(_path_at(raw, _OUTPUT_DIR) or "")
    for keys, path in replacements.items():
        _set(raw, keys, path)
    if replacements:
        changes = [f"{'.'.join(keys)}: {path}" for keys, path in sorted(replacements.items())]
        reason = "paths that do not exist from the current folder were found elsewhere"
        if move and moved_keys:
            reason = f"it was moved from {move.old_home}, so the files that moved with it are used"
        line = f"{file}: {reason}: {', '.join(changes)}"
        # A longer line would lose paths in its middle.
        for text in [line] if len(line) <= MAX_MESSAGE_LENGTH else [f"{file}: {reason}:", *changes]:
            _say_once(text)


@dataclass(frozen=True)
class _Move:
    """A YAML that is not in the folder that it was written to.

    Attributes:
        old_home, home: folder of the YAML, before and after.
        output: old output folder that was moved with the YAML in it; None if this is not known.
        is_output_moved: True if the YAML is to write to its new folder.
    """

    old_home: Path
    home: Path
    output: Path | None
    is_output_moved: bool

    def new_path(self, path: str) -> str:
        """Returns the path at the same place relative to the YAML."""
        return os.path.normpath(self.home / os.path.relpath(path, self.old_home))

    def has_taken(self, path: str) -> bool:
        """True if a file was moved together with the YAML."""
        return self.output is not None and _is_inside(path, self.output) and self.new_path(path) != path


def with_absolute_paths(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the sections of a config with absolute paths, so that they are valid from any folder.

    Input files that do not exist keep their paths. The folder of exported models stays relative to the folder
    in which a model is exported.

    Args:
        sections: sections as plain values.
    """
    result = {name: _copy(section) for name, section in sections.items()}
    for keys in (keys for group in _GROUPS for keys in group):
        path = _path_at(result, keys)
        if path is not None and _exists(keys, path):
            _set(result, keys, os.path.abspath(path))
    for keys in _FOLDERS_TO_WRITE:
        if (path := _path_at(result, keys)) is not None:
            _set(result, keys, os.path.abspath(path))
    return result


def _first_complete(
    paths: Mapping[KeyPath, str], folders: Mapping[KeyPath, Sequence[Path | None]]
) -> dict[KeyPath, str]:
    """Returns the paths in the first folders that have all of them; empty for the current folder."""
    for candidates in zip(*(folders[keys] for keys in paths), strict=False):
        joined_paths = {
            keys: path if folder is None else os.path.normpath(folder / path)
            for (keys, path), folder in zip(paths.items(), candidates, strict=True)
        }
        if all(map(_exists, joined_paths, joined_paths.values())):
            return {keys: path for keys, path in joined_paths.items() if path != paths[keys]}
    return {}


def _folders(home: Path, start_folder: Path | None, *, is_of_run: bool) -> list[Path | None]:
    """Returns the folders to search, in order; None stands for the current folder."""
    if start_folder is None or start_folder == Path.cwd():
        return [None, home, *home.parents]
    # The current folder may be another project's, with the same names. The start folder has the run's data.
    first_folders = [start_folder, None] if is_of_run else [None, start_folder]
    return [*first_folders, home, *home.parents]


def _start_folder(raw: Mapping[str, Any], home: Path, *, is_of_run: bool) -> Path | None:
    """Returns the folder in which a run was started, by its own folder and its relative ``output_dir``.

    For example, a run with ``output_dir: output`` in ``/data/output/Xception41`` was started in ``/data``.
    None if it can't be told.
    """
    output_dir, network = _path_at(raw, _OUTPUT_DIR), _path_at(raw, ("Arch", "name"))
    if output_dir is None or os.path.isabs(output_dir) or (is_of_run and network is None):
        return None
    suffix = Path(os.path.normpath(output_dir)).parts + ((network,) if is_of_run and network else ())
    count = len(suffix)
    if not count or ".." in suffix or home.parts[-count:] != suffix:
        return None
    return Path(*home.parts[:-count])


def _old_home(raw: Mapping[str, Any], home: Path, *, is_of_run: bool) -> Path | None:
    """Returns the folder that the YAML was written to, by its absolute ``output_dir``; None if unknown."""
    output_dir, network = _path_at(raw, _OUTPUT_DIR), _path_at(raw, ("Arch", "name"))
    if output_dir is None or not os.path.isabs(output_dir) or (is_of_run and network is None):
        return None
    if is_of_run:
        return Path(output_dir, network) if network else None
    folder = Path(output_dir)
    list_keys = [keys for group in _GROUPS for keys in group if keys[-1] == "cls_label_path"]
    lists = [path for keys in list_keys if (path := _path_at(raw, keys)) is not None]
    is_below = not any(_is_inside(path, folder) for path in lists)  # as output/photos/head of head.yaml
    if _is_of_fit(home) and is_below and any(_is_inside(path, folder.parent) for path in lists):
        return folder.parent
    return folder


def _move(raw: Mapping[str, Any], home: Path, *, is_of_run: bool) -> _Move | None:
    """Returns how the YAML was moved; None if it was not."""
    old_home = _old_home(raw, home, is_of_run=is_of_run)
    if old_home is None or old_home == home:
        return None
    with contextlib.suppress(OSError):
        if os.path.samefile(old_home, home):  # by a link
            return None
    if is_of_run:
        return _Move(old_home, home, output=old_home.parent, is_output_moved=False)
    is_of_fit = _is_of_fit(home)
    is_output_moved = is_of_fit or not old_home.exists()
    return _Move(old_home, home, output=old_home if is_of_fit else None, is_output_moved=is_output_moved)


def _is_of_fit(folder: Path) -> bool:
    """True if ``ppxcls fit`` has written to a folder."""
    return (folder / "fit.json").is_file()


def _is_inside(path: str, folder: Path) -> bool:
    return Path(os.path.normpath(path)).is_relative_to(folder)


def folder_of_source(source: str | None, home: Path) -> Path:
    """Returns the folder of the YAML that sets a key: of the file itself, or of one of its bases."""
    file = (source or "").rpartition(":")[0]
    return Path(os.path.abspath(file)).parent if file and os.path.isfile(file) else home


def _plugin_groups(raw: Mapping[str, Any]) -> Iterator[tuple[KeyPath, ...]]:
    """Yields the keys of plugins with absolute paths. Importing a plugin searches for relative ones."""
    section = raw.get("Global")
    plugins = section.get("plugins") if isinstance(section, dict) else None
    for i, name in enumerate(plugins if isinstance(plugins, list) else []):
        if isinstance(name, str) and name.endswith(".py") and os.path.isabs(name):
            yield (("Global", "plugins", str(i)),)


def _path_at(raw: Any, keys: KeyPath) -> str | None:
    """Returns the path at a key; None if there is none, such as for a URL or a repository of the hub."""
    for key in keys:
        if isinstance(raw, list):
            raw = raw[int(key)] if key.isdecimal() and int(key) < len(raw) else None
        else:
            raw = raw.get(key) if isinstance(raw, Mapping) else None
    is_path = isinstance(raw, str) and raw not in ("", "auto") and "\0" not in raw
    return raw if is_path and url_problem(raw) is None and not raw.startswith(HUB_PREFIXES) else None


def _set(raw: Any, keys: KeyPath, path: str) -> None:
    for key in keys[:-1]:
        raw = raw[key]
    raw[int(keys[-1]) if isinstance(raw, list) else keys[-1]] = path


def _exists(keys: KeyPath, path: str) -> bool:
    """True if there is a file of a key. A pattern is not followed below its first folder."""
    try:
        if keys in _WEIGHTS:
            return any(os.path.isfile(path + extension) for extension in _WEIGHTS_EXTENSIONS)
        if any(os.path.exists(path + extension) for extension in _CHECKPOINT_EXTENSIONS):
            return True
        return keys == _IMAGES and patterns.is_pattern(path) and patterns.may_match(path)
    except (OSError, ValueError):
        return False


def _copy(value: Any) -> Any:
    return {key: _copy(item) for key, item in value.items()} if isinstance(value, dict) else value


@functools.cache
def _say_once(message: str) -> None:
    """Logs a message. A command may load a config several times."""
    if environment.launched_rank() == 0:
        logger.warning(message)
