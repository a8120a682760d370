"""Hostile peers at the port at which the processes of a job meet."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hostility.cases import Case, Outcome, refusal_problem, run_command

from ppxcls.system import rendezvous
from ppxcls.system.job_secret import SECRET_VARIABLE, JobError
from ppxcls.system.rendezvous import wait_for_all_ranks

PROMISE = "A peer that does not know the job's secret counts as no process, and holds up no other"
_SECRET = "a secret of this job\n"
_MAGIC, _OLD_GREETING = b"ppxcls-2", b"ppxcls rank 1".ljust(32)
_HELLO_BYTES = 44
_LEAD_SECONDS = 0.15  # time in which only the hostile peer is there
_TIMEOUT_SECONDS = 20.0
Attack = Callable[[int], None]


def _hello(rank: int) -> bytes:
    return struct.pack(">8sI32s", _MAGIC, rank, os.urandom(32))


def _connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=5)


def _sends(data: bytes, port: int) -> None:
    with _connected(port) as peer:
        peer.sendall(data)
        with contextlib.suppress(OSError):
            while peer.recv(4096):
                pass


def _drips(data: bytes, port: int) -> None:
    with _connected(port) as peer, contextlib.suppress(OSError):
        for byte in data:
            peer.sendall(bytes([byte]))
            time.sleep(0.2)


def _proves(answer: Callable[[bytes], bytes], port: int) -> None:
    """Says that it is rank 1, and answers the leader's random number and proof."""
    with _connected(port) as peer, contextlib.suppress(OSError):
        peer.sendall(_hello(1))
        peer.sendall(answer(peer.recv(64, socket.MSG_WAITALL)))
        peer.recv(64)


def _has_no_secret(port: int) -> None:
    """Follows the protocol of a job without a secret, and ignores the leader's proof."""
    job = rendezvous._Job("", ("127.0.0.1", port), 3, b"", None)
    nonce = os.urandom(32)
    with _connected(port) as peer, contextlib.suppress(OSError):
        peer.sendall(struct.pack(">8sI32s", _MAGIC, 1, nonce))
        peer.sendall(job.proof(b"rank", 1, nonce + peer.recv(64, socket.MSG_WAITALL)[:32]))
        peer.recv(64)


def _is_silent(count: int, port: int) -> None:
    peers = [_connected(port) for _ in range(count)]
    time.sleep(2)
    for peer in peers:
        peer.close()


def _closes(port: int) -> None:
    _connected(port).close()


def _resets(port: int) -> None:
    peer = _connected(port)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


_ATTACKS: dict[str, Attack] = {
    "the greeting of older versions": functools.partial(_sends, _OLD_GREETING),
    "that asks for a web page": functools.partial(_sends, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 4),
    "that sends a megabyte": functools.partial(_sends, b"x" * (1 << 20)),
    "that closes at once": _closes,
    "that resets the connection": _resets,
    "that sends nothing": functools.partial(_is_silent, 1),
    "200 times that sends nothing": functools.partial(_is_silent, 200),
    "a byte at a time": functools.partial(_drips, _hello(1)),
    "half a greeting": functools.partial(_sends, _hello(1)[:20]),
    "of rank 0": functools.partial(_sends, _hello(0)),
    "of rank 3 of 3": functools.partial(_sends, _hello(3)),
    "of the largest rank": functools.partial(_sends, _hello(0xFFFFFFFF)),
    "with another magic number": functools.partial(_sends, b"ppxcls-9" + _hello(1)[8:]),
    "that guesses the proof": functools.partial(_proves, lambda _: os.urandom(32)),
    "with a proof of zeros": functools.partial(_proves, lambda _: bytes(32)),
    "that sends the leader's proof back": functools.partial(_proves, lambda challenge: challenge[32:]),
    "that sends the leader's number back": functools.partial(_proves, lambda challenge: challenge[:32]),
    "with an empty secret": _has_no_secret,
}


_QUICK_ATTACKS = (
    "that sends nothing",
    "200 times that sends nothing",
    "that resets the connection",
    "that guesses the proof",
    "that sends the leader's proof back",
    "with an empty secret",
)


def cases() -> Iterator[Case]:
    """Returns the cases: each peer at a true leader, and false leaders of a true process."""
    for name, attack in _ATTACKS.items():
        run = functools.partial(_attack_on_leader, attack)
        yield Case(f"a peer {name}", run, is_quick=name in _QUICK_ATTACKS)
    yield Case("a recorded conversation, sent again", _replay, is_quick=True)
    yield Case("a peer with another secret", _other_secret, is_quick=True)
    for name, words in _FALSE_LEADERS.items():
        yield Case(f"a false leader {name}", functools.partial(_false_leader, words), is_quick=not words)
    yield Case("a job whose rank 1 is false", functools.partial(_job, 0))
    yield Case("a job whose leader is false", functools.partial(_job, 1))
    yield Case("the port on the host's other addresses", _other_address, is_quick=True)
    yield Case("a secret of 3 bytes", functools.partial(_bad_secret, b"abc"), is_quick=True)
    yield Case("a secret of a megabyte", functools.partial(_bad_secret, b"a" * (1 << 20)), is_quick=True)


@contextlib.contextmanager
def _secret(folder: Path, text: str = _SECRET) -> Iterator[None]:
    file = folder / "secret"
    file.write_text(text)
    previous = os.environ.get(SECRET_VARIABLE)
    os.environ[SECRET_VARIABLE] = str(file)
    try:
        yield
    finally:
        del os.environ[SECRET_VARIABLE]
        if previous is not None:
            os.environ[SECRET_VARIABLE] = previous


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class _Rank(threading.Thread):
    """A process of the job, in a thread: what it ended with, and when."""

    def __init__(self, port: int, rank: int, timeout: float = _TIMEOUT_SECONDS) -> None:
        super().__init__(daemon=True)
        self._arguments = (f"127.0.0.1:{port}", rank, 3, timeout)
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            wait_for_all_ranks(*self._arguments)
        except Exception as error:
            self.error = error


def _attack_on_leader(attack: Attack, folder: Path, port: int = 0) -> tuple[Outcome, str | None]:
    start = time.monotonic()
    with _secret(folder):
        port = port or _free_port()
        leader, other_rank = _Rank(port, 0), _Rank(port, 2)
        _wait_for_listener(port)
        attacker = threading.Thread(target=attack, args=(port,), daemon=True)
        attacker.start()
        time.sleep(_LEAD_SECONDS)
        has_ended = not leader.is_alive() or not other_rank.is_alive()
        ranks = [leader, other_rank, _Rank(port, 1)]
        for rank in ranks:
            rank.join(_TIMEOUT_SECONDS)
    outcome = Outcome(
        0, "", "; ".join(str(rank.error) for rank in ranks if rank.error), time.monotonic() - start
    )
    if has_ended:
        return outcome, "the job went on without rank 1"
    if any(rank.is_alive() for rank in ranks) or outcome.errors:
        return outcome, f"the true processes did not meet: {outcome.errors or 'still waiting'}"
    return outcome, "the true processes waited" if outcome.seconds > 5 else None


def _wait_for_listener(port: int) -> None:
    for _ in range(100):
        with contextlib.suppress(OSError):
            _connected(port).close()
            return
        time.sleep(0.02)


class _Recorder:
    """A connection that keeps what is sent through it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.data = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def sendall(self, data: bytes) -> None:
        self.data += data
        self._connection.sendall(data)


def _replay(folder: Path) -> tuple[Outcome, str | None]:
    """Records what rank 1 says to a leader, and says it to the next leader at the same port."""
    port = _free_port()
    with _secret(folder):
        ranks = [_Rank(port, 0), _Rank(port, 2)]
        _wait_for_listener(port)
        job = rendezvous._job("", ("127.0.0.1", port), 3)
        with _connected(port) as connection:
            recorder = _Recorder(connection)
            rendezvous._converse(job, 1, recorder, time.monotonic() + 5)  # type: ignore[arg-type]
        for rank in ranks:
            rank.join(5)
    if len(recorder.data) != _HELLO_BYTES + 32 or any(rank.error for rank in ranks):
        return Outcome(1, "", "", 0), "the conversation was not recorded"
    return _attack_on_leader(functools.partial(_sends, recorder.data), folder, port)


def _other_secret(folder: Path) -> tuple[Outcome, str | None]:
    def attack(port: int) -> None:
        job = rendezvous._Job("x", ("127.0.0.1", port), 3, b"another secret of 32 bytes", None)
        with _connected(port) as peer, contextlib.suppress(OSError):
            rendezvous._converse(job, 1, peer, time.monotonic() + 2)

    return _attack_on_leader(attack, folder)


_FALSE_LEADERS: dict[str, list[bytes | None]] = {
    "that closes at once": [],
    "that says nothing": [None],
    "that sends a byte": [b"1"],
    "that guesses the proof": [os.urandom(64), os.urandom(32)],
    "that sends zeros": [bytes(64), bytes(32)],
    "that sends a page": [b"HTTP/1.1 200 OK\r\n" * 20],
}


def _false_leader(words: list[bytes | None], folder: Path) -> tuple[Outcome, str | None]:
    """Rank 1 must not go on with a leader that does not know the secret."""
    start = time.monotonic()

    def lead(server: socket.socket) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.recv(_HELLO_BYTES, socket.MSG_WAITALL)
                for word in words:
                    if word is None:
                        time.sleep(2)
                    else:
                        connection.sendall(word)

    with _secret(folder), socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lead, args=(server,), daemon=True).start()
        rank = _Rank(server.getsockname()[1], 1, timeout=0.5)
        rank.join(10)
    outcome = Outcome(1, "", str(rank.error or ""), time.monotonic() - start)
    if rank.is_alive():
        return outcome, "it waits"
    if not isinstance(rank.error, JobError):
        return outcome, f"it went on: {rank.error!r}"
    return outcome, None


def _job(rank: int, folder: Path) -> tuple[Outcome, str | None]:
    """A training as one of two ranks, whose peer is false, must end with an error."""
    from tests.conftest import small_config, write_images

    write_images(folder / "data", 8)
    write_images(folder / "data", 4, seed=1, name="val")
    content = small_config(folder / "data", folder / "output", **{"Global.hang_timeout": 4})
    (folder / "my.yaml").write_text(json.dumps(content))
    port = _free_port()
    stop = threading.Event()

    def lead() -> None:
        with socket.create_server(("127.0.0.1", port)) as server:
            server.settimeout(0.2)
            while not stop.is_set():
                with contextlib.suppress(OSError), server.accept()[0] as peer:
                    peer.sendall(b"1" * 64)

    def follow() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                _sends(_OLD_GREETING, port)
            time.sleep(0.2)

    threading.Thread(target=lead if rank else follow, daemon=True).start()
    variables = {
        "PADDLE_TRAINER_ID": str(rank),
        "PADDLE_TRAINERS_NUM": "2",
        "PADDLE_MASTER": f"127.0.0.1:{port}",
        "PADDLE_TRAINER_ENDPOINTS": f"127.0.0.1:{port + 1},127.0.0.1:{port + 2}",
        "PADDLE_CURRENT_ENDPOINT": f"127.0.0.1:{port + 1 + rank}",
        "PADDLE_DISTRI_BACKEND": "gloo",
        "XDG_STATE_HOME": str(folder / "state"),
    }
    outcome = run_command(["train", "-c", "my.yaml"], folder, variables=variables)
    stop.set()
    return outcome, refusal_problem(outcome, f"rank {rank}: error: rank {1 - rank} ")


def _other_address(folder: Path) -> tuple[Outcome, str | None]:
    """The leader of a job on one host listens on the loopback address only."""
    with _secret(folder):
        port = _free_port()
        _Rank(port, 0, timeout=0.5)
        _wait_for_listener(port)
        addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), None)}
        for address in addresses | {"127.0.0.2"}:
            if address not in ("127.0.0.1", "::1"):
                with contextlib.suppress(OSError):
                    socket.create_connection((address, port), timeout=1).close()
                    return Outcome(0, "", "", 0), f"{address} was answered"
    return Outcome(1, "", "", 0.5), None


def _bad_secret(data: bytes, folder: Path) -> tuple[Outcome, str | None]:
    with _secret(folder, data.decode()):
        rank = _Rank(_free_port(), 1, timeout=0.5)
        rank.join(10)
    outcome = Outcome(1, "", str(rank.error or ""), 0)
    return outcome, None if SECRET_VARIABLE in outcome.errors else "accepted"
