"""Ends of the decoders and of the server: crashes, signals, and what a client sees then."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from hostility.servers.floods import Crowd
from hostility.servers.pictures import many_scans
from hostility.servers.process import OTHER_ADDRESS, Server, the_model
from hostility.servers.wire import Answer, answer_problem, exchange, head, post

_GRACE_SECONDS = 25.0  # longest time from a signal to the end
_BODY = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\nx"


def _signal_decoders(number: int, server: Server) -> str | None:
    for pid in server.decoder_pids():
        os.kill(pid, number)
    for _ in range(4):
        if problem := server.honest_problem(within_s=15):
            return problem
    return None


def _signal_while_decoding(number: int, server: Server) -> str | None:
    answers: list[Answer] = []
    data = post(many_scans(5000, 60))
    thread = threading.Thread(target=lambda: answers.append(exchange(server, data, timeout_s=60)))
    thread.start()
    time.sleep(0.3)
    for pid in server.decoder_pids():
        with contextlib.suppress(OSError):
            os.kill(pid, number)
    thread.join()
    return answer_problem(answers[0], (200, 422, 503)) or server.honest_problem(within_s=15)


ATTACKS: dict[str, Callable[[Server], str | None]] = {}
for _signal in (signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT, signal.SIGXCPU):
    ATTACKS[f"{_signal.name} to idle decoders"] = lambda s, n=_signal: _signal_decoders(n, s)
    ATTACKS[f"{_signal.name} to decoders at work"] = lambda s, n=_signal: _signal_while_decoding(n, s)
ATTACKS["SIGTERM to decoders"] = lambda s: _signal_decoders(signal.SIGTERM, s)
ATTACKS["decoders that are stopped"] = lambda s: _signal_while_decoding(signal.SIGSTOP, s)


@dataclass(frozen=True)
class Life:
    """A server of its own.

    Attributes:
        run: function that uses it and ends it; it returns what is wrong.
        words: options of the command.
    """

    run: Callable[[Server], str | None]
    words: Sequence[str] = field(default=())


def _end_problem(server: Server, number: int) -> str | None:
    """Ends a server by a signal, and returns what is wrong with its end; None if nothing is."""
    expected_code = 0 if number == signal.SIGINT else -signal.SIGTERM
    decoders = server.decoder_pids()
    start = time.monotonic()
    code = server.end(number)
    seconds = time.monotonic() - start
    if code != expected_code:
        return f"exit code {code} after {seconds:.0f} s: {server.lines[-1:]}"
    if seconds > _GRACE_SECONDS:
        return f"it ended after {seconds:.0f} s"
    time.sleep(0.2)
    if any(os.path.exists(f"/proc/{pid}/exe") for pid in decoders):
        return "a decoder is left"
    return None if not any("Traceback" in line for line in server.lines) else "a traceback"


def _idle(server: Server, number: int = signal.SIGTERM) -> str | None:
    return server.honest_problem() or _end_problem(server, number)


def _with_crowd(server: Server, first: bytes) -> str | None:
    with Crowd(server, 200, first=first):
        return _end_problem(server, signal.SIGTERM)


def _while_decoding(server: Server, number: int = signal.SIGTERM) -> str | None:
    with _requests(server, post(many_scans(7000, 90)), 8):
        time.sleep(1)
        return _end_problem(server, number)


def _twice(server: Server, number: int) -> str | None:
    """Sends a signal twice while decoders are stopped. The second Ctrl-C ends it without waiting."""
    with _requests(server, post(many_scans(5000, 60)), 5):
        time.sleep(0.5)
        for pid in server.decoder_pids():
            os.kill(pid, signal.SIGSTOP)
        server.process.send_signal(number)
        time.sleep(1)
        return _end_problem(server, number)


@contextlib.contextmanager
def _requests(server: Server, data: bytes, count: int) -> Iterator[None]:
    """Sends a request several times at once, and waits for their ends after the block."""
    threads = [threading.Thread(target=_ignore_answer, args=(server, data)) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join()


def _ignore_answer(server: Server, data: bytes) -> None:
    with contextlib.suppress(OSError):
        exchange(server, data, timeout_s=60)


def _answered_at_the_end(server: Server) -> str | None:
    """A request that has begun is answered after SIGTERM."""
    body = the_model().image
    with server.connect() as connection:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        connection.sendall(body[:100])
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        connection.sendall(body[100:])
        content = connection.recv(1 << 16)
    code = server.process.wait(60)
    return None if b"200 OK" in content and code == -signal.SIGTERM else f"{code}: {content[:100]!r}"


def _killed(server: Server) -> str | None:
    """After SIGKILL, the decoders end and remove their folders."""
    decoders = server.decoder_pids()
    server.process.kill()
    server.process.wait()
    for _ in range(100):
        is_left = any(os.path.exists(f"/proc/{pid}/exe") for pid in decoders)
        if not is_left and not list(server.temporary_folder.iterdir()):
            return None
        time.sleep(0.1)
    return "decoders or their folders are left"


def _one_connection(server: Server) -> str | None:
    """With few connections allowed, idle ones make room."""
    with Crowd(server, 50, first=b"GET /"):
        return server.honest_problem() or server.honest_problem("127.0.0.1")


def _proxy(server: Server) -> str | None:
    """A proxy's address may have all connections, and others still get theirs."""
    with Crowd(server, 100, first=b"GET /"):
        return server.honest_problem(OTHER_ADDRESS) or server.honest_problem("127.0.0.1")


def _other_names(server: Server) -> str | None:
    for name, statuses in (
        ("images.example", (200,)),
        ("IMAGES.example.:80", (200,)),
        ("evil.example", (421,)),
    ):
        answer = exchange(server, head(host=f"Host: {name}\r\n".encode()))
        if problem := answer_problem(answer, statuses):
            return f"{name}: {problem}"
    return None


def _fewer_pixels(server: Server) -> str | None:
    return answer_problem(exchange(server, post(many_scans(1100, 2))), (422,)) or server.honest_problem()


LIVES = {
    "SIGTERM to an idle server": Life(_idle),
    "Ctrl-C to an idle server": Life(lambda server: _idle(server, signal.SIGINT)),
    "SIGTERM with 200 idle connections": Life(lambda server: _with_crowd(server, b"")),
    "SIGTERM with 200 half heads": Life(lambda server: _with_crowd(server, b"GET / HTTP/1.1\r\nHost: 1")),
    "SIGTERM with 200 half bodies": Life(lambda server: _with_crowd(server, _BODY)),
    "SIGTERM with 200 clients that do not read": Life(lambda server: _with_crowd(server, head() * 3)),
    "SIGTERM while pictures are decoded": Life(_while_decoding),
    "Ctrl-C while pictures are decoded": Life(lambda server: _while_decoding(server, signal.SIGINT)),
    "SIGTERM twice while decoders are stopped": Life(lambda server: _twice(server, signal.SIGTERM)),
    "Ctrl-C twice while decoders are stopped": Life(lambda server: _twice(server, signal.SIGINT)),
    "SIGTERM in the middle of a body": Life(_answered_at_the_end),
    "SIGKILL": Life(_killed),
    "few connections": Life(_one_connection, ("--connections", "8")),
    "a proxy with many connections": Life(_proxy, ("--connections", "64", "--proxy", "127.0.0.1")),
    "another allowed host": Life(_other_names, ("--allowed-host", "images.example")),
    "fewer pixels": Life(_fewer_pixels, ("--pixels", "1")),
}
