"""Clients of many addresses, clients that read slowly, and decoders that somebody kills again and again."""

from __future__ import annotations

import contextlib
import functools
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from hostility.servers.process import OTHER_ADDRESS, Server, the_model
from hostility.servers.wire import answer_problem, exchange, head, post, read_answer

_HONEST_ADDRESS = "127.0.0.250"
_ADDRESSES = [f"127.0.0.{number}" for number in range(2, 201)]
_HALF_BODY = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 500000\r\n\r\n" + bytes(100_000)
_SECONDS = 6.0
_STORM = """
import socket, sys, time
end = time.monotonic() + {seconds}
while time.monotonic() < end:
    try:
        socket.create_connection(("127.0.0.1", {port}), timeout=3, source_address=(sys.argv[1], 0)).close()
    except OSError:
        pass
"""


def many_addresses(server: Server, *, first: bytes, count: int = 900) -> str | None:
    """Opens connections from 199 addresses, and asks honestly from another one."""
    with contextlib.ExitStack() as stack:
        for i in range(count):
            with contextlib.suppress(OSError):
                connection = stack.enter_context(server.connect(_ADDRESSES[i % len(_ADDRESSES)], 3))
                connection.sendall(first)
        for _ in range(6):
            if problem := server.honest_problem(_HONEST_ADDRESS):
                return problem
            time.sleep(0.5)
    return None


def storm(server: Server) -> str | None:
    """Opens and closes connections as fast as three processes can."""
    code = _STORM.format(seconds=_SECONDS, port=server.port)
    processes = [
        # S603: runs the lines above.
        subprocess.Popen([sys.executable, "-I", "-c", code, address])  # noqa: S603
        for address in _ADDRESSES[:3]
    ]
    problem = None
    while any(process.poll() is None for process in processes):
        problem = problem or server.honest_problem(_HONEST_ADDRESS, within_s=10)
        time.sleep(0.3)
    return problem


def slow_readers(server: Server) -> str | None:
    """Asks for much, and takes ten bytes of it at a time."""
    with contextlib.ExitStack() as stack:
        connections = []
        for i in range(100):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            connection.bind((_ADDRESSES[i % 3], 0))
            connection.connect(("127.0.0.1", server.port))
            connection.settimeout(0.5)
            with contextlib.suppress(OSError):
                connection.sendall(head("GET /openapi.json HTTP/1.1") * 150)
            connections.append(connection)
        for _ in range(8):
            if problem := server.honest_problem(_HONEST_ADDRESS):
                return problem
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.recv(10)
    return None


def half_closed(server: Server) -> str | None:
    """Sends requests and closes this direction. Whole requests are answered."""
    request = post(the_model().image)
    with server.connect() as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        if problem := answer_problem(read_answer(connection), (200,)):
            return problem
    with contextlib.ExitStack() as stack:
        for i in range(300):
            connection = stack.enter_context(server.connect(timeout_s=5))
            with contextlib.suppress(OSError):
                connection.sendall(request[: i * 50])
                connection.shutdown(socket.SHUT_WR)
        return server.honest_problem() or server.honest_problem("127.0.0.1")


def kept_connection(server: Server) -> str | None:
    """Asks 3,000 times on one connection, and honestly from another address meanwhile."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        for number in range(3000):
            connection.request("GET", "/healthz")
            if connection.getresponse().read() == b"" or (number % 1000 == 0 and server.honest_problem()):
                return f"no answer to request {number}"
    finally:
        connection.close()
    return None


def killed_again_and_again(server: Server, *, number: int) -> str | None:
    """Sends a signal to all decoders again and again, while six clients ask."""
    problems: list[str] = []
    end = time.monotonic() + _SECONDS

    def ask() -> None:
        while time.monotonic() < end:
            answer = exchange(server, post(the_model().image), timeout_s=30)
            if problem := answer_problem(answer, (200, 422, 503)):
                problems.append(problem)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    while time.monotonic() < end:
        for pid in server.decoder_pids():
            with contextlib.suppress(OSError):
                os.kill(pid, number)
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    return next(iter(problems), None) or server.honest_problem(OTHER_ADDRESS, within_s=15)


ATTACKS: dict[str, Callable[[Server], str | None]] = {
    "900 half heads from 199 addresses": functools.partial(many_addresses, first=b"GET / HT"),
    "900 half bodies from 199 addresses": functools.partial(many_addresses, first=_HALF_BODY),
    "900 idle connections from 199 addresses": functools.partial(many_addresses, first=head()),
    "thousands of new connections a second": storm,
    "100 clients that read ten bytes at a time": slow_readers,
    "300 clients that close their own direction": half_closed,
    "3,000 requests on one connection": kept_connection,
    "decoders that are killed again and again": functools.partial(
        killed_again_and_again, number=signal.SIGKILL
    ),
    "decoders that crash again and again": functools.partial(killed_again_and_again, number=signal.SIGSEGV),
}
SECONDS = dict.fromkeys(ATTACKS.values(), 120.0)
