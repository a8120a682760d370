"""Many connections at once: idle ones, slow ones, large ones; and honest clients meanwhile."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from hostility.servers.pictures import many_scans, png
from hostility.servers.process import OTHER_ADDRESS, Server
from hostility.servers.wire import answer_problem, exchange, file_part, form, head, json_post, post

_START = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
_SLOW_SECONDS = 8.0  # time that a slow client goes on


class Crowd:
    """Open connections that send something each second; a context manager.

    Args:
        server: server to attack.
        count: number of connections.
        first: bytes to send at the beginning.
        drip: bytes to send each second.
    """

    def __init__(self, server: Server, count: int, *, first: bytes = b"", drip: bytes = b"") -> None:
        self._server, self._count = server, count
        self._first, self._drip = first, drip
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Crowd:
        for _ in range(self._count):
            with contextlib.suppress(OSError):
                connection = self._server.connect(timeout_s=5)
                self._sockets.append(connection)
                connection.settimeout(0.5)
                if self._first:
                    connection.sendall(self._first)
        return self

    def drip(self) -> None:
        """Sends the bytes of a second."""
        for connection in self._sockets:
            with contextlib.suppress(OSError):
                connection.send(self._drip)

    def __exit__(self, *_: object) -> None:
        for connection in self._sockets:
            connection.close()


def crowd_attack(server: Server, *, count: int = 300, first: bytes = b"", drip: bytes = b"") -> str | None:
    """Opens connections, and asks honestly for some seconds, from another and from the same address."""
    with Crowd(server, count, first=first, drip=drip) as crowd:
        end = time.monotonic() + _SLOW_SECONDS
        while time.monotonic() < end:
            for address in (OTHER_ADDRESS, "127.0.0.1"):
                if problem := server.honest_problem(address):
                    return problem
            crowd.drip()
            time.sleep(1)
    return None


def half_bodies(server: Server, *, size: int, count: int) -> str | None:
    """Sends most of many bodies and stops."""
    stop = threading.Event()

    def send(_: int) -> None:
        with contextlib.suppress(OSError), server.connect(timeout_s=10) as connection:
            connection.sendall(_START + b"Content-Length: %d\r\n\r\n" % (20 << 20) + bytes(size))
            stop.wait(_SLOW_SECONDS)

    with ThreadPoolExecutor(count) as pool:
        tasks = [pool.submit(send, i) for i in range(count)]
        try:
            end = time.monotonic() + _SLOW_SECONDS
            while time.monotonic() < end:
                if problem := server.honest_problem() or server.honest_problem("127.0.0.1"):
                    return problem
                time.sleep(0.5)
        finally:
            stop.set()
        [task.result() for task in tasks]
    return None


def many_at_once(server: Server, *, request: Callable[[], bytes], count: int) -> str | None:
    """Sends the same request from many connections, and asks honestly meanwhile."""
    data = request()
    with ThreadPoolExecutor(count) as pool:
        tasks = [pool.submit(_answered, server, data) for _ in range(count)]
        problem = None
        while not all(task.done() for task in tasks):
            problem = problem or server.honest_problem(within_s=10)
            time.sleep(0.2)
        return problem or next(filter(None, (task.result() for task in tasks)), None)


def _answered(server: Server, data: bytes) -> str | None:
    try:
        answer = exchange(server, data, timeout_s=60)
    except OSError:
        return None  # refused, because there are too many connections
    if answer.status == 0:
        return None
    return answer_problem(answer, (200, 408, 413, 422, 503, 504))


def pipelined(server: Server, *, request: bytes, count: int) -> str | None:
    """Sends requests without reading the answers."""
    with server.connect(timeout_s=5) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(request * count)
        for _ in range(3):
            if problem := server.honest_problem():
                return problem
            time.sleep(1)
    return None


def reset(server: Server) -> str | None:
    """Resets connections in the middle of a body."""
    for i in range(300):
        with contextlib.suppress(OSError):
            connection = server.connect(timeout_s=5)
            connection.sendall(_START + b"Content-Length: 100000\r\n\r\n" + bytes(1000 * (i % 50)))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
    return server.honest_problem()


def endless_body(server: Server) -> str | None:
    """Goes on sending after the server has refused a body."""
    block = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
    start = time.monotonic()
    with server.connect(timeout_s=5) as connection, contextlib.suppress(OSError):
        connection.sendall(_START + b"Transfer-Encoding: chunked\r\n\r\n")
        while time.monotonic() - start < 30:
            connection.sendall(block)
    seconds = time.monotonic() - start
    return None if seconds < 25 else f"it went on for {seconds:.0f} s"


def slow_half(server: Server, *, first: bytes, drip: bytes) -> str | None:
    """Sends a byte from time to time. The server must end the connection by itself."""
    start = time.monotonic()
    with server.connect(timeout_s=2) as connection:
        connection.sendall(first)
        connection.settimeout(1)
        while time.monotonic() - start < 60:
            try:
                connection.sendall(drip)
                if not connection.recv(1 << 16):
                    return None
            except TimeoutError:
                continue
            except OSError:
                return None
    return "the connection is still open after a minute"


_HALF_BODY = _START + b"Content-Length: 1000000\r\n\r\nx"
ATTACKS: dict[str, Callable[[Server], str | None]] = {
    "300 idle connections": crowd_attack,
    "700 idle connections": functools.partial(crowd_attack, count=700),
    "300 half request lines": functools.partial(crowd_attack, first=b"GET /heal"),
    "300 heads of a byte a second": functools.partial(crowd_attack, first=_START + b"X-A: ", drip=b"a"),
    "300 heads of a header a second": functools.partial(crowd_attack, first=_START, drip=b"X-A: b\r\n"),
    "300 bodies of a byte a second": functools.partial(crowd_attack, first=_HALF_BODY, drip=b"x"),
    "700 bodies of a byte a second": functools.partial(crowd_attack, count=700, first=_HALF_BODY, drip=b"x"),
    "300 chunked bodies of a byte a second": functools.partial(
        crowd_attack, first=_START + b"Transfer-Encoding: chunked\r\n\r\n", drip=b"1\r\na\r\n"
    ),
    "300 clients that wait for 100": functools.partial(
        crowd_attack, first=_START + b"Expect: 100-continue\r\nContent-Length: 1000\r\n\r\n"
    ),
    "300 idle connections after a request": functools.partial(crowd_attack, first=head()),
    "300 clients that do not read": functools.partial(
        crowd_attack, first=head("GET /openapi.json HTTP/1.1") * 20
    ),
    "300 clients with garbage": functools.partial(crowd_attack, first=b"\0" * 100, drip=b"\0"),
    "120 half bodies of 20 MB": functools.partial(half_bodies, size=(20 << 20) - 1000, count=120),
    "120 half bodies of 10 MB": functools.partial(half_bodies, size=10 << 20, count=120),
    "200 half bodies of 2 MB": functools.partial(half_bodies, size=2 << 20, count=200),
    "5,000 requests in a row": functools.partial(pipelined, request=head(), count=5000),
    "1,000 large answers that nobody reads": functools.partial(
        pipelined, request=head("GET /openapi.json HTTP/1.1"), count=1000
    ),
    "2,000 posts in a row": functools.partial(pipelined, request=post(b"hello"), count=2000),
    "300 connections that are reset": reset,
    "a body without an end": endless_body,
    "one head of a byte a second": functools.partial(slow_half, first=_START + b"X-A: ", drip=b"a"),
    "one body of a byte a second": functools.partial(slow_half, first=_HALF_BODY, drip=b"x"),
    "one chunk of the size FFFFFFFFFFFFFFFF": functools.partial(
        slow_half, first=_START + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\n", drip=b"x"
    ),
    "one connection that says nothing": functools.partial(slow_half, first=b"", drip=b""),
    "40 progressive JPEGs of 90 scans at once": functools.partial(
        many_at_once, request=lambda: post(many_scans(7000, 90)), count=40
    ),
    "60 PNGs of 49 million pixels at once": functools.partial(
        many_at_once, request=lambda: post(png(7000, 7000)), count=60
    ),
    "30 forms of 16 PNGs of 10 million pixels at once": functools.partial(
        many_at_once, request=lambda: form(*[file_part(png(3200, 3200))] * 16), count=30
    ),
    "40 JSON bodies of 27 MB at once": functools.partial(
        many_at_once,
        request=lambda: json_post(json.dumps({"image": base64.b64encode(bytes((20 << 20) - 9)).decode()})),
        count=40,
    ),
    "40 bodies of 20 MB at once": functools.partial(
        many_at_once, request=lambda: post(bytes(20 << 20)), count=40
    ),
}
# Time limits of attacks that take their time by themselves.
SECONDS = dict.fromkeys(ATTACKS.values(), 120.0)
