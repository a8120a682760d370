"""Bounds the connections of the server and their time, so that slow and idle clients can't keep others out.

uvicorn has one limit of connections, above which it answers everybody with 503, and no limit of time for
heads and bodies.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from ppxcls.serving.memory import client_key
from ppxcls.serving.requests import RequestParser, RequestProblem
from ppxcls.system.json_text import json_text
from ppxcls.system.logs import logger

# What a connection is at: the head of a request, its body, its answer, nothing (between two requests), or its
# end, in which bytes are read and dropped, so that the client can read the answer.
Phase: TypeAlias = Literal["head", "body", "answer", "idle", "end"]
TICK_SECONDS = 1.0  # between two looks at the time limits
_MIN_RATE = 64 << 10  # bytes in a second; a slower upload is ended if others need its room
_READ_BYTES = 64 << 10  # read at once
_SPARE_FILES = 256  # descriptors besides those of the connections
_MANY_CONNECTIONS = 32
_TURN_SECONDS = (
    0.2  # between two requests of a client that sends many in a row, if there are many connections
)
_STOP_SECONDS = 5.0  # for uploads, after the server was told to stop


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of the connections.

    Attributes:
        count: largest number of connections. One client may have half of them.
        head: longest time for the head of a request, in seconds.
        body: longest time for its body, in seconds.
        answer: longest time until its answer has been taken, in seconds.
        idle: longest time between two requests, in seconds.
        end: longest time for the end of a connection, in seconds.
    """

    count: int = 512
    head: float = 10.0
    body: float = 30.0
    answer: float = 60.0
    idle: float = 15.0
    end: float = 3.0


class ConnectionBook:
    """All connections of a server.

    Args:
        limits: limits of the connections.
        proxies: keys of clients that may have all connections.
    """

    def __init__(self, limits: ConnectionLimits, proxies: Collection[str] = ()) -> None:
        self.limits = limits
        self.is_stopping = False
        self._proxies = frozenset(proxies)
        self._connections: set[GuardedProtocol] = set()
        self._clients: defaultdict[str, set[GuardedProtocol]] = defaultdict(set)

    def __len__(self) -> int:
        return len(self._connections)

    def admit(self, connection: GuardedProtocol) -> bool:
        """Adds a connection, and ends another one if there are too many. False if there is none to end."""
        own_connections = self._clients[connection.key]
        is_bounded = connection.key not in self._proxies
        if is_bounded and len(own_connections) >= max(self.limits.count // 2, 1):
            if not self._end_one(own_connections):
                return False
        elif len(self._connections) >= self.limits.count and not self._end_one(self._connections):
            return False
        self._connections.add(connection)
        self._clients[connection.key].add(connection)
        return True

    def discard(self, connection: GuardedProtocol) -> None:
        """Removes a connection."""
        self._connections.discard(connection)
        own_connections = self._clients[connection.key]
        own_connections.discard(connection)
        if not own_connections:
            del self._clients[connection.key]

    def _end_one(self, connections: Collection[GuardedProtocol]) -> bool:
        """Ends the connection that does least: no request or a slow body, of the client with the most."""
        candidates = [c for c in connections if c.phase in ("head", "idle", "end") or c.is_slow]
        if not candidates:
            return False
        victim = min(candidates, key=lambda c: (c.phase == "body", -len(self._clients[c.key]), c.phase_start))
        victim.transport.abort()
        self.discard(victim)
        return True

    def end_slow_upload(self, client: str | None) -> None:
        """Ends the slowest body of a client, or of any client for None, to make room."""
        connections = self._connections if client is None else self._clients.get(client, set())
        slow_uploads = [connection for connection in connections if connection.is_slow]
        if slow_uploads:
            slowest = min(slow_uploads, key=lambda connection: connection.recent_bytes)
            slowest.refuse(RequestProblem(408, "the body comes too slowly, and others need its room"))

    async def watch(self) -> None:
        """Ends the connections whose time is over, until it is cancelled."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            for connection in list(self._connections):
                try:
                    connection.tick()
                except Exception:
                    logger.exception("a connection could not be ended in order")
                    connection.transport.abort()


class GuardedProtocol(H11Protocol):
    """A connection with time limits. Subclasses of one server have its book.

    Attributes:
        book: all connections of the server.
        key: key of the client.
        phase: what the connection is at.
        phase_start: time at which the phase began, on the loop's clock.
        recent_bytes: bytes received between the last two ticks.
    """

    book: ConnectionBook

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.parser = RequestParser()
        self.conn = self.parser
        self.key = ""
        self.phase: Phase = "head"
        self.phase_start = self.loop.time()
        self.recent_bytes = 0
        self._new_bytes, self._request_count = 0, 0
        self._is_half_closed = False
        self._body_limit = self.book.limits.body

    def _enter(self, phase: Phase) -> None:
        if phase != self.phase:
            self.phase, self.phase_start = phase, self.loop.time()

    @property
    def is_slow(self) -> bool:
        """True if a body has been coming slowly for longer than a tick, and the server was reading it."""
        if self.phase != "body" or self.flow.read_paused:
            return False
        age = self.loop.time() - self.phase_start
        return age > TICK_SECONDS and self.recent_bytes < _MIN_RATE * TICK_SECONDS

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Registers the connection, or refuses it."""
        if hasattr(transport, "max_size"):
            transport.max_size = _READ_BYTES
        super().connection_made(transport)
        self.key = client_key(self.client[0] if self.client else "")
        if not self.book.admit(self):
            transport.write(_response(RequestProblem(503, "too many connections; try again later")))
            transport.close()
            self.phase = "end"
        elif self.book.is_stopping:  # it was accepted just before the end
            self.shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """Removes the connection."""
        self.book.discard(self)
        with contextlib.suppress(h11.LocalProtocolError):
            super().connection_lost(exc)

    def eof_received(self) -> bool:
        """Keeps the connection for the answer to a whole request, if the client sends nothing more.

        Returns:
            True to keep it.
        """
        self._is_half_closed = True
        return self.phase == "answer"

    def data_received(self, data: bytes) -> None:
        """Passes bytes on, except at the end of a connection."""
        self._new_bytes += len(data)
        if self.phase == "end":
            return
        if self.phase == "idle":
            self._enter("head")
        super().data_received(data)

    def handle_events(self) -> None:
        """Handles what has been received, and notes the phase."""
        super().handle_events()
        if self.phase == "end":
            return
        is_answered = self.cycle is None or self.cycle.response_complete
        if self.parser.request_count != self._request_count:
            self._request_count = self.parser.request_count
            self._body_limit = self.book.limits.body
            self.phase_start = self.loop.time()
        if self.parser.is_receiving:
            self._enter("body")
        elif not is_answered:
            self._enter("answer")
        elif self.phase == "body":
            self._enter("idle")

    def _go_on(self) -> None:
        self.parser.is_paused = False
        if self.phase != "end" and not self.transport.is_closing():
            self.handle_events()

    def on_response_complete(self) -> None:
        """Goes on with the next request, or with the rest of a body that nobody needs, but not for long."""
        if len(self.book) > _MANY_CONNECTIONS and self.parser.has_more:
            # Requests that came in a row take turns with those of other connections.
            self.parser.is_paused = True
            self.loop.call_later(_TURN_SECONDS, self._go_on)
        super().on_response_complete()
        if self.phase == "end" or not self.cycle.response_complete:
            return
        if self._is_half_closed and not self.parser.has_more:
            self.transport.close()
        if self.parser.is_receiving:
            self._enter("body")
            self.phase_start = self.loop.time()
            self._body_limit = min(self._body_limit, self.book.limits.head)
        else:
            self._enter("idle")

    def send_400_response(self, msg: str) -> None:
        """Answers a request that can't be read."""
        self.refuse(self.parser.problem or RequestProblem(400, msg))

    def refuse(self, problem: RequestProblem) -> None:
        """Answers with an error unless an answer has begun, and ends the connection."""
        has_begun = self.cycle is not None and self.cycle.response_started
        # A new request has no cycle yet if its head is refused.
        is_new = self.phase != "body" and has_begun and self.cycle.response_complete
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.waiting_for_100_continue = False  # nothing can be written any more
            self.cycle.message_event.set()
        self._unset_keepalive_if_required()
        self._enter("end")
        if self.transport.is_closing():
            return
        if not has_begun or is_new:
            self.transport.write(_response(problem))
        self.flow.resume_reading()
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        try:
            self.transport.write_eof()  # the rest of the request is dropped, so that the client reads this
        except OSError:  # the client has gone, and its system has answered so just now
            self.transport.abort()

    def timeout_keep_alive_handler(self) -> None:
        """Does nothing, because ``tick`` ends idle connections. uvicorn's timer may run out in a request."""

    def tick(self) -> None:
        """Ends the connection if the time of its phase is over."""
        self.recent_bytes, self._new_bytes = self._new_bytes, 0
        if self.transport.is_closing():
            self._enter("end")
        limits = self.book.limits
        limit = self._body_limit if self.phase == "body" else getattr(limits, self.phase)
        if self.loop.time() - self.phase_start <= limit:
            return
        if self.phase in ("head", "body"):
            self.refuse(RequestProblem(408, f"the {self.phase} of the request took more than {limit:g} s"))
        else:
            self.transport.abort()

    def shutdown(self) -> None:
        """Ends the connection after the answer to its request."""
        self.book.is_stopping = True
        if self.phase in ("head", "idle", "end"):
            self.transport.abort()
            return
        self._body_limit = min(self._body_limit, self.loop.time() - self.phase_start + _STOP_SECONDS)
        with contextlib.suppress(h11.LocalProtocolError):
            super().shutdown()


def _response(problem: RequestProblem) -> bytes:
    """Returns a whole answer, after which the connection ends."""
    body = json_text({"error": problem.message}).encode()
    retry = "Retry-After: 1\r\n" if problem.status == 503 else ""
    head = (
        f"HTTP/1.1 {problem.status} {_phrase(problem.status)}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n{retry}Connection: close\r\n\r\n"
    )
    return head.encode() + body


def _phrase(status: int) -> str:
    from http import HTTPStatus

    with contextlib.suppress(ValueError):
        return HTTPStatus(status).phrase
    return "Error"


def protocol_class(book: ConnectionBook) -> type[asyncio.Protocol]:
    """Returns the class of a server's connections.

    Args:
        book: book of the server.
    """
    return type("ServerProtocol", (GuardedProtocol,), {"book": book})


def allowed_count(count: int, warn: Callable[[str], None]) -> int:
    """Returns how many connections the process can have: ``count``, or fewer if it may open fewer files."""
    try:
        import resource
    except ImportError:  # Windows
        return count

    soft_limit, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted_limit = count + _SPARE_FILES
    if soft_limit != resource.RLIM_INFINITY and soft_limit < wanted_limit:
        new_limit = wanted_limit if hard_limit == resource.RLIM_INFINITY else min(wanted_limit, hard_limit)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (new_limit, hard_limit))
            soft_limit = new_limit
    if soft_limit == resource.RLIM_INFINITY or soft_limit >= wanted_limit:
        return count
    possible_count = max(soft_limit - _SPARE_FILES, soft_limit // 2)
    warn(f"this process may open {soft_limit:,} files, so it takes {possible_count:,} connections")
    return possible_count
