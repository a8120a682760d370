"""What ``fit --from RUN`` takes from an earlier run, and what becomes of the classes of that run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from ppxcls.build.class_order import weights_classes
from ppxcls.config.load import load_config
from ppxcls.config.sections import to_plain
from ppxcls.data.errors import DataError
from ppxcls.data.label_mapping import UNKNOWN_CLASS, ClassNames, label_mapping
from ppxcls.models.common_keys import ModelKeys
from ppxcls.models.weights import weights_file
from ppxcls.system.json_text import json_text
from ppxcls.system.logs import logger

_RESULT = "best_model"
_MAX_SHOWN_CLASSES = 5
# Keys of ``Arch`` that belong to a training or to its classes, and not to the network.
_OTHER_KEYS = {"name", "class_num", *(field.name for field in fields(ModelKeys))}


@dataclass(frozen=True)
class EarlierRun:
    """What a new ``fit`` takes from an earlier run.

    Attributes:
        weights: prefix of its ``best_model``.
        network: name of its network.
        overrides: config overrides with its plugins and the arguments of its network.
    """

    weights: str
    network: str
    overrides: Sequence[str]


def earlier_run(
    folder: str | Path, *, weights: str | None, network: str | None, trust: bool = False
) -> EarlierRun:
    """Returns what a new ``fit`` takes from a run.

    Args:
        folder: run folder, such as ``output/photos/Xception41``.
        weights: weights argument of ``fit``, which must be None.
        network: network argument of ``fit``, which must be None.
        trust: True to run the plugins that the run names; see ``load_config``.

    Raises:
        DataError: the folder has no finished run, or one of the other arguments is given.
        ConfigError: the config of the run can't be used.
    """
    for name, value in (("--weights", weights), ("--network", network)):
        if value is not None:
            raise DataError(f"--from has the weights and the network: expected no {name}, received {value!r}")
    path = Path(folder)
    if not os.path.isfile(weights_file(path / _RESULT)):
        raise DataError(f"--from: expected the folder of a run, with {_RESULT}, received {folder}")
    config = load_config(path, trust=trust)
    arguments = {key: value for key, value in to_plain(config.Arch).items() if key not in _OTHER_KEYS}
    overrides = [f"Arch.{key}={json_text(value)}" for key, value in arguments.items()]
    if config.Global.plugins:
        overrides.insert(0, f"Global.plugins={json_text(list(config.Global.plugins))}")
    return EarlierRun(str(path / _RESULT), config.Arch.name, overrides)


def log_earlier_classes(weights: str, names: Sequence[str]) -> None:
    """Logs which classes of the weights have photographs, which classes are new, and which are left out.

    Args:
        weights: weights to start from.
        names: names of the classes of the photographs.
    """
    earlier_classes = weights_classes(weights)
    if earlier_classes is None:
        return
    mapping = label_mapping(ClassNames(tuple(names), "the photographs"), earlier_classes)
    if mapping is None:
        logger.info(f"the classes are those of {weights}")
        return
    ids = mapping.class_ids.tolist()
    new_names = [name for name, index in zip(names, ids, strict=True) if index == UNKNOWN_CLASS]
    lost_names = [name for index, name in enumerate(earlier_classes.names) if index not in ids]
    parts = [f"{len(names) - len(new_names):,} classes of {weights} have photographs"]
    if new_names:
        parts.append(f"{len(new_names):,} are new ({_excerpt(new_names)})")
    if lost_names:
        parts.append(
            f"{len(lost_names):,} have none and are left out ({_excerpt(lost_names)}): to keep a class, add "
            "a folder of its photographs, or a link to one"
        )
    (logger.warning if lost_names else logger.info)("; ".join(parts))


def _excerpt(names: Sequence[str]) -> str:
    return ", ".join(names[:_MAX_SHOWN_CLASSES]) + (", ..." if len(names) > _MAX_SHOWN_CLASSES else "")
