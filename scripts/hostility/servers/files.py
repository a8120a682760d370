"""A web server of one file on this machine, which can cut, lie, redirect, stall, and answer with errors."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Trick = Callable[[http.server.BaseHTTPRequestHandler, "FileServer"], None]


@dataclass
class Seen:
    """A request that the server got.

    Attributes:
        path: path of the request.
        headers: headers, by names in small letters.
    """

    path: str
    headers: dict[str, str]


@dataclass
class FileServer:
    """A server with files, and tricks that are played one after another.

    Attributes:
        files: content by path.
        tricks: what to do with the first requests instead of answering them. The last one stays if
            ``is_last_kept`` is set.
        is_last_kept: True to play the last trick for all later requests.
        has_tags: True to state a tag of each file.
        takes_ranges: False to answer a request for a range with the whole file.
        linked_sha256: what the hub states about the file; empty for nothing.
        has_small_headers: True to write names of headers in small letters, as many servers and proxies do.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    tricks: list[Trick] = field(default_factory=list)
    is_last_kept: bool = False
    has_tags: bool = True
    takes_ranges: bool = True
    linked_sha256: str = ""
    has_small_headers: bool = False
    requests: list[Seen] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    @property
    def address(self) -> str:
        """Address of the server."""
        return f"http://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def running(self) -> Iterator[FileServer]:
        """Runs the server in threads."""
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        server.daemon_threads = True
        self.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield self
        finally:
            self.release.set()
            server.shutdown()
            server.server_close()

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                owner.requests.append(Seen(self.path, headers))
                if owner.tricks and not (owner.is_last_kept and len(owner.tricks) == 1):
                    owner.tricks.pop(0)(self, owner)
                elif owner.tricks:
                    owner.tricks[0](self, owner)
                else:
                    send_file(self, owner)

            def send_header(self, keyword: str, value: str) -> None:
                super().send_header(keyword.lower() if owner.has_small_headers else keyword, value)

            def log_message(self, *arguments: Any) -> None:
                pass

            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    super().handle()

        return Handler


def send_file(handler: http.server.BaseHTTPRequestHandler, server: FileServer) -> None:
    """Answers as a good server does, also a request for a range."""
    data = server.files.get(handler.path.partition("?")[0])
    if data is None:
        send(handler, 404, b"no such file")
        return
    tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
    headers = {"ETag": tag} if server.has_tags else {}
    if server.linked_sha256:
        headers["X-Linked-Etag"] = f'"{server.linked_sha256}"'
    wanted_range = handler.headers.get("Range", "")
    is_same = handler.headers.get("If-Range", tag) == tag
    if wanted_range and server.takes_ranges and is_same:
        first = int(wanted_range.removeprefix("bytes=").rstrip("-"))
        if first >= len(data):
            send(handler, 416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        send(handler, 206, data[first:], headers)
        return
    send(handler, 200, data, headers)


def send(
    handler: http.server.BaseHTTPRequestHandler,
    code: int,
    body: bytes,
    headers: dict[str, str] | None = None,
) -> None:
    """Sends an answer with its length, unless the headers have another one."""
    handler.send_response(code)
    values = {"Content-Length": str(len(body)), **(headers or {})}
    for name, value in values.items():
        if value:
            handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def cut(share: float) -> Trick:
    """Returns a trick that breaks the connection after a share of the file, in any range."""

    def trick(handler: http.server.BaseHTTPRequestHandler, server: FileServer) -> None:
        write = handler.wfile.write
        data = server.files[handler.path]

        def write_less(body: bytes) -> int:
            if len(body) < 1000:
                return write(body)
            return write(body[: int(len(data) * share)])

        handler.wfile.write = write_less  # type: ignore[method-assign]
        send_file(handler, server)
        handler.wfile.flush()
        handler.close_connection = True
        with contextlib.suppress(OSError):
            handler.connection.shutdown(socket.SHUT_RDWR)

    return trick


def answer(code: int, body: bytes = b"", **headers: str) -> Trick:
    """Returns a trick that sends an answer. In names of headers, ``_`` stands for ``-``."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, _: send(handler, code, body, names)


def redirect(location: str, code: int = 302) -> Trick:
    """Returns a trick that redirects."""
    return answer(code, Location=location)


def stall(handler: http.server.BaseHTTPRequestHandler, server: FileServer) -> None:
    """Sends the beginning of the file, and then nothing more."""
    data = server.files[handler.path]
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])
    handler.wfile.flush()
    server.release.wait(60)
    handler.close_connection = True
