"""Raw requests, and what an answer to a hostile one must look like."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import socket
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hostility.servers.process import Server

MAX_MESSAGE = 500  # characters of an error
HOST = b"Host: 127.0.0.1\r\n"
LIMIT = 20 << 20  # bytes of a body


@dataclass(frozen=True)
class Answer:
    """An answer of the server.

    Attributes:
        status: status code; 0 if there is none.
        body: its body.
        is_closed: True if the server has closed the connection.
    """

    status: int
    body: bytes
    is_closed: bool


def exchange(server: Server, data: bytes, *, timeout_s: float = 20.0) -> Answer:
    """Sends bytes, and returns the first answer."""
    with server.connect(timeout_s=timeout_s) as connection:
        with contextlib.suppress(OSError):  # the server may close it before the end
            connection.sendall(data)
        return read_answer(connection)


def read_answer(connection: socket.socket) -> Answer:
    """Reads the first answer of a connection, and waits a little for its end."""
    content = b""
    is_closed = False
    with contextlib.suppress(OSError):
        while not _is_complete(content):
            part = connection.recv(1 << 16)
            is_closed = not part
            if is_closed:
                break
            content += part
    with contextlib.suppress(OSError):
        connection.settimeout(0.2)
        is_closed = is_closed or not connection.recv(1)
    head_text, _, body = content.partition(b"\r\n\r\n")
    words = head_text.split(b" ", 2)
    status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
    return Answer(status, body[: _body_length(head_text)], is_closed)


def _body_length(head_text: bytes) -> int | None:
    lines = head_text.lower().split(b"\r\n")
    return next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), None)


def _is_complete(content: bytes) -> bool:
    head_text, separator, body = content.partition(b"\r\n\r\n")
    if not separator or head_text.startswith(b"HTTP/1.1 100"):
        return False
    length = _body_length(head_text)
    return length is not None and len(body) >= length


def answer_problem(answer: Answer, statuses: Sequence[int], *, must_close: bool = False) -> str | None:
    """Returns why an answer is no clean refusal; None if it is one."""
    if answer.status not in statuses:
        return f"status {answer.status}, expected {' or '.join(map(str, statuses))}: {answer.body[:80]!r}"
    if must_close and not answer.is_closed:
        return "the connection stays open"
    if answer.status < 400:
        return None
    try:
        content = json.loads(answer.body)
    except ValueError:
        return f"no JSON: {answer.body[:80]!r}"
    messages = [content["error"]] if "error" in content else [e["error"] for e in content["predictions"]]
    for message in messages:
        if not 0 < len(message) <= MAX_MESSAGE:
            return f"a message of {len(message):,} characters"
        if any(word in message for word in ("/tmp/", "/root/", "/home/", "Traceback", "site-packages")):  # noqa: S108
            return f"a path of the machine: {message[:100]}"
    return None


def post(body: bytes, *headers: str, target: str = "/predict") -> bytes:
    """Returns a POST request with a length."""
    lines = "".join(f"{header}\r\n" for header in headers)
    return (
        f"POST {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )


def head(line: str | bytes = "GET /healthz HTTP/1.1", *headers: str | bytes, host: bytes = HOST) -> bytes:
    """Returns a request without a body."""
    lines = [text.encode("latin-1") if isinstance(text, str) else text for text in (line, *headers)]
    return lines[0] + b"\r\n" + host + b"".join(text + b"\r\n" for text in lines[1:]) + b"\r\n"


def chunked(chunks: bytes, *headers: str) -> bytes:
    """Returns a POST request with a body of chunks."""
    return head("POST /predict HTTP/1.1", "Transfer-Encoding: chunked", *headers) + chunks


def form(*parts: bytes, boundary: bytes = b"b0", end: bytes = b"--b0--\r\n") -> bytes:
    """Returns a POST request with a form of raw parts."""
    body = b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + end
    return post(body, f"Content-Type: multipart/form-data; boundary={boundary.decode('latin-1')}")


def file_part(content: bytes, name: bytes = b"a.png") -> bytes:
    """Returns a part of a form with a file."""
    return b'Content-Disposition: form-data; name="file"; filename="' + name + b'"\r\n\r\n' + content


def json_post(text: str | bytes) -> bytes:
    """Returns a POST request with JSON."""
    body = text.encode() if isinstance(text, str) else text
    return post(body, "Content-Type: application/json")


def each_form(picture: bytes) -> Iterator[tuple[str, bytes]]:
    """Yields the ways to send a picture, with their names."""
    text = base64.b64encode(picture).decode()
    yield "raw", post(picture)
    yield "as a form", form(file_part(picture))
    yield "in JSON", json_post(json.dumps({"image": text}))
    yield "packed", post(gzip.compress(picture, 1), "Content-Encoding: gzip")


def bomb(size: int, kind: int = 31) -> bytes:
    """Returns zeros that were packed.

    Args:
        size: bytes after unpacking.
        kind: window size of zlib, which selects its format.
    """
    packer = zlib.compressobj(6, wbits=kind)
    block = bytes(1 << 20)
    parts = [packer.compress(block) for _ in range(size >> 20)]
    return b"".join(parts) + packer.flush()


def seconds_of(start: float) -> float:
    """Returns the seconds since a time."""
    return time.monotonic() - start
