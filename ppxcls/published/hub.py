"""Reads what a repository of the hub says about its weights."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from ppxcls.published.attempts import repeated
from ppxcls.published.web import BrokenTransferError, FetchError, MissingFileError, ask
from ppxcls.published.words import RemoteFile, file_address
from ppxcls.system import environment
from ppxcls.system.json_text import read_json
from ppxcls.system.logs import warn_once

_CONFIG = "config.json"
_MAX_CONFIG_BYTES = 1 << 20
_MAX_SECONDS = 30.0
_BLOCK_BYTES = 1 << 16
# Names that other programs give to networks of this package.
_OTHER_NAMES = {"xception": "legacy_xception"}


def check_architecture(remote: RemoteFile) -> str | None:
    """Returns the network of a repository's weights; None if it is not known.

    This is the network that the user has named, otherwise the one that the repository names in
    ``config.json``. A name that this package does not know says nothing, because everybody may choose one.

    Args:
        remote: file in a repository of the hub, or elsewhere, which has no such file.

    Raises:
        FetchError: it is another network than the one that the weights are for; or the user has named none,
            and it is none of this package.
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
        if remote.network is None:
            raise FetchError(
                f"{remote.label}: refused, these are weights of {name}, and of no network of 'ppxcls list'"
            )
        warn_once(
            f"{remote.label}: its {_CONFIG} names {name}, which is no network of 'ppxcls list'; "
            f"keys and shapes must fit {remote.network}"
        )
        return remote.network
    pair = {network, remote.network}
    if remote.network is not None and len(pair) == 2 and pair != {"legacy_xception", "Xception"}:
        raise FetchError(f"{remote.label}: these are weights of {name}, and the network is {remote.network}")
    return remote.network or network


def _architecture(remote: RemoteFile) -> str | None:
    """Returns the name of the network in a repository's ``config.json``; None if it has no such text."""
    address = file_address(remote, _CONFIG)
    try:
        values = read_json(repeated(lambda: _content(address), label=remote.label, address=address))
    except MissingFileError:
        return None
    except ValueError as error:
        raise FetchError(f"{remote.label}: its {_CONFIG} is damaged: {error}") from None
    name: Any = values.get("architecture") if isinstance(values, dict) else None
    return name if isinstance(name, str) and name else None


def _content(address: str) -> bytes:
    """Returns a small file.

    Raises:
        FetchError: the server refuses it.
        BrokenTransferError: the connection broke, or the server is busy or slow.
        ValueError: the file is too large.
    """
    data = b""
    deadline = time.monotonic() + _MAX_SECONDS
    answer = ask(address)
    with contextlib.closing(answer):
        while block := answer.read(_BLOCK_BYTES):
            data += block
            if len(data) > _MAX_CONFIG_BYTES:
                raise ValueError(f"more than {_MAX_CONFIG_BYTES:,} bytes")
            if time.monotonic() > deadline:
                raise BrokenTransferError(f"only {len(data):,} bytes in {_MAX_SECONDS:.0f} s")
        if len(data) < (answer.length or 0):
            raise BrokenTransferError(f"the connection broke at {len(data):,} of {answer.length:,} bytes")
    return data
