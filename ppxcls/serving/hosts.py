"""Decides whose requests are answered: names of this server, and web pages that may use it."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ppxcls.data.errors import DataError
from ppxcls.serving.endings import send_error

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9_])?\.?")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,255})(?::([0-9]{1,5}))?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


def check_host_names(names: Sequence[str]) -> None:
    """Checks the values of ``--allowed-host``.

    Raises:
        DataError: one of them is no name or address, such as one with a port.
    """
    for name in names:
        if name != "*" and (not isinstance(name, str) or not (_NAME.fullmatch(name) or _is_address(name))):
            raise DataError(
                "expected an allowed host as a name or an address without a port, such as example.org, "
                f"or *; received {name!r}"
            )


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return False
    return True


def _plain(name: str) -> str:
    """Returns a name or an address as it is compared."""
    name = name.strip("[]").rstrip(".").lower()
    return str(ipaddress.ip_address(name)) if _is_address(name) else name


class AllowedHosts:
    """The names under which a server answers.

    Without them, a web page could give its own name this server's address (DNS rebinding), and read answers
    of a server that listens on the loopback address only.

    Args:
        address: address that the server listens on. For all addresses of the machine, each address is
            allowed, because a page can't choose one as its own name.
        host: name that the user gave for it.
        names: other names; ``*`` for all.
    """

    def __init__(self, address: str, host: str = "", names: Sequence[str] = ()) -> None:
        self.allows_all = "*" in names
        self._allows_addresses = _is_address(address) and ipaddress.ip_address(address).is_unspecified
        own_names = [*_LOOPBACK_NAMES, address, host]
        if self._allows_addresses:
            own_names.append(socket.gethostname())
        self._names = {_plain(name) for name in (*own_names, *names) if name}

    def allow(self, host: str) -> bool:
        """True if the value of a header ``Host`` is one of the names, with any port."""
        if self.allows_all:
            return True
        match = _HOST.fullmatch(host)
        if not match:
            return False
        name = _plain(match[1])
        return name in self._names or (self._allows_addresses and _is_address(name))


def is_same_origin(origin: str, host: str) -> bool:
    """True if a page of this origin came from the server that a request addresses.

    A proxy may have removed TLS, so the scheme is not compared.
    """
    scheme, separator, place = origin.lower().partition("://")
    if not separator or scheme not in _DEFAULT_PORTS:
        return False
    host = host.lower()
    return host in (
        place,
        f"{place}:{_DEFAULT_PORTS[scheme]}",
        place.removesuffix(_DEFAULT_PORTS[scheme])[:-1],
    )


class Doorkeeper:
    """Middleware that refuses requests for other hosts, and POST requests of web pages of other origins.

    A page of any origin may send a POST request without asking, and a browser only hides the answer.

    Args:
        app: application behind it.
        hosts: names of the server; None to answer under all names.
        origins: origins whose pages may send requests; ``*`` for all.
    """

    def __init__(self, app: ASGIApp, hosts: AllowedHosts | None, origins: Sequence[str]) -> None:
        self._app = app
        self._hosts, self._origins = hosts, {origin.lower() for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = self._problem(scope) if scope["type"] == "http" else None
        if problem is None:
            await self._app(scope, receive, send)
            return
        await send_error(send, *problem)

    def _problem(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        host = headers.get("host")
        # Only HTTP/1.0 has requests without the header, and no browser sends them.
        if self._hosts is not None and host is not None and not self._hosts.allow(host):
            name = ascii(host[:100])
            return 421, f"this server does not answer for the host {name}; its option is --allowed-host NAME"
        if scope["method"] != "POST" or "*" in self._origins:
            return None
        sites = headers.getlist("sec-fetch-site")
        origins = headers.getlist("origin")
        # Only browsers write this header, and a proxy may have replaced the host that the page named.
        if sites == ["same-origin"]:
            return None
        foreign_names = [site for site in sites if site != "none" and not origins]
        foreign_names += [origin for origin in origins if not self._is_known(origin, host or "")]
        if foreign_names:
            name = ascii(foreign_names[0][:100])
            return 403, f"pages of the origin {name} may not use this server; its option is --cors ORIGIN"
        return None

    def _is_known(self, origin: str, host: str) -> bool:
        return origin.lower() in self._origins or is_same_origin(origin, host)
