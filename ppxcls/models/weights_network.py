"""Tells which network a file of weights belongs to."""

from __future__ import annotations

import re
from pathlib import Path

from ppxcls.checkpoints.files import CheckpointError, read_manifest
from ppxcls.config.checks import ConfigError
from ppxcls.config.yaml_values import read_yaml
from ppxcls.models.common_keys import MODELS
from ppxcls.models.network_keys import networks_with
from ppxcls.models.weights import weights_file
from ppxcls.models.weights_keys import weights_keys


def weights_network(path: str | Path) -> str:
    """Returns the name of the network that a file of weights belongs to.

    The first of these that tells it: the config in the manifest of the run that trained the weights, the keys
    in the file, and the file's name. ``Xception`` and ``legacy_xception`` have the same keys, so the format
    decides: Keras's files belong to ``Xception``, and torch's to ``legacy_xception``.

    Args:
        path: weights file; the extension may be omitted for files of this package.

    Raises:
        CheckpointError: the file can't be read, or the network can't be told.
    """
    file = weights_file(path)
    if (name := _network_of_run(file)) is not None:
        return name
    content = weights_keys(file)
    names = networks_with(content.keys, content.source)
    file_network = _network_of_name(file)
    if len(names) == 1:
        return names[0]
    if file_network is not None and (not names or file_network in names):
        return file_network
    reason = (
        f"it fits {' and '.join(names)}, which have the same keys" if names else "its keys are of no network"
    )
    raise CheckpointError(f"{file}: {reason}; name the network (Arch.name, --network, --model)")


def _network_of_run(file: Path) -> str | None:
    """Returns the network in the manifest beside a checkpoint; None if there is none."""
    prefix = file.with_suffix("")
    try:
        values = read_yaml(read_manifest(prefix)["config"], f"{prefix}.json")
    except (CheckpointError, ConfigError, KeyError, TypeError):
        return None
    arch = values.get("Arch") if isinstance(values, dict) else None
    name = arch.get("name") if isinstance(arch, dict) else None
    return name if isinstance(name, str) and name in MODELS.names() else None


def _network_of_name(file: Path) -> str | None:
    """Returns the network whose name a file's name begins with; None if there is none."""
    for flags in (re.UNICODE, re.IGNORECASE):
        names = [
            name
            for name in MODELS.names()
            if re.match(re.escape(name) + r"(?![A-Za-z0-9])", file.name, flags)
        ]
        if names:
            return max(names, key=len)
    return None
