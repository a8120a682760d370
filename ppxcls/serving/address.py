"""Reserves the address of the server, before the model is loaded."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Sequence

from ppxcls.data.errors import DataError

MAX_PORT = 65535
_ORIGIN = re.compile(r"https?://[^/\s?#@,\\]+")


def open_listener(host: str, port: int) -> socket.socket:
    """Returns a socket that is bound to an address and does not listen yet.

    Args:
        host: name or address of this machine; ``0.0.0.0`` or ``::`` for all of its addresses.
        port: port from 0 to 65535; 0 for a free one.

    Raises:
        DataError: the port is no port or is taken, or the host is not this machine.
    """
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= MAX_PORT:
        raise DataError(f"expected a port from 0 to {MAX_PORT}, received {port!r}")
    if not isinstance(host, str) or not host:
        raise DataError(f"expected a host such as 127.0.0.1, received {host!r}")
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError, ValueError) as error:
        raise DataError(f"expected an address of this machine, received the host {host!r}: {error}") from None
    family, _, _, _, address = sorted(entries, key=lambda entry: entry[0] != socket.AF_INET)[0]
    # asyncio sends small parts of an answer at once (TCP_NODELAY) only if the protocol is named.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # elsewhere the option lets two programs share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise DataError(_bind_message(error, host, port)) from None
    return listener


def _bind_message(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return taken_message(host, port)
    if error.errno == errno.EADDRNOTAVAIL:
        return (
            f"the host {host!r} is not an address of this machine; "
            "127.0.0.1 serves this machine only, and 0.0.0.0 serves all of its addresses"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port} needs the rights of an administrator; choose a port from 1024 with --port"
    return f"can't listen at {host}, port {port}: {error.strerror or error}"


def taken_message(host: str, port: int) -> str:
    """Returns the message for a port that another program listens at."""
    return f"port {port} of {host} is taken by another program; choose another --port, or 0 for a free one"


def url_of(listener: socket.socket) -> str:
    """Returns the URL of the address that a socket is bound to, with its real port."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def check_origins(origins: Sequence[str]) -> None:
    """Checks the origins of the web pages that may use the server.

    Raises:
        DataError: one of them is no origin, such as an address with a path.
    """
    for origin in [origins] if isinstance(origins, str) else origins:
        if origin != "*" and (not isinstance(origin, str) or not _ORIGIN.fullmatch(origin)):
            raise DataError(
                f"expected an origin such as https://example.org, without a path, or *; received {origin!r}"
            )
