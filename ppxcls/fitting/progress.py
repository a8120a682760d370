"""The progress of ``fit``, in ``fit.json``, so that the same command continues what was interrupted."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ppxcls.checkpoints.files import WEIGHTS
from ppxcls.data.errors import DataError
from ppxcls.fitting.clock import Clock
from ppxcls.fitting.settings import Settings
from ppxcls.system.atomic_files import read_regular, write_text
from ppxcls.system.json_text import is_count, is_number, json_text, read_json

FILE = "fit.json"
_MAX_BYTES = 1 << 20
_TUPLES = ("mean", "std")
_SETTINGS_OF_0_13 = ("keeps_activations", "exit_epochs", "exit_step")  # of a stage that there is no more
_NOT_IN_FILE = ("file", "clock")  # attributes
_PATHS = ("PHOTOS", "--weights")  # arguments that are absolute paths


@dataclass
class FitProgress:
    """What ``fit`` was asked for, what it has chosen, and which of its steps are done.

    Attributes:
        file: file that keeps the progress.
        arguments: arguments of the command, by the option's name.
        photographs: digest of the lists of all photographs.
        settings: chosen settings.
        finished_steps: names of the finished steps.
        yaml_digests: SHA-256 of each YAML that was written, to recognise a user's change.
        folder: absolute path of the output folder when this was written; empty in files of version 0.12.1 and
            older. If the folder was moved with the photographs, their paths relative to it are still equal.
        used_seconds: time until the last finished step.
        clock: time of the command; None in tests of the file alone.
    """

    file: Path
    arguments: dict[str, Any]
    photographs: str
    settings: Settings
    finished_steps: list[str] = field(default_factory=list)
    yaml_digests: list[str] = field(default_factory=list)
    folder: str = ""
    used_seconds: float = 0.0
    clock: Clock | None = field(default=None, repr=False)

    def save(self) -> None:
        """Writes the progress.

        Raises:
            OSError: it can't be written.
        """
        content = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NOT_IN_FILE}
        content["settings"] = asdict(self.settings)
        write_text(self.file, json_text(content, indent=1, is_ascii=True) + "\n")

    def finish(self, step: str) -> None:
        """Records that a step is done, and the time until then."""
        if self.clock:
            self.used_seconds = self.clock.used
        self.finished_steps.append(step)
        self.save()

    def write_yaml(self, file: Path, text: str) -> None:
        """Writes a YAML and records its digest.

        Raises:
            DataError: the file was changed by the user since it was written.
            OSError: it can't be written.
        """
        if file.exists() and self._is_changed(file):
            raise DataError(
                f"{file} was changed after fit wrote it: train with 'ppxcls train -c {file}', "
                "or give another --output"
            )
        digest = _digest(text.encode("utf-8", "surrogateescape"))
        if digest not in self.yaml_digests:
            self.yaml_digests.append(digest)
            self.save()  # first, so that an interruption between the two does no harm
        write_text(file, text)

    def _is_changed(self, file: Path) -> bool:
        """True if a YAML has another content than ``fit`` wrote."""
        try:
            return _digest(read_regular(file, _MAX_BYTES)) not in self.yaml_digests
        except ValueError:  # no regular file, or larger than a YAML of ``fit``
            return True

    def continue_with(self, arguments: dict[str, Any], weights: str | None) -> None:
        """Compares the arguments of an earlier command with those of this one, and takes over moved paths.

        Args:
            arguments: arguments of this command, by the option's name.
            weights: weights of this command, as a path from the current folder.

        Raises:
            DataError: they differ. The message names the differences.
        """
        folder = str(self.file.parent.resolve())
        differences = [
            f"{name} was {_shown(self.arguments.get(name))}, and is now {_shown(value)}"
            for name, value in arguments.items()
            if self.arguments.get(name) != value
            and not (name in _PATHS and self._is_moved(self.arguments.get(name), value, folder))
        ]
        if differences:
            raise DataError(
                f"{self.file.parent} belongs to another fit: {'; '.join(differences)}; "
                "repeat the earlier command to continue it, or give another --output"
            )
        self.arguments, self.folder = arguments, folder
        self.settings = replace(self.settings, weights=weights)

    def _is_moved(self, earlier_path: str | None, path: str | None, folder: str) -> bool:
        """True if two paths are one file, or have the same place relative to the output folder."""
        if not earlier_path or not path:
            return False
        # Version 0.12.1 kept the name of the weights as it was typed, with or without the extension.
        earlier_name, name = earlier_path.removesuffix(WEIGHTS), path.removesuffix(WEIGHTS)
        if name == earlier_name:
            return True
        return bool(self.folder) and _place(name, folder) == _place(earlier_name, self.folder)


def read_progress(folder: Path, yaml_files: Sequence[str]) -> FitProgress | None:
    """Reads the progress of an earlier ``fit`` in a folder; None if there was none.

    Args:
        folder: output folder of ``fit``.
        yaml_files: names of the files that an earlier version wrote, which kept no progress.

    Raises:
        DataError: the file is damaged, or an earlier version has written to the folder.
    """
    file = folder / FILE
    try:
        content = read_json(read_regular(file, _MAX_BYTES))
        settings = content.pop("settings")
        for name in _SETTINGS_OF_0_13:
            settings.pop(name, None)
            settings.get("speeds", {}).pop(name, None)
        if not _has_valid_values(content, _CONTENT) or not _has_valid_values(settings, _SETTINGS):
            raise ValueError("a value of a wrong type")
        settings |= {name: tuple(settings[name]) for name in _TUPLES}
        return FitProgress(file=file, settings=Settings(**settings), clock=None, **content)
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{file} is damaged: give another --output, or remove {folder}") from None
    existing_files = [folder / name for name in yaml_files if (folder / name).exists()]
    if existing_files:
        commands = " and then ".join(
            f"'ppxcls train -c {existing} -o Global.checkpoints=auto'" for existing in existing_files
        )
        raise DataError(
            f"{existing_files[-1]} already exists: resume with {commands}, or give another --output"
        )
    return None


def _is_small_count(value: Any) -> bool:
    return is_count(value, (1 << 31) - 1)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_triple(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(is_number, value))


_CONTENT: dict[str, Callable[[Any], bool]] = {
    "arguments": lambda value: isinstance(value, dict),
    "photographs": _is_text,
    "finished_steps": _is_list_of_texts,
    "yaml_digests": _is_list_of_texts,
    "folder": _is_text,
    "used_seconds": lambda value: is_number(value) and value >= 0,
}
_SETTINGS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("class_num", "size", "batch_size", "epochs", "head_epochs"), _is_small_count),
    **dict.fromkeys(("network", "device"), _is_text),
    **dict.fromkeys(_TUPLES, _is_triple),
    "weights": lambda value: value is None or _is_text(value),
    "learning_rate": lambda value: is_number(value) and value > 0,
    **dict.fromkeys(("reasons", "freeze"), _is_list_of_texts),
    **dict.fromkeys(("feature_size", "copies"), _is_small_count),
    **dict.fromkeys(
        ("freezes_norms", "has_colors", "in_bfloat16", "trains_again", "flips"),
        lambda value: isinstance(value, bool),
    ),
    "norm_momentum": lambda value: value is None or (is_number(value) and 0 <= value < 1),
    "crop_share": lambda value: is_number(value) and 0 <= value <= 1,
    "interpolation": _is_text,
    "speeds": lambda value: isinstance(value, dict) and all(map(is_number, value.values())),
    "plan": lambda value: isinstance(value, list) and all(isinstance(row, dict) for row in value),
}


def _has_valid_values(values: dict[str, Any], rules: Mapping[str, Callable[[Any], bool]]) -> bool:
    """True if each value that is there has a valid type. The constructors refuse other and missing keys."""
    return all(is_valid(values[key]) for key, is_valid in rules.items() if key in values)


def _place(path: str, folder: str) -> str:
    """Returns a path relative to a folder; the path itself if that is on another drive."""
    try:
        return os.path.relpath(path, folder)
    except ValueError:
        return path


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _shown(value: Any) -> str:
    return "not given" if value in (None, False, []) else str(value)
