"""Checks that all processes of a job can reach the first one, before Paddle connects them.

Paddle's own store waits up to 15 minutes for a process that never comes, holds the interpreter's lock all
that time, and aborts if its port is taken. So the first process listens on that port until all others have
connected, and then leaves the port to Paddle.
"""

from __future__ import annotations

import contextlib
import socket
import time

_GREETING = b"ppxcls rank "
_LINE = 32  # bytes of a padded greeting


class JobError(Exception):
    """The processes of a job can't reach one another, or differ in something that must be equal."""


def wait_for_all_ranks(master: str, rank: int, world_size: int, timeout: float) -> None:
    """Wait until all processes have met.

    Args:
        master: ``host:port`` of the first process.
        rank: number of this process.
        world_size: number of processes.
        timeout: seconds.

    Raises:
        JobError: the port is taken, the first process can't be reached, or others did not connect in time.
    """
    host, _, port = master.rpartition(":")
    if not host or not port.isdigit():
        return
    deadline = time.monotonic() + timeout
    if rank == 0:
        _take_names(int(port), world_size, deadline, timeout)
    else:
        _say_name((host, int(port)), rank, deadline, timeout)


def _take_names(port: int, world_size: int, deadline: float, timeout: float) -> None:
    missing = set(range(1, world_size))
    with contextlib.ExitStack() as connections:
        try:
            server = connections.enter_context(socket.create_server(("", port), backlog=world_size))
        except OSError as error:
            raise JobError(
                f"port {port}, on which the processes meet, can't be used: {error.strerror}"
            ) from None
        while missing:
            server.settimeout(max(deadline - time.monotonic(), 1e-3))
            try:
                connection, _ = server.accept()
                connections.enter_context(connection)
                connection.settimeout(max(min(deadline - time.monotonic(), 5.0), 1e-3))
                greeting = connection.recv(_LINE, socket.MSG_WAITALL)
            except TimeoutError:
                if time.monotonic() < deadline:
                    continue
                absent = ", ".join(map(str, sorted(missing)))
                raise JobError(
                    f"rank {absent} of {world_size} did not connect to port {port} within {timeout:g} s"
                ) from None
            except OSError:
                continue
            if greeting.startswith(_GREETING) and greeting[len(_GREETING) :].strip().isdigit():
                missing.discard(int(greeting[len(_GREETING) :]))


def _say_name(address: tuple[str, int], rank: int, deadline: float, timeout: float) -> None:
    reason = "no answer"
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(address, timeout=min(5.0, timeout)) as connection:
                connection.sendall((_GREETING + str(rank).encode()).ljust(_LINE))
                connection.settimeout(max(deadline - time.monotonic(), 1e-3))
                connection.recv(1)  # the first process closes it when all have connected
            time.sleep(
                0.5
            )  # let Paddle's store start on the first process; a process that is too early waits 3 s
            return
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(min(0.2, timeout / 10))
    raise JobError(f"rank 0 at {address[0]}:{address[1]} can't be reached within {timeout:g} s: {reason}")
