"""Finds keys of a section of a YAML that belong in another section, or that other programs have there."""

from __future__ import annotations

import functools
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from ppxcls.config.checks import ConfigPlace
from ppxcls.config.paddleclas import is_harmless, unsupported_message
from ppxcls.config.sections import Config

# Sections with keys of their own. The other sections share names, such as Train and batch_size.
_HOMES = ("Global", "AMP", "EMA")
_EARLY_STOP_EXAMPLE = "{patience: 10, min_delta: 0.0, start_epoch: 0}"
# Keys of PaddleX, Ultralytics, Keras, Lightning and Transformers, and the key of Global that does the same.
_FOREIGN_KEYS = {
    **dict.fromkeys(
        ("patience", "early_stop_patience", "early_stopping_patience"), "Global.early_stop.patience"
    ),
    **dict.fromkeys(("min_delta", "early_stopping_threshold"), "Global.early_stop.min_delta"),
    **dict.fromkeys(("start_epoch", "start_from_epoch"), "Global.early_stop.start_epoch"),
    **dict.fromkeys(("early_stopping", "EarlyStopping"), f"Global.early_stop: {_EARLY_STOP_EXAMPLE}"),
    **dict.fromkeys(
        ("time", "max_time", "max_minutes", "max_train_hours"), "Global.max_hours, a number of hours"
    ),
    "restore_best_weights": "nothing, because best_model is always written",
}


def refuse_foreign_keys(raw: Mapping[str, Any], where: ConfigPlace) -> None:
    """Refuses keys that other programs have for the end of a training, with the name of the key here.

    Args:
        raw: mapping of the YAML.
        where: place of the mapping.

    Raises:
        ConfigError: ``Global`` has such a key, or ``early_stop`` as a switch.
    """
    section = raw.get("Global")
    if not isinstance(section, Mapping):
        return
    for key in section:
        if advice := _FOREIGN_KEYS.get(key):
            raise (where / "Global" / key).error(f"unknown key {key!r}; write {advice}")
    if isinstance(section.get("early_stop"), bool):  # PaddleX's switch
        switch = str(section["early_stop"]).lower()
        raise (where / "Global" / "early_stop").error(
            f"expected a mapping such as {_EARLY_STOP_EXAMPLE}, or null, received {switch}"
        )


def refuse_misplaced_keys(raw: Mapping[str, Any], where: ConfigPlace) -> None:
    """Refuses a key that has exactly the name of a key of another section.

    A similar name of the same section would be a worse advice. Other unknown keys are refused later.

    Args:
        raw: mapping of the YAML.
        where: place of the mapping.

    Raises:
        ConfigError: there is such a key. The message names the other place.
    """
    keys_by_section = _keys_by_section()
    for section, known_keys in keys_by_section.items():
        values = raw.get(section)
        for key, value in values.items() if isinstance(values, Mapping) else ():
            homes = [f"{home}.{key}" for home in _HOMES if key in keys_by_section[home]]
            is_explained = is_harmless(key, value) or unsupported_message(key) is not None
            if key not in known_keys and homes and not is_explained:
                raise (where / section / key).error(f"unknown key {key!r}; write {' or '.join(homes)}")


@functools.cache
def _keys_by_section() -> dict[str, tuple[str, ...]]:
    """Returns the keys of each section that has fixed keys."""
    result = {}
    for section, hint in typing.get_type_hints(Config).items():
        for kind in (hint, *typing.get_args(hint)):
            if is_dataclass(kind) and section in _section_names() and kind.__module__ == Config.__module__:
                result[section] = tuple(field.name for field in fields(kind))
    return result


def _section_names() -> set[str]:
    return {field.name for field in fields(Config) if field.init}
