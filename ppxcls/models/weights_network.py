"""Tells which network a file of weights belongs to."""

from __future__ import annotations

import re
from pathlib import Path

from ppxcls.checkpoints.files import CheckpointError, read_manifest
from ppxcls.config.checks import ConfigError
from ppxcls.config.yaml_values import read_yaml
from ppxcls.models.common_keys import MODELS
from ppxcls.models.weights import weights_file
from ppxcls.models.weights_keys import WeightsKeys, weights_keys

_TWINS = ("Xception", "legacy_xception")  # the same keys and shapes, but another padding of the max pools
# Keys that only one family has, with the number of the block as a group. The highest number of a block tells
# which network of the family it is.
_FAMILIES: tuple[tuple[str, dict[tuple[int, ...], str]], ...] = (
    (r"xception_(41|65)/entry_flow/block1\.", {(41,): "Xception41_deeplab", (65,): "Xception65_deeplab"}),
    (
        r"_entry_flow\._conv_(\d+)\._short\.|_middle_flow\._conv_(\d+)\.",
        {(2, 7): "Xception41", (2, 15): "Xception65", (4, 15): "Xception71"},
    ),
    (
        r"(?:^|\.)blocks\.(\d+)\.stack\.conv1\.bn_dw\.",
        {(12,): "xception41", (20,): "xception65", (22,): "xception71"},
    ),
    (r"(?:^|\.)blocks\.(\d+)\.stack\.conv2\.norm\.", {(12,): "xception41p", (20,): "xception65p"}),
)
_TWIN_PATTERN = re.compile(r"(?:^|\.)block12\.rep\.\d+\.pointwise\.weight$")


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
    names = _networks_with(weights_keys(file))
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


def _networks_with(content: WeightsKeys) -> list[str]:
    """Returns the networks that have these keys: one, two that have the same keys, or none."""
    for pattern, networks in _FAMILIES:
        expression = re.compile(pattern)
        numbers: dict[int, int] = {}  # highest number of each group
        for key in content.keys:
            if match := expression.search(key):
                for i, digits in enumerate(match.groups()):
                    if digits is not None and len(digits) < 4:
                        numbers[i] = max(numbers.get(i, 0), int(digits))
        if numbers:
            name = networks.get(tuple(numbers[i] for i in sorted(numbers)))
            return [name] if name else []
    if not any(map(_TWIN_PATTERN.search, content.keys)):
        return []
    # Files of this package don't tell where the weights came from.
    return {"keras": ["Xception"], "torch": ["legacy_xception"], "paddle": list(_TWINS)}[content.source]


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
