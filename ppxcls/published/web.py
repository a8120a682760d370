"""Asks web servers for files. Nothing that a server sends is believed, and nothing of it is in messages.

A redirection is followed to web servers only, and not from an encrypted connection to an open one. The token
of the hub goes to the hub alone.
"""

from __future__ import annotations

import contextlib
import email.utils
import errno
import http.client
import ipaddress
import os
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message
from typing import Any

from ppxcls.checkpoints.files import CheckpointError
from ppxcls.published.words import WordError, check_address, hub_address
from ppxcls.system.job_secret import addresses_of, is_loopback

MAX_REDIRECTIONS = 10
TIMEOUT_SECONDS = 30.0  # without an answer or without a byte
HEAD_SECONDS = 60.0  # for all headers of an answer, whose single bytes may come in time
_RETRIED_CODES = (408, 425, 429, 500, 502, 503, 504)
_REDIRECTION_CODES = (301, 302, 303, 307, 308)
_LINKED_HEADERS = ("X-Linked-Etag", "X-Linked-Size")  # the hub states them before it redirects to its storage
_MAX_LOCATION_LENGTH = 8000
_USER_AGENT = "ppxcls"
_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


class FetchError(CheckpointError):
    """A file can't be fetched. The message gives the reason and what to do."""


class MissingFileError(FetchError):
    """The server has no such file."""


class BrokenTransferError(Exception):
    """A connection that broke, or a server that is busy: worth another try.

    Args:
        reason: description for a message.
        wait_seconds: time after which the server wants to be asked again; None if it does not say.
    """

    def __init__(self, reason: str, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait_seconds = wait_seconds


@dataclass
class ServerAnswer:
    """The answer of a server.

    Attributes:
        stream: its body.
        code: status code: 200, 206 or 416.
        headers: headers of the last answer. Their names may be in small letters.
        address: address that was asked for.
        linked_headers: what the hub has stated before a redirection.
    """

    stream: Any
    code: int
    headers: Message
    address: str
    linked_headers: Mapping[str, str] = field(default_factory=dict)

    def header(self, name: str) -> str:
        """Returns a header; empty if there is none."""
        return str(self.linked_headers.get(name) or self.headers.get(name) or "")

    @property
    def length(self) -> int | None:
        """Number of bytes of the body, as the server states it; None if it does not."""
        text = self.header("Content-Length")
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None

    def read(self, max_bytes: int) -> bytes:
        """Returns the next bytes, up to a limit; empty at the end.

        Raises:
            BrokenTransferError: the connection broke or stalled.
        """
        try:
            return bytes(self.stream.read1(max_bytes))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise BrokenTransferError(_reason(error)) from None

    def close(self) -> None:
        """Closes the connection."""
        self.stream.close()


def ask(address: str, headers: Mapping[str, str] | None = None) -> ServerAnswer:
    """Returns the answer of a server, after its redirections.

    Args:
        address: address of the file.
        headers: headers of the request.

    Raises:
        MissingFileError: the server has no such file.
        FetchError: the server can't be reached, refuses, or redirects to a place that is not followed.
        BrokenTransferError: the connection broke, or the server is busy.
    """
    opener = _opener()
    request_headers = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity", **(headers or {})}
    linked_headers: dict[str, str] = {}
    current_address = address
    for _ in range(MAX_REDIRECTIONS + 1):
        response = _response(opener, current_address, {**request_headers, **_token(current_address)})
        for name in _LINKED_HEADERS:
            if (value := response.headers.get(name)) and _is_hub(current_address):
                linked_headers[name] = value
        if response.status not in _REDIRECTION_CODES:
            return _checked(response, address, linked_headers)
        location = response.headers.get("Location") or ""
        response.close()
        current_address = _next_address(current_address, location, address)
    raise FetchError(f"{address}: the server redirects more than {MAX_REDIRECTIONS} times")


class _Response(http.client.HTTPResponse):
    """An answer whose headers must come within a limit."""

    def __init__(self, sock: socket.socket, *arguments: Any, **settings: Any) -> None:
        super().__init__(sock, *arguments, **settings)
        self._connection = sock

    def begin(self) -> None:
        """Reads the headers.

        Raises:
            TimeoutError: they take too long.
        """
        is_late = threading.Event()
        timer = threading.Timer(HEAD_SECONDS, _break, [self._connection, is_late])
        timer.daemon = True
        timer.start()
        try:
            super().begin()
        finally:
            timer.cancel()
            del self._connection
            if is_late.is_set():  # http.client takes what came until then for all headers
                raise TimeoutError(errno.ETIMEDOUT, f"no whole headers in {HEAD_SECONDS:.0f} s")


def _break(connection: socket.socket, is_late: threading.Event) -> None:
    is_late.set()
    with contextlib.suppress(OSError):  # it is closed already
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


class _BoundedHead(urllib.request.AbstractHTTPHandler):
    """Lets a handler of urllib read its answers as ``_Response``."""

    def do_open(self, http_class: Any, req: urllib.request.Request, **settings: Any) -> Any:
        """Sends a request, as urllib does."""

        def connection(*arguments: Any, **values: Any) -> Any:
            new_connection = http_class(*arguments, **values)
            new_connection.response_class = _Response
            return new_connection

        return super().do_open(connection, req, **settings)


class _HTTPHandler(_BoundedHead, urllib.request.HTTPHandler):
    pass


class _HTTPSHandler(_BoundedHead, urllib.request.HTTPSHandler):
    pass


def _opener() -> urllib.request.OpenerDirector:
    """Returns what sends requests. It follows nothing by itself, and knows web servers and proxies only."""
    opener = urllib.request.OpenerDirector()
    for handler in (urllib.request.ProxyHandler(), _HTTPHandler(), _HTTPSHandler()):
        opener.add_handler(handler)
    return opener


def _response(opener: urllib.request.OpenerDirector, address: str, headers: Mapping[str, str]) -> Any:
    host = urllib.parse.urlsplit(address).hostname
    try:
        # S310: the scheme is http or https, as check_address has found.
        request = urllib.request.Request(address, headers=dict(headers))  # noqa: S310
        response = opener.open(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.URLError as error:
        reason = error.reason if isinstance(error.reason, Exception) else error
        if isinstance(reason, socket.gaierror):
            raise FetchError(
                f"{host}: no such host, or this machine is offline; copy the file to this machine, and give "
                "its path"
            ) from None
        if isinstance(reason, OSError) and reason.errno in (errno.ECONNREFUSED, errno.ENETUNREACH):
            raise FetchError(f"{host} can't be reached: {_reason(reason)}") from None
        if isinstance(reason, OSError) and type(reason).__name__.startswith("SSL"):
            raise FetchError(f"{host}: no trustworthy connection: {_reason(reason)}") from None
        raise BrokenTransferError(_reason(reason)) from None
    except (OSError, http.client.HTTPException) as error:
        raise BrokenTransferError(_reason(error)) from None
    except (ValueError, UnicodeError) as error:  # an answer that http.client does not understand
        raise FetchError(f"{host}: the server's answer makes no sense: {type(error).__name__}") from None
    if response is None:
        raise FetchError(f"{address}: the proxy of this address is of an unknown kind")
    return response


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError) and not error.strerror:
        return f"nothing for {TIMEOUT_SECONDS:g} s"
    if isinstance(error, OSError) and error.strerror:
        return str(error.strerror)
    return f"the connection broke ({type(error).__name__})"


def _next_address(current_address: str, location: str, address: str) -> str:
    """Returns the address that a server redirects to.

    Raises:
        FetchError: it is no web address, or less safe than the current one.
    """
    refusal = f"{address}: refused, a redirection to"
    if not location or len(location) > _MAX_LOCATION_LENGTH:
        raise FetchError(f"{refusal} {'nothing' if not location else 'an address that is too long'}")
    try:
        joined_address = urllib.parse.urljoin(current_address, location)
        quoted_address = urllib.parse.quote(joined_address, safe="%/:=&?~#+!$,;'@()*[]")
        check_address(quoted_address, "redirection")
        parts = urllib.parse.urlsplit(joined_address)
    except (ValueError, WordError):
        raise FetchError(f"{refusal} what is no address of a web server: {location[:100]}") from None
    current_parts = urllib.parse.urlsplit(current_address)
    if current_parts.scheme == "https" and parts.scheme != "https":
        raise FetchError(f"{refusal} a connection that is not encrypted: {location[:100]}")
    if _leads_here(parts.hostname) and not is_loopback(current_parts.hostname or ""):
        raise FetchError(f"{refusal} this machine itself: {location[:100]}")
    return quoted_address.partition("#")[0]


def _leads_here(host: str | None) -> bool:
    """True if a host name has an address of this machine itself."""
    addresses = [ipaddress.ip_address(address.partition("%")[0]) for address in addresses_of(host or "")]
    return any(address.is_loopback or address.is_unspecified for address in addresses)


def _checked(response: Any, address: str, linked_headers: Mapping[str, str]) -> ServerAnswer:
    """Returns an answer with the file.

    Raises:
        FetchError, BrokenTransferError: the answer is an error of the server.
    """
    code, host = response.status, urllib.parse.urlsplit(address).hostname
    if code in (200, 206, 416):
        if (encoding := response.headers.get("Content-Encoding") or "identity") != "identity":
            response.close()
            raise FetchError(f"{address}: refused, the server sends it compressed ({encoding[:40]})")
        return ServerAnswer(response, code, response.headers, address, linked_headers)
    wait_seconds = _retry_after(response.headers.get("Retry-After"))
    response.close()
    if code in _RETRIED_CODES:
        reason = "this machine asks too often" if code == 429 else f"the server answers {code}"
        raise BrokenTransferError(reason, wait_seconds)
    if code in (404, 410):
        raise MissingFileError(f"{address}: the server has no such file ({code})")
    if code in (401, 403) and _is_hub(address):
        raise FetchError(
            f"{address}: {host} refuses ({code}): there is no such repository, or it is private; set "
            "HF_TOKEN to a token that may read it"
        )
    if code in (401, 403, 407):
        raise FetchError(
            f"{address}: {host} refuses ({code}); get the file by other means, and give its path"
        )
    raise FetchError(f"{address}: {host} answers {code}, and not with a file")


def _retry_after(text: str | None) -> float | None:
    """Returns the seconds of a header ``Retry-After``, which is a number or a date; None if it is neither."""
    if not text:
        return None
    if text.isascii() and text.strip().isdecimal():
        return float(text.strip()[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _is_hub(address: str) -> bool:
    """True if an address is on the hub, or on its mirror."""
    parts, hub_parts = urllib.parse.urlsplit(address), urllib.parse.urlsplit(hub_address())
    return (parts.scheme, parts.netloc) == (hub_parts.scheme, hub_parts.netloc)


def _is_proxied(parts: urllib.parse.SplitResult) -> bool:
    """True if a request of an address goes to a proxy first."""
    has_proxy = bool(urllib.request.getproxies().get(parts.scheme))
    return has_proxy and not urllib.request.proxy_bypass(parts.netloc)


def _token(address: str) -> dict[str, str]:
    """Returns the header with the user's token of the hub; empty for other servers and open connections.

    On this machine, an open connection is safe, unless a proxy is asked first.
    """
    token = next((text for name in _TOKEN_VARIABLES if (text := os.environ.get(name, "").strip())), "")
    if not token:
        return {}
    parts = urllib.parse.urlsplit(address)
    is_local = is_loopback(parts.hostname or "") and not _is_proxied(parts)
    is_safe = parts.scheme == "https" or is_local
    if not is_safe or not _is_hub(address):
        return {}
    if not token.isascii() or not token.isprintable():
        raise FetchError("environment variable HF_TOKEN: expected a token of printable characters")
    return {"Authorization": f"Bearer {token}"}
