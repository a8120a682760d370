"""Checks that all processes of a job can reach the first one, before Paddle connects them.

Paddle's own store waits up to 15 minutes for a missing process, holds the interpreter's lock during that
time, and aborts if its port is in use. So the first process listens on that port until all others have
connected. Then it frees the port for Paddle.
"""

from __future__ import annotations

import contextlib
import socket
import time

from ppxcls.system.errors import UserError

_GREETING = b"ppxcls rank "
_GREETING_BYTES = 32  # length of a padded greeting in bytes


class JobError(UserError):
    """The processes of a job can't reach one another, or differ in a value that must be equal."""


def wait_for_all_ranks(master: str, rank: int, world_size: int, timeout: float) -> None:
    """Waits until all processes have connected to the first one.

    Args:
        master: ``host:port`` of the first process.
        rank: number of this process.
        world_size: number of processes.
        timeout: longest time to wait, in seconds.

    Raises:
        JobError: the port is in use, the first process can't be reached, or others did not connect in time.
    """
    host, _, port = master.rpartition(":")
    if not host or not port.isdigit():
        return
    deadline = time.monotonic() + timeout
    if rank == 0:
        _accept_ranks(int(port), world_size, deadline, timeout)
    else:
        _report_rank((host, int(port)), rank, deadline, timeout)


def _accept_ranks(port: int, world_size: int, deadline: float, timeout: float) -> None:
    missing_ranks = set(range(1, world_size))
    with contextlib.ExitStack() as connections:
        try:
            server = connections.enter_context(socket.create_server(("", port), backlog=world_size))
        except OSError as error:
            raise JobError(
                f"port {port}, on which the processes meet, can't be used: {error.strerror}"
            ) from None
        while missing_ranks:
            server.settimeout(max(deadline - time.monotonic(), 1e-3))
            try:
                connection, _ = server.accept()
                connections.enter_context(connection)
                connection.settimeout(max(min(deadline - time.monotonic(), 5.0), 1e-3))
                greeting = connection.recv(_GREETING_BYTES, getattr(socket, "MSG_WAITALL", 0))
            except TimeoutError:
                if time.monotonic() < deadline:
                    continue
                rank_list = ", ".join(map(str, sorted(missing_ranks)))
                raise JobError(
                    f"rank {rank_list} of {world_size} did not connect to port {port} within {timeout:g} s"
                ) from None
            except OSError:
                continue
            if greeting.startswith(_GREETING) and greeting[len(_GREETING) :].strip().isdigit():
                missing_ranks.discard(int(greeting[len(_GREETING) :]))


def _report_rank(address: tuple[str, int], rank: int, deadline: float, timeout: float) -> None:
    reason = "no answer"
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(address, timeout=min(5.0, timeout)) as connection:
                connection.sendall((_GREETING + str(rank).encode()).ljust(_GREETING_BYTES))
                connection.settimeout(max(deadline - time.monotonic(), 1e-3))
                connection.recv(1)  # returns when the first process closes it, after all have connected
            # Gives Paddle's store on rank 0 time to start. A process that is too early waits 3 s.
            time.sleep(0.5)
            return
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(min(0.2, timeout / 10))
    raise JobError(f"rank 0 at {address[0]}:{address[1]} can't be reached within {timeout:g} s: {reason}")
