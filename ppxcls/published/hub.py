"""Reads what a repository of the hub says about its weights."""

from __future__ import annotations

from typing import Any

from ppxcls.published.web import BrokenTransferError, FetchError, MissingFileError, ServerAnswer, ask
from ppxcls.published.words import RemoteFile, file_address
from ppxcls.system import environment
from ppxcls.system.json_text import read_json

_CONFIG = "config.json"
_MAX_CONFIG_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 16
# Names that other programs give to networks of this package.
_OTHER_NAMES = {"xception": "legacy_xception"}


def check_architecture(remote: RemoteFile) -> str | None:
    """Returns the network that a repository names in ``config.json``; None if it names none.

    Args:
        remote: file in a repository of the hub, or elsewhere, which has no such file.

    Raises:
        FetchError: it is another network than the one that the weights are for, or none of this package.
    """
    if remote.repository is None or remote.entry is not None:
        return None
    name = _architecture(remote)
    if name is None:
        return None
    network = _OTHER_NAMES.get(name, name)
    environment.import_paddle()
    from ppxcls.models.common_keys import MODELS

    if network not in MODELS.names():
        raise FetchError(
            f"{remote.label}: refused, these are weights of {name}, and of no network of 'ppxcls list'"
        )
    pair = {network, remote.network}
    if remote.network is not None and len(pair) == 2 and pair != {"legacy_xception", "Xception"}:
        raise FetchError(f"{remote.label}: these are weights of {name}, and the network is {remote.network}")
    return remote.network or network


def _architecture(remote: RemoteFile) -> str | None:
    """Returns the name of the network in a repository's ``config.json``; None if it has no such text."""
    try:
        answer = ask(file_address(remote, _CONFIG))
    except MissingFileError:
        return None
    except BrokenTransferError as error:
        raise FetchError(f"{remote.label}: {error.reason}") from None
    try:
        values = read_json(_body(answer))
    except BrokenTransferError as error:
        raise FetchError(f"{remote.label}: {error.reason}") from None
    except ValueError as error:
        raise FetchError(f"{remote.label}: its {_CONFIG} is damaged: {error}") from None
    finally:
        answer.close()
    name: Any = values.get("architecture") if isinstance(values, dict) else None
    return name if isinstance(name, str) and name else None


def _body(answer: ServerAnswer) -> bytes:
    data = b""
    while block := answer.read(_BLOCK_BYTES):
        data += block
        if len(data) > _MAX_CONFIG_BYTES:
            raise ValueError(f"more than {_MAX_CONFIG_BYTES:,} bytes")
    return data
