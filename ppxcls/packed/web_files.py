"""Reads files of a web server. Nothing that a server sends is read beyond what was asked for."""

from __future__ import annotations

import errno
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

_TIMEOUT_SECONDS = 30.0
_SLOW_SECONDS, _MIN_BYTES_PER_SECOND = 30.0, 1000  # seconds at any rate, and the rate that is needed then
_BLOCK_BYTES = 1 << 20
_USER_AGENT = "ppxcls"


class WebFiles:
    """The part of a file system of fsspec that packed data sets need, for ``http`` and ``https``.

    fsspec's own one reads an answer to its end, so a server could fill the memory.
    """

    protocol = ("http", "https")

    def size(self, path: str) -> int:
        """Returns the size of a file in bytes, as the server states it.

        Raises:
            OSError: the server does not answer, has no such file, or states no size.
        """
        with _answer(path, method="HEAD") as answer:
            length = answer.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()):
            raise OSError(errno.EIO, f"{path}: the server states no size")
        return int(length[:20])

    def cat_file(self, path: str, start: int, end: int) -> bytes:
        """Returns a range of bytes.

        Raises:
            OSError: the server does not answer, has no such file, or sends no ranges.
        """
        if end <= start:
            return b""
        with _answer(path, headers={"Range": f"bytes={start}-{end - 1}"}) as answer:
            if answer.status != 206:
                raise OSError(errno.EIO, f"{path}: the server sends no ranges of a file; set cache_gb")
            return _Reader(answer).read(end - start)

    def open(self, path: str, mode: str = "rb") -> _Stream:  # noqa: ARG002  fsspec's signature
        """Opens a file for reading from its start.

        Raises:
            OSError: the server does not answer, or has no such file.
        """
        return _Stream(_answer(path))


class _Stream:
    """An answer of a server as a file."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer
        self._reader = _Reader(answer)

    def read(self, size: int) -> bytes:
        """Returns the next bytes, fewer at the end of the file."""
        return self._reader.read(size)

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._answer.close()


class _SameKindOfServer(urllib.request.HTTPRedirectHandler):
    """Follows a redirection to a web server, but not from an encrypted connection to an open one."""

    def redirect_request(self, *arguments: Any) -> urllib.request.Request | None:
        """Returns the request to send instead. The base class gives the arguments."""
        request, address = arguments[0], arguments[-1]
        schemes = ("https",) if request.type == "https" else ("http", "https")
        if urllib.parse.urlsplit(address).scheme not in schemes:
            raise OSError(errno.EIO, f"{request.full_url}: refused, a redirection to {address[:80]!r}")
        if arguments[2] == 308:  # Python 3.10 does not know it
            arguments = (*arguments[:2], 307, *arguments[3:])
        return super().redirect_request(*arguments)

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302


_OPENER = urllib.request.OpenerDirector()
for _handler in (
    urllib.request.ProxyHandler(),
    urllib.request.HTTPHandler(),
    urllib.request.HTTPSHandler(),
    urllib.request.HTTPDefaultErrorHandler(),
    urllib.request.HTTPErrorProcessor(),
    _SameKindOfServer(),
):
    _OPENER.add_handler(_handler)


def _answer(path: str, method: str = "GET", headers: dict[str, str] | None = None) -> Any:
    """Returns the answer of a server.

    Raises:
        OSError: the server does not answer, or its answer is an error.
    """
    try:
        # S310: the scheme is http or https, and so is that of each redirection.
        request = urllib.request.Request(  # noqa: S310
            path, method=method, headers={"User-Agent": _USER_AGENT, **(headers or {})}
        )
        return _OPENER.open(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (404, 410):
            raise FileNotFoundError(errno.ENOENT, "no such file", path) from None
        raise OSError(errno.EIO, f"{path}: the server answers {error.code}") from None
    except OSError as error:
        if isinstance(error, urllib.error.URLError):
            raise OSError(errno.EIO, f"{path}: {error.reason}") from None
        raise


class _Reader:
    """Reads an answer of a server, and ends if the server is too slow.

    Args:
        answer: answer of ``urllib``.
    """

    def __init__(self, answer: Any) -> None:
        self._answer = answer
        self._start = time.monotonic()
        self._byte_count = 0

    def read(self, size: int) -> bytes:
        """Returns up to ``size`` bytes, fewer only at the end of the answer.

        Raises:
            OSError: the server sends nothing for a while, or too few bytes a second.
        """
        parts = []
        while size > 0 and (part := self._answer.read1(min(size, _BLOCK_BYTES))):
            parts.append(part)
            size -= len(part)
            self._byte_count += len(part)
            seconds = time.monotonic() - self._start
            if seconds > _SLOW_SECONDS and self._byte_count < seconds * _MIN_BYTES_PER_SECOND:
                raise OSError(errno.ETIMEDOUT, f"the server sends too slowly, {self._byte_count:,} bytes")
        return b"".join(parts)
