"""Checks that all processes of a job can reach the first one, before Paddle connects them.

Paddle's own store waits up to 15 minutes for a missing process, holds the interpreter's lock during that
time, and aborts if its port is in use. So the first process listens on that port until all others have
connected. Then it frees the port for Paddle.

Both sides prove that they know the job's secret: each answers a random number of the other with a digest of
it and the secret (HMAC, RFC 2104). So a recorded conversation is useless. If the processes share no secret,
only the addresses of the job's hosts are accepted.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import os
import selectors
import socket
import struct
import time
from dataclasses import dataclass

from ppxcls.system.job_secret import (
    SECRET_VARIABLE,
    JobError,
    addresses_of,
    endpoint_hosts,
    is_loopback,
    is_on_one_host,
    job_secret,
    plain_address,
)
from ppxcls.system.logs import logger

_MAGIC = b"ppxcls-2"
_NONCE_BYTES = _PROOF_BYTES = 32
_HELLO = struct.Struct(f">{len(_MAGIC)}sI{_NONCE_BYTES}s")  # a process's first message, with its rank
_HANDSHAKE_SECONDS = 5.0  # longest time in which a peer must prove itself
_MAX_UNPROVEN_PEERS = 128
_MAX_WARNINGS = 10


@dataclass(frozen=True)
class _Job:
    """What the processes of a job know.

    Attributes:
        master: ``host:port`` of the first process, as the launcher gives it.
        address: host and port to listen on and to connect to.
        world_size: number of processes.
        secret: secret of the job; empty if there is none.
        allowed_addresses: IP addresses of the processes; None for all, because they prove themselves.
    """

    master: str
    address: tuple[str, int]
    world_size: int
    secret: bytes
    allowed_addresses: frozenset[str] | None

    def proof(self, side: bytes, rank: int, nonces: bytes) -> bytes:
        """Returns the answer to the random numbers of both sides.

        Args:
            side: what the proof is for, so that no side can send back what it received.
            rank: rank of the process that is not the first.
            nonces: random numbers of that process and of the first.
        """
        numbers = b"%d %d %d" % (self.address[1], self.world_size, rank)
        text = b"|".join((_MAGIC, side, numbers, nonces))
        return hmac.digest(self.secret, text, "sha256")


def wait_for_all_ranks(master: str, rank: int, world_size: int, timeout: float) -> None:
    """Waits until all processes have connected to the first one.

    Args:
        master: ``host:port`` of the first process.
        rank: number of this process.
        world_size: number of processes.
        timeout: longest time to wait, in seconds.

    Raises:
        JobError: the port is in use, the first process can't be reached, others did not connect in time, or
            the job's secret can't be used.
    """
    host, _, port = master.rpartition(":")
    if not host or not port.isdecimal():
        return
    job = _job(master, (host.strip("[]"), int(port)), world_size)
    deadline = time.monotonic() + timeout
    if rank == 0:
        _Leader(job).wait(deadline, timeout)
    else:
        _report_rank(job, rank, deadline, timeout)


def _job(master: str, address: tuple[str, int], world_size: int) -> _Job:
    host, port = address
    is_one_host = is_on_one_host(host, world_size)
    secret = job_secret(is_one_host=is_one_host)
    if is_one_host and not is_loopback(host):
        host = "127.0.0.1"
    allowed_addresses = None
    if secret is None:
        hosts = [host] if is_one_host else endpoint_hosts()
        allowed_addresses = frozenset(address for name in hosts for address in addresses_of(name))
        if not allowed_addresses:
            raise JobError(
                f"the processes of this job can't know one another: set {SECRET_VARIABLE} to a file "
                "that all nodes have, or PADDLE_TRAINER_ENDPOINTS"
            )
    return _Job(master, (host, port), world_size, secret or b"", allowed_addresses)


class _Peer:
    """A connection to the first process.

    Attributes:
        connection: socket.
        host: IP address of the other side.
        deadline: time by which it must have proved itself.
        rank: rank of the process; None until its first message.
        is_proven: True if it has proved that it belongs to the job.
        nonces: random numbers of both sides.
        message: bytes of its message, as far as they have come.
    """

    def __init__(self, connection: socket.socket, host: str) -> None:
        self.connection = connection
        self.host = host
        self.deadline = time.monotonic() + _HANDSHAKE_SECONDS
        self.rank: int | None = None
        self.is_proven = False
        self.nonces = b""
        self.message = b""


class _Leader:
    """The first process. It waits for all connections at once, so that a silent one holds up no other.

    Args:
        job: job.
    """

    def __init__(self, job: _Job) -> None:
        self._job = job
        self._peers: dict[int, _Peer] = {}  # by file descriptor, in the order of their connection
        self._warned_hosts: set[str] = set()

    def wait(self, deadline: float, timeout: float) -> None:
        """Waits until all other processes have proved themselves, and tells them to go on."""
        try:
            server = _listener(self._job.address)
        except OSError as error:
            raise JobError(
                f"port {self._job.address[1]}, on which the processes meet, can't be used: {error.strerror}"
            ) from None
        with server, selectors.DefaultSelector() as selector:
            server.settimeout(0)
            selector.register(server, selectors.EVENT_READ)
            try:
                while missing_ranks := self._missing_ranks():
                    if time.monotonic() > deadline:
                        rank_list = ", ".join(map(str, missing_ranks))
                        raise JobError(
                            f"rank {rank_list} of {self._job.world_size} did not connect to port "
                            f"{self._job.address[1]} within {timeout:g} s"
                        )
                    self._serve(server, selector, deadline)
                for peer in self._peers.values():
                    if peer.is_proven:
                        self._send(peer, b"go")
            finally:
                for peer in self._peers.values():
                    peer.connection.close()

    def _missing_ranks(self) -> list[int]:
        proven_ranks = {peer.rank for peer in self._peers.values() if peer.is_proven}
        return [rank for rank in range(1, self._job.world_size) if rank not in proven_ranks]

    def _serve(self, server: socket.socket, selector: selectors.BaseSelector, deadline: float) -> None:
        """Waits for the next events and handles them."""
        deadlines = [peer.deadline for peer in self._peers.values() if not peer.is_proven]
        for key, _ in selector.select(max(min([deadline, *deadlines]) - time.monotonic(), 0) + 0.01):
            if key.fileobj is server:
                self._accept(server, selector)
            elif (peer := self._peers.get(key.fd)) is not None:
                self._read(peer, selector)
        for peer in list(self._peers.values()):
            if not peer.is_proven and time.monotonic() > peer.deadline:
                self._drop(peer, selector, "it did not prove in time that it belongs to this job")

    def _accept(self, server: socket.socket, selector: selectors.BaseSelector) -> None:
        try:
            connection, address = server.accept()
        except OSError:  # it has gone, or there are too many open files
            time.sleep(0.01)
            return
        peer = _Peer(connection, plain_address(address[0]))
        allowed_addresses = self._job.allowed_addresses
        if allowed_addresses is not None and peer.host not in allowed_addresses:
            connection.close()
            self._warn(
                peer,
                "it is not the address of a process of this job; if it is one under another address, set "
                f"{SECRET_VARIABLE} on all nodes",
            )
            return
        connection.settimeout(0)
        self._peers[connection.fileno()] = peer
        selector.register(connection, selectors.EVENT_READ)
        unproven_peers = [peer for peer in self._peers.values() if not peer.is_proven]
        if len(unproven_peers) > _MAX_UNPROVEN_PEERS:
            self._drop(unproven_peers[0], selector, "too many connections")

    def _read(self, peer: _Peer, selector: selectors.BaseSelector) -> None:
        """Reads a part of a peer's message, and answers if it is complete."""
        size = _HELLO.size if peer.rank is None else _PROOF_BYTES
        try:
            data = peer.connection.recv(size - len(peer.message))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        peer.message += data
        if peer.is_proven:  # it has ended, or says what it must not say
            self._drop(peer, selector, None)
        elif not data:
            self._drop(
                peer, selector, "it closed the connection before it proved that it belongs to this job"
            )
        elif len(peer.message) == size:
            problem = self._answer(peer, peer.message)
            peer.message = b""
            if problem:
                self._drop(peer, selector, problem)

    def _answer(self, peer: _Peer, message: bytes) -> str | None:
        """Handles a message. Returns why the peer is refused; None if it is not."""
        if peer.rank is None:
            magic, peer.rank, nonce = _HELLO.unpack(message)
            if magic != _MAGIC or not 0 < peer.rank < self._job.world_size:
                return "it does not speak as a process of this job"
            peer.nonces = nonce + os.urandom(_NONCE_BYTES)
            self._send(peer, b"leader", peer.nonces[_NONCE_BYTES:])
            return None
        if not hmac.compare_digest(message, self._job.proof(b"rank", peer.rank, peer.nonces)):
            return "it does not know the secret of this job"
        if peer.rank not in self._missing_ranks():
            return f"another process has connected as rank {peer.rank}"
        peer.is_proven = True
        return None

    def _send(self, peer: _Peer, side: bytes, begin: bytes = b"") -> None:
        assert peer.rank is not None
        with contextlib.suppress(OSError):  # it has ended, which the next reading notices
            peer.connection.sendall(begin + self._job.proof(side, peer.rank, peer.nonces))

    def _drop(self, peer: _Peer, selector: selectors.BaseSelector, reason: str | None) -> None:
        selector.unregister(peer.connection)
        del self._peers[peer.connection.fileno()]
        peer.connection.close()
        if reason is not None:
            self._warn(peer, reason)

    def _warn(self, peer: _Peer, reason: str) -> None:
        """Logs once for each address that a peer was refused."""
        if peer.host not in self._warned_hosts and len(self._warned_hosts) < _MAX_WARNINGS:
            self._warned_hosts.add(peer.host)
            logger.warning(
                f"a connection from {peer.host} to port {self._job.address[1]} is refused: {reason}"
            )


def _listener(address: tuple[str, int]) -> socket.socket:
    """Returns a socket that listens on the job's address only.

    A cluster may give the first process an address of its network that the host itself does not have. Then
    the socket listens on all addresses.

    Raises:
        OSError: the port is in use, or the address has no form that the system can use.
    """
    host, port = address
    with socket.socket() as probe:  # Paddle's store will listen on all addresses
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("", port))
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(place[:2], family=family, backlog=_MAX_UNPROVEN_PEERS)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL and not isinstance(error, socket.gaierror):
            raise
        return socket.create_server(("", port), backlog=_MAX_UNPROVEN_PEERS)


def _report_rank(job: _Job, rank: int, deadline: float, timeout: float) -> None:
    """Connects to the first process, and returns when it says that all processes have."""
    reason = "no answer"
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(job.address, timeout=min(5.0, timeout)) as connection:
                _converse(job, rank, connection, deadline)
            # Gives Paddle's store on rank 0 time to start. A process that is too early waits 3 s.
            time.sleep(0.5)
            return
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(min(0.2, timeout / 10))
    raise JobError(f"rank 0 at {job.master} can't be reached within {timeout:g} s: {reason}")


def _converse(job: _Job, rank: int, connection: socket.socket, deadline: float) -> None:
    """Proves this process to the first one and the other way round, and waits for the others.

    Raises:
        OSError: the other side is not the first process of this job, or it has ended.
    """
    handshake_deadline = min(deadline, time.monotonic() + _HANDSHAKE_SECONDS)
    nonce = os.urandom(_NONCE_BYTES)
    connection.sendall(_HELLO.pack(_MAGIC, rank, nonce))
    answer = _receive(connection, _NONCE_BYTES + _PROOF_BYTES, handshake_deadline)
    nonces = nonce + answer[:_NONCE_BYTES]
    _check(answer[_NONCE_BYTES:], job.proof(b"leader", rank, nonces))
    connection.sendall(job.proof(b"rank", rank, nonces))
    _check(_receive(connection, _PROOF_BYTES, deadline), job.proof(b"go", rank, nonces))


def _receive(connection: socket.socket, size: int, deadline: float) -> bytes:
    data = b""
    while len(data) < size:
        connection.settimeout(max(deadline - time.monotonic(), 1e-3))
        part = connection.recv(size - len(data))
        if not part:
            raise OSError("it closed the connection")
        data += part
    return data


def _check(proof: bytes, expected_proof: bytes) -> None:
    if not hmac.compare_digest(proof, expected_proof):
        raise OSError("the process there does not know the secret of this job")
