"""What a hostile server of weights may do with a request."""

from __future__ import annotations

import functools
import hashlib
import http.server

from hostility.servers.files import FileServer, Trick, answer, redirect, send

DATA = bytes(range(256)) * 2000
LOCATIONS = (
    *("file:///etc/passwd", "file://localhost/etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,x", "jar:x"),
    *(
        "gopher://127.0.0.1/x",
        "javascript:x",
        "http:",
        "https://",
        "http://[",
        "http://[::1",
        "http://a:b:c/",
    ),
    *("http://user:word@127.0.0.1/x", "http://127.0.0.1:99999/x", "http://127.0.0.1:x/", "\\\\host\\share"),
    *("http://\x01/x", "HTTP://", "http:///x", "http://127.0.0.1:1/x", "//user@host/x", "x" * 20_000),
    *("http://no-such-host.invalid/x", "unix:/var/run/docker.sock", "http+unix://x/y", ""),
)
LENGTHS = ("-1", "x", "", "1e9", "9" * 30, "0x10", str(1 << 40), str(5 << 30), "512000, 512000", "\u0661")
RANGES = (
    *(
        "",
        "bytes",
        "bytes 0-1/2",
        "bytes 256000-255999/512000",
        "bytes 256000-511999/*",
        "bytes 256000-/512000",
    ),
    *("bytes -1-511999/512000", "bytes 256000-511999/1024000", "items 256000-511999/512000", "9" * 5000),
)

BODIES = {
    "an HTML page": b"<!DOCTYPE html><html><body>log in</body></html>",
    "an XML error": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "a JSON error": b'{"error": "no"}',
    "nothing": b"",
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "a zip archive": b"PK\x03\x04" + bytes(100),
    "a pickle": b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.",
    "a program": b"\x7fELF" + bytes(200),
    "a safetensors file with a huge header": (1 << 62).to_bytes(8, "little") + b"{}",
    "weights of nothing": (2).to_bytes(8, "little") + b"{}",
}


def half(handler: http.server.BaseHTTPRequestHandler, _: FileServer) -> None:
    """Sends half of the file, and breaks the connection."""
    tag = f'"{hashlib.sha256(DATA).hexdigest()[:16]}"'
    send(handler, 200, DATA[:256000], {"Content-Length": str(len(DATA)), "ETag": tag})
    handler.close_connection = True


def raw(data: bytes, handler: http.server.BaseHTTPRequestHandler, _: FileServer) -> None:
    handler.wfile.write(data)
    handler.wfile.flush()
    handler.close_connection = True


_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

RAW_ANSWERS = {
    "no status": b"\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
    "a status that is no number": b"HTTP/1.1 abc OK\r\n\r\n",
    "a negative status": b"HTTP/1.1 -200 OK\r\n\r\n",
    "a status of 70,000 characters": b"HTTP/1.1 200 " + b"x" * 70_000 + b"\r\n\r\n",
    "a header of 70,000 characters": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
    "1,000 headers": b"HTTP/1.1 200 OK\r\n" + b"".join(b"X%d: y\r\n" % i for i in range(1000)) + b"\r\n",
    "no end of its headers": b"HTTP/1.1 200 OK\r\nContent-Length: 5",
    "chunks of no size": _CHUNKED + b"zz\r\nabc\r\n0\r\n\r\n",
    "chunks of a negative size": _CHUNKED + b"-5\r\nabc\r\n0\r\n\r\n",
    "chunks of a huge size": _CHUNKED + b"f" * 15 + b"\r\nabc",
    "chunks without an end": _CHUNKED + b"5\r\nabcde\r\n",
    "bytes that are no text": b"\xff\xfe\x00\x01" * 50,
}


def in_small_letters(handler: http.server.BaseHTTPRequestHandler, server: FileServer) -> None:
    """Breaks off, and writes the headers of all later answers in small letters."""
    server.has_small_headers = True
    handler.close_connection = True


SMALL_TRICKS = {
    "a page": answer(200, BODIES["an HTML page"], Content_Type="text/html"),
    "a file that is too large": answer(200, DATA[:500], Content_Length=str(5 << 30)),
    "no size": answer(200, DATA[:500], Content_Length=""),
    "a compressed file": answer(200, DATA, Content_Encoding="gzip"),
    "a wait until tomorrow": answer(429, Retry_After="86400"),
    "a redirection to a file": redirect("file:///etc/passwd"),
    "another digest of the hub": answer(200, DATA, X_Linked_Etag=f'"{"0" * 64}"'),
}


def _drip(begin: bytes, handler: http.server.BaseHTTPRequestHandler, server: FileServer) -> None:
    """Sends one byte after another without end."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + begin)
    while not server.release.wait(0.05):
        handler.wfile.write(b" ")


CONFIG_TRICKS: dict[str, Trick] = {
    "headers that never end": functools.partial(_drip, b"X: "),
    "a body that never ends": functools.partial(_drip, b"Content-Length: 99999999\r\n\r\n"),
    "2 MiB": answer(200, b" " * (2 << 20)),
    "half of its bytes": answer(200, b'{"architecture": "x', Content_Length="40", Connection="close"),
    "another network": answer(200, b'{"architecture": "resnet50"}'),
    "a name of 100,000 characters": answer(200, b'{"architecture": "' + b"x" * 100_000 + b'"}'),
    "a name of control characters": answer(200, b'{"architecture": "\\u001b[2J\\u202e"}'),
    "100,000 brackets": answer(200, b"[" * 100_000),
    "the code 503": answer(503),
    "a wait until tomorrow": answer(429, Retry_After="86400"),
}
