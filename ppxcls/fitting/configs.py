"""Loads the YAML files of ``fit`` with the overrides of its command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ppxcls.config.load import load_config
from ppxcls.config.sections import Config
from ppxcls.fitting.request import Request
from ppxcls.fitting.yaml_files import HEAD_KEYS, TRAIN_YAML


def config_of(request: Request, file: Path, extra_overrides: Sequence[str] = ()) -> Config:
    """Returns the config of one of the YAML files.

    Args:
        request: arguments of ``fit``.
        file: YAML file.
        extra_overrides: overrides ``A.b=value`` after those of the command.

    Raises:
        ConfigError: the YAML or an override is invalid, or limits the hours of a training.
    """
    overrides = [
        text for text in request.overrides if file.name == TRAIN_YAML or not text.startswith(HEAD_KEYS)
    ]
    config = load_config(file, [*overrides, *extra_overrides], trust=request.trust)
    # A training whose hours are over ends like a finished one, so its result would be taken too early.
    if (hours := config.Global.max_hours) is not None:
        message = f"expected null, because --minutes limits the time of fit, received {hours:g}"
        raise config.where("Global.max_hours").error(message)
    return config
