"""Checks the head of each request, and bounds what a client may send around the body.

h11 parses the requests. It accepts any method, any version with two digits and heads of any number of lines.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit

import h11

MAX_HEAD_BYTES = 16 << 10
_MAX_HEADERS = 100
_MAX_TARGET = 4096  # characters
_METHODS = {b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS"}
_KNOWN_METHODS = {b"CONNECT", b"TRACE"}
_VERSIONS = {b"1.0", b"1.1"}
# Bytes of a request that are not its body, such as the frames of chunks, beside as many bytes as the body.
_MAX_EXTRA_BYTES = 256 << 10


class RequestProblem(NamedTuple):
    """Why a request is refused.

    Attributes:
        status: status code of the answer.
        message: one short line.
    """

    status: int
    message: str


def head_problem(request: h11.Request) -> RequestProblem | None:
    """Returns why a request is refused by its head; None if it is not."""
    names = [name for name, _ in request.headers]
    if len(request.method) > 20 or request.method not in _METHODS | _KNOWN_METHODS:
        return RequestProblem(501, "unknown method; POST an image to /predict")
    if request.method in _KNOWN_METHODS:
        return RequestProblem(405, f"the method {request.method.decode()} is not supported")
    if request.http_version not in _VERSIONS:
        return RequestProblem(505, "expected HTTP/1.1 or HTTP/1.0")
    if len(request.target) > _MAX_TARGET:
        return RequestProblem(414, f"the address of the request has more than {_MAX_TARGET:,} characters")
    if len(names) > _MAX_HEADERS:
        return RequestProblem(431, f"more than {_MAX_HEADERS} headers")
    if sum(len(name) + len(value) for name, value in request.headers) > MAX_HEAD_BYTES:
        return RequestProblem(431, f"more than {MAX_HEAD_BYTES:,} bytes of headers")
    if b"transfer-encoding" in names and (b"content-length" in names or request.http_version == b"1.0"):
        return RequestProblem(400, "Transfer-Encoding beside Content-Length, or in HTTP/1.0")
    expectations = [value for name, value in request.headers if name == b"expect"]
    if any(value.strip().lower() != b"100-continue" for value in expectations):
        return RequestProblem(417, "expected Expect: 100-continue or none")
    is_path = request.target.startswith((b"/", b"http://", b"https://"))
    if not is_path and not (request.method == b"OPTIONS" and request.target == b"*"):
        return RequestProblem(400, "the address of the request does not begin with /")
    return None


def with_path(request: h11.Request) -> h11.Request:
    """Returns a request whose target is a path. An absolute target also decides about the host (RFC 9112).

    Raises:
        ValueError: the target is no valid address.
    """
    if request.target.startswith(b"/") or request.target == b"*":
        return request
    address = urlsplit(request.target.decode("ascii"))
    if not address.netloc or "@" in address.netloc:
        raise ValueError("the address of the request has no host")
    target = (address.path or "/") + (f"?{address.query}" if address.query else "")
    headers = [(name, value) for name, value in request.headers if name != b"host"]
    return h11.Request(
        method=request.method,
        target=target,
        headers=[(b"host", address.netloc.encode()), *headers],
        http_version=request.http_version,
    )


class RequestParser(h11.Connection):
    """h11's parser with the rules of this server.

    Attributes:
        problem: problem of the request that can't be read; None if there is none.
        is_receiving: True from the head of a request to the end of its body.
        request_count: number of requests so far.
        is_paused: True to leave the next request for later.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self.problem: RequestProblem | None = None
        self.is_receiving = False
        self.request_count = 0
        self.is_paused = False
        self._wire_bytes = 0
        self._body_bytes = 0

    def receive_data(self, data: bytes) -> None:
        """Takes bytes of the client, and counts them."""
        self._wire_bytes += len(data)
        super().receive_data(data)

    @property
    def has_more(self) -> bool:
        """True if more than the present request has been received."""
        return not self.is_receiving and bool(self.trailing_data[0])

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Returns the next part of a request.

        Raises:
            h11.RemoteProtocolError: the request is refused; ``problem`` is set.
        """
        if self.is_paused:
            return h11.NEED_DATA
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            raise self._refusal(self._problem_of(error)) from None
        if isinstance(event, h11.Request):
            problem = head_problem(event)
            if problem is not None:
                raise self._refusal(problem)
            try:
                event = with_path(event)
            except (ValueError, h11.LocalProtocolError):
                raise self._refusal(RequestProblem(400, "the address of the request is invalid")) from None
            self.is_receiving = True
            self.request_count += 1
            # What has come of the body, or of the next requests, with the head.
            self._wire_bytes = len(self.trailing_data[0])
            self._body_bytes = 0
        elif isinstance(event, h11.Data):
            self._body_bytes += len(event.data)
            max_bytes = 2 * self._body_bytes + _MAX_EXTRA_BYTES
            if self._wire_bytes > max_bytes and self._wire_bytes - len(self.trailing_data[0]) > max_bytes:
                raise self._refusal(RequestProblem(400, "the chunks of the body are too small"))
        elif isinstance(event, h11.EndOfMessage):
            self.is_receiving = False
        return event

    def _problem_of(self, error: h11.RemoteProtocolError) -> RequestProblem:
        status = error.error_status_hint if 400 <= error.error_status_hint < 600 else 400
        if status == 431:
            return RequestProblem(431, f"more than {MAX_HEAD_BYTES:,} bytes of headers")
        return RequestProblem(status, f"invalid HTTP: {str(error)[:100]}")

    def _refusal(self, problem: RequestProblem) -> h11.RemoteProtocolError:
        self.problem = problem
        self.is_receiving = False
        return h11.RemoteProtocolError(problem.message, problem.status)
