"""The supervisors of several nodes agree which of them take part in the next start of a job, and notice if one goes away.

The node whose address is ``--master`` leads: it listens, the others connect and stay connected while the job runs. If a connection
ends without a last word, the job has failed on that node, or the node is lost. If the leader is lost, the others wait for it.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ppxcls.system.rendezvous import JobError

_LINE = 32  # bytes of a padded message
_NODE, _PLACE, _END = b"ppxcls node", b"ppxcls place", b"ppxcls end"
_POLL = 0.2  # seconds
_KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # a node without power is noticed after 30 s


@dataclass(frozen=True)
class Place:
    """What a node has to do with one start of a job.

    Attributes:
        resume: go on from the newest checkpoint, because the job had begun before on some node.
        nodes: that take part; None for a job of one node.
        rank: of this node.
    """

    resume: bool = False
    nodes: int | None = None
    rank: int = 0


class NodeGroup:
    """This node's view of the others.

    Args:
        address: on which the leader listens.
        wanted: number of nodes of the whole job.
        least: number of nodes with which the job may go on. It goes on with a divisor of ``wanted``, so that accumulation can
            keep the samples per step; nodes beyond it wait as spares.
        timeout: seconds for which missing nodes are waited for.
        is_stopped: whether to give up.
    """

    def __init__(
        self, address: tuple[str, int], wanted: int, least: int, timeout: float, is_stopped: Callable[[], bool] = lambda: False
    ) -> None:
        self._address, self._wanted, self._least, self._timeout, self._is_stopped = address, wanted, least, timeout, is_stopped
        self._server: socket.socket | None = None
        self._active: list[socket.socket] = []  # of a leader, the nodes of the job; of another node, the leader
        self._waiting: list[tuple[socket.socket, bool]] = []  # of a leader: nodes without a place, and whether their job had begun
        self.ended: int | None = None  # exit code with which another node has ended the job for good

    @property
    def leads(self) -> bool:
        """Whether this node is the leader."""
        return self._server is not None

    def meet(self, has_begun: bool) -> Place | None:
        """Wait for the other nodes.

        Args:
            has_begun: whether the job had begun on this node.

        Returns:
            This node's place; None if the job is to be stopped, or has ended on another node.

        Raises:
            JobError: too few nodes came, or the leader can't be reached.
        """
        self.leave()
        self.ended = None
        if self._server is None:
            try:
                self._server = socket.create_server(self._address, backlog=self._wanted + 16)
            except OSError as error:
                is_known = error.errno is None or error.errno >= 0  # below 0, the leader's name does not resolve yet
                if is_known and error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                    raise JobError(f"{self._shown}, on which the nodes meet, can't be used: {error.strerror}") from None
        return self._lead(has_begun) if self._server else self._join(has_begun)

    @property
    def _shown(self) -> str:
        return f"{self._address[0]}:{self._address[1]}"

    def _lead(self, has_begun: bool) -> Place | None:
        deadline = time.monotonic() + self._timeout
        while len(self._waiting) + 1 < self._wanted and time.monotonic() < deadline:
            if self._is_stopped():
                return None
            self._accept()
            self._waiting = [(node, begun) for node, begun in self._waiting if not _is_gone(node)]
        present = len(self._waiting) + 1
        counts = [n for n in range(self._least, present + 1) if self._wanted % n == 0]
        if not counts:
            raise JobError(
                f"{present} of {self._wanted} nodes came to {self._shown} within {self._timeout:g} s; the job can go on with a "
                f"divisor of {self._wanted} that is at least {self._least}"
            )
        nodes = counts[-1]
        resume = has_begun or any(begun for _, begun in self._waiting)
        self._active = [node for node, _ in self._waiting[: nodes - 1]]
        self._waiting = self._waiting[nodes - 1 :]
        for rank, node in enumerate(self._active, 1):
            _send(node, b"%b %d %d %d" % (_PLACE, nodes, rank, resume))
        return Place(resume, nodes, 0)

    def _accept(self) -> None:
        assert self._server is not None
        self._server.settimeout(_POLL)
        with contextlib.suppress(OSError):
            node, _ = self._server.accept()
            node.settimeout(5.0)
            message = node.recv(_LINE, socket.MSG_WAITALL)
            if message.startswith(_NODE):
                self._waiting.append((_kept_alive(node), message[len(_NODE) :].strip() == b"1"))
            else:
                node.close()

    def _join(self, has_begun: bool) -> Place | None:
        deadline = time.monotonic() + 2 * self._timeout  # the leader may have to come back itself
        reason = "no answer"
        while not self._is_stopped():
            if time.monotonic() > deadline:
                raise JobError(f"the leading node at {self._shown} can't be reached within {2 * self._timeout:g} s: {reason}")
            try:
                leader = _kept_alive(socket.create_connection(self._address, timeout=5.0))
            except OSError as error:
                reason = error.strerror or str(error)
                time.sleep(_POLL)
                continue
            try:
                _send(leader, b"%b %d" % (_NODE, has_begun))
                message = self._answer(leader)
            except OSError:
                message = b""
            if message.startswith(_PLACE):
                nodes, rank, resume = map(int, message[len(_PLACE) :].split())
                self._active = [leader]
                return Place(bool(resume), nodes, rank)
            leader.close()
            if message.startswith(_END):
                self.ended = int(message[len(_END) :])
                return None
            deadline = time.monotonic() + 2 * self._timeout  # it was there, and has gone
            time.sleep(_POLL)
        return None

    def _answer(self, leader: socket.socket) -> bytes:
        """The leader's message, for which a spare node waits as long as the job runs; empty if it has gone."""
        while not self._is_stopped():
            if select.select([leader], [], [], _POLL)[0]:
                return leader.recv(_LINE, socket.MSG_WAITALL)
        return b""

    def is_broken(self) -> bool:
        """Whether a node of the running job has gone without a last word. Takes note of last words, see ``ended``."""
        for node in list(self._active):
            if not select.select([node], [], [], 0)[0]:
                continue
            try:
                message = node.recv(_LINE)
            except OSError:
                message = b""
            if not message.startswith(_END):
                return True
            self.ended = int(message[len(_END) :])
            self._active.remove(node)
            node.close()
        return False

    def leave(self) -> None:
        """Leave the job, because it has failed here. The other nodes notice it, and meet again."""
        for node in self._active:
            node.close()
        self._active = []

    def end(self, code: int) -> None:
        """Tell the others that the job has ended for good on this node, also those that came in the meantime."""
        while self._server is not None and select.select([self._server], [], [], 0)[0]:
            self._accept()
        for node in [*self._active, *(node for node, _ in self._waiting)]:
            with contextlib.suppress(OSError):
                _send(node, b"%b %d" % (_END, code))
        self._waiting = []
        self.leave()
        if self._server is not None:
            self._server.close()
            self._server = None


def group_for(options: Mapping[str, str], least: int, timeout: float) -> Callable[[Callable[[], bool]], NodeGroup]:
    """What makes the group for the launcher's options; the nodes meet on the port above ``--master``'s.

    Raises:
        ValueError: the options are not those of a job of several nodes, or ``least`` is not possible.
    """
    host, _, port = options.get("--master", "").rpartition(":")
    nodes = options.get("--nnodes", "1")
    if not (host and port.isdigit() and nodes.isdigit() and 1 <= least <= int(nodes)):
        raise ValueError("--min-nodes needs --master HOST:PORT and --nnodes N, and is from 1 to N")
    return lambda is_stopped: NodeGroup((host, int(port) + 1), int(nodes), least, timeout, is_stopped)


def _send(node: socket.socket, message: bytes) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it is noticed as gone
        node.sendall(message.ljust(_LINE))


def _kept_alive(node: socket.socket) -> socket.socket:
    node.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            node.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return node


def _is_gone(node: socket.socket) -> bool:
    if not select.select([node], [], [], 0)[0]:
        return False
    try:
        return node.recv(1, socket.MSG_PEEK) == b""
    except OSError:
        return True
