"""Checks that a fetched file has weights of its network, before it stays in the cache."""

from __future__ import annotations

from pathlib import Path

from ppxcls.checkpoints.files import CheckpointError
from ppxcls.models.foreign_weights import kind_instead
from ppxcls.system import environment


def content_problem(file: Path, network: str | None, *, is_known: bool) -> str | None:
    """Returns why a file has no weights of a network; None if it has.

    Args:
        file: file to read.
        network: name of the network; None if it is not known, then only the kind of the file is checked.
        is_known: True if the file has the digest that its publisher states. Then it is not read.
    """
    if is_known:
        return None
    if kind := kind_instead(file):
        return f"it is no file of weights, but {kind}"
    return None if network is None else _misfit(file, network)


def _misfit(file: Path, network: str) -> str | None:
    """Returns how weights do not fit a network; None if they do."""
    environment.import_paddle()
    from ppxcls.config.checks import ConfigPlace
    from ppxcls.models.common_keys import MODELS
    from ppxcls.models.weights import load_weights

    build = MODELS.get(network, ConfigPlace(("Arch", "name")))
    if not build.__module__.startswith("ppxcls."):
        return None  # a user's own network may need arguments
    try:
        load_weights(build(), file, keep_trunk=True)
    except CheckpointError as error:
        return f"it does not fit {network}: {str(error).removeprefix(str(file)).lstrip(': ')}"
    return None
