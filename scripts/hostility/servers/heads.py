"""Hostile heads of requests: methods, versions, targets, hosts, lengths, chunks, and what follows them."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence

from hostility.servers.wire import chunked, head, post

Request = tuple[str, bytes, Sequence[int], bool]


def requests() -> Iterator[Request]:
    """Yields each request with its name, the allowed status codes, and whether the connection must end."""
    for requests_of_kind in (_lines(), _targets(), _hosts(), _headers(), _lengths(), _chunks(), _origins()):
        yield from requests_of_kind


def _lines() -> Iterator[Request]:
    for name, method in (
        ("of 70,000 characters", "X" * 70_000),
        ("of 200 characters", "X" * 200),
        ("FOO", "FOO"),
        ("in lower case", "get"),
        ("PROPFIND", "PROPFIND"),
        ("with a bracket", "G(T"),
        ("with NUL", "G\0T"),
        ("that is empty", ""),
        ("beyond ASCII", "G\xc4T"),
    ):
        yield f"a method {name}", head(f"{method} /healthz HTTP/1.1"), (400, 431, 501), True
    for method in ("TRACE", "CONNECT"):
        yield f"the method {method}", head(f"{method} /healthz HTTP/1.1"), (400, 405), True
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "GET"):
        yield (
            f"the method {method} for /predict",
            head(f"{method} /predict HTTP/1.1", "Connection: close"),
            (405,),
            False,
        )
    for version in (
        "0.9",
        "1.2",
        "1.9",
        "2.0",
        "3.0",
        "9.9",
        "0.0",
        "1",
        "1.10",
        "11",
        "-1.1",
        "1.1.1",
        "x.y",
    ):
        yield f"the version HTTP/{version}", head(f"GET /healthz HTTP/{version}"), (400, 505), True
    for word in ("http/1.1", "HTCPCP/1.0", "HTTP 1.1", "HTTPS/1.1", "H" * 70_000):
        yield f"the protocol {word[:20]}", head(f"GET /healthz {word}"), (400, 431), True
    yield "a line without a version", head("GET /healthz"), (400,), True
    yield "a line with five words", head("GET /healthz HTTP/1.1 a b"), (400,), True
    yield "a line of blanks", head("   "), (400,), True
    yield (
        "a TLS greeting",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(range(256)) + b"\r\n\r\n",
        (400,),
        True,
    )
    yield "HTTP/2's greeting", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(100), (400, 501, 505), True
    yield "200 kB without a line end", b"a" * 200_000, (400, 431), True
    yield "line ends only", b"\r\n" * 50_000 + b"x\r\n\r\n", (400, 431), True
    yield "bytes of a key exchange", b"SSH-2.0-OpenSSH_9.6\r\n\r\n", (400,), True


def _targets() -> Iterator[Request]:
    for name, target in (
        ("of 70,000 characters", "/" + "a" * 70_000),
        ("of 5,000 characters", "/" + "a" * 5_000),
        ("with a query of 70,000 characters", "/predict?" + "a" * 70_000),
    ):
        yield f"a target {name}", head(f"GET {target} HTTP/1.1"), (414, 431), True
    for name, target in (
        ("with NUL", "/a\0b"),
        ("beyond ASCII", "/\xe4"),
        ("without a slash", "healthz"),
        ("that is a star", "*"),
        ("without a host", "http:///healthz"),
        ("of FTP", "ftp://127.0.0.1/healthz"),
        ("with a name and a password", "http://a:b@127.0.0.1/healthz"),
        ("of a broken address", "http://[::1/healthz"),
        ("that is a port", "127.0.0.1:443"),
        ("of JavaScript", "javascript:alert(1)"),
        ("of a file", "file:///etc/passwd"),
    ):
        yield f"a target {name}", head(f"GET {target} HTTP/1.1"), (400,), True
    yield "a target of another host", head("GET http://evil.example/healthz HTTP/1.1"), (421,), False
    for target in (
        "/../../etc/passwd",
        "//evil.example/healthz",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/healthz%00",
        "/%ff%fe",
        "/healthz/",
        "/.git/config",
        "/predict/../healthz",
        "/\\..\\x",
        "/healthz;a=b",
        "/%0d%0aX-A:b",
        "/<script>alert(1)</script>",
    ):
        yield f"the target {target}", head(f"GET {target} HTTP/1.1"), (307, 400, 404), False
    for query in (
        "topk=0",
        "topk=-1",
        "topk=1e9",
        "topk=9999999999",
        "topk=a",
        "topk=1&a=b",
        "a=b",
        "topk=%00",
        "x" * 3000,
    ):
        yield f"the query {query[:30]}", post(b"x", target=f"/predict?{query}"), (400,), False


def _hosts() -> Iterator[Request]:
    for name in (
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil.localhost.example",
        "10.0.0.1",
        "2130706433",
        "0x7f.1",
        "127.1",
        "[::ffff:7f00:1]",
        "[fe80::1]",
        "a" * 300,
        "127.0.0.1:999999",
        "127.0.0.1:a",
        "xn--localhost",
        "localhost,evil.example",
        "169.254.169.254",
        "metadata.google.internal",
    ):
        yield f"the host {name[:40]}", head(host=f"Host: {name}\r\n".encode()), (400, 421), False
    for name in (
        "",
        "user@127.0.0.1",
        "[::1",
        "127.0.0.1/a",
        "a b",
        "127.0.0.1#",
        "\\127.0.0.1",
        "http://127.0.0.1",
    ):
        yield f"the host {name!r}", head(host=f"Host: {name}\r\n".encode()), (400, 421), False
    yield "no host", head(host=b""), (400,), True
    yield "two hosts", head(host=b"Host: 127.0.0.1\r\nHost: evil.example\r\n"), (400,), True
    yield "a host of 70,000 characters", head(host=b"Host: " + b"a" * 70_000 + b"\r\n"), (400, 421, 431), True
    yield "a host with NUL", head(host=b"Host: 127.0.0.1\0\r\n"), (400,), True
    yield "a host of another alphabet", head(host="Host: löcalhost\r\n".encode()), (400, 421), False
    yield (
        "a forwarded host",
        head("GET /nowhere HTTP/1.1", "X-Forwarded-Host: evil.example", "X-Forwarded-For: 10.0.0.1"),
        (404,),
        False,
    )


def _headers() -> Iterator[Request]:
    for count in (101, 1_000, 20_000):
        yield (
            f"{count:,} headers",
            head("GET /healthz HTTP/1.1", *(f"X-{i}: a" for i in range(count))),
            (431,),
            True,
        )
    for size in (17_000, 100_000, 1_000_000):
        yield f"a header of {size:,} bytes", head("GET /healthz HTTP/1.1", "X-A: " + "a" * size), (431,), True
        yield f"a name of {size:,} bytes", head("GET /healthz HTTP/1.1", "X" * size + ": a"), (400, 431), True
    for name, line in (
        ("without a colon", "X-A"),
        ("with a blank in its name", "X A: b"),
        ("with a blank before its colon", "X-A : b"),
        ("with an empty name", ": b"),
        ("with NUL in its value", "X-A: a\0b"),
        ("with NUL in its name", "X\0A: b"),
        ("with a carriage return", "X-A: a\rb"),
    ):
        yield (
            f"a header {name}",
            head("GET /healthz HTTP/1.1", line),
            (400,),
            True,
        )
    yield "a host over two lines", head("GET /healthz HTTP/1.1", " X-A: b"), (400, 421), False
    for value in ("gzip", "200-ok", "100-continue, a", "a" * 1000):
        yield (
            f"Expect: {value[:20]}",
            head("POST /predict HTTP/1.1", f"Expect: {value}", "Content-Length: 5"),
            (417,),
            True,
        )
    yield (
        "Expect beside a body that is too large",
        head("POST /predict HTTP/1.1", "Expect: 100-continue", f"Content-Length: {1 << 30}"),
        (413,),
        False,
    )
    key = base64.b64encode(bytes(16)).decode()
    upgrade = (
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
    )
    yield "an upgrade to WebSocket", head("GET /predict HTTP/1.1", *upgrade), (400, 405), False
    yield (
        "an upgrade to HTTP/2",
        head(
            "GET /predict HTTP/1.1",
            "Connection: Upgrade, HTTP2-Settings",
            "Upgrade: h2c",
            "HTTP2-Settings: AAMAAABkAAQAAP__",
        ),
        (400, 405),
        False,
    )
    ranges = ",".join(f"{i}-" for i in range(3000))
    yield "3,000 ranges", head("GET /nowhere HTTP/1.1", f"Range: bytes={ranges[:15000]}"), (404, 431), False


def _lengths() -> Iterator[Request]:
    for length in (
        "-1",
        "+5",
        "1e3",
        "0x10",
        "5, 6",
        "5 5",
        "",
        " ",
        "\xb2",
        "5;a",
        "9" * 30,
        "1_0",
        "5.0",
        "NaN",
    ):
        yield (
            f"Content-Length: {length[:20]!r}",
            head("POST /predict HTTP/1.1", f"Content-Length: {length}") + b"hello",
            (400,),
            True,
        )
    yield (
        "a length of 19 digits",
        head("POST /predict HTTP/1.1", "Content-Length: " + "9" * 19),
        (413,),
        False,
    )
    yield (
        "two lengths",
        head("POST /predict HTTP/1.1", "Content-Length: 5", "Content-Length: 6") + b"hello!",
        (400,),
        True,
    )
    yield (
        "a length beside chunks",
        head("POST /predict HTTP/1.1", "Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        (400,),
        True,
    )
    for coding in (
        "gzip",
        "gzip, chunked",
        "chunked, chunked",
        "chunked, gzip",
        "identity",
        "\x0bchunked",
        "xchunked",
        "chunked;a=b",
        "chunkedchunked",
    ):
        yield (
            f"Transfer-Encoding: {coding!r}",
            head("POST /predict HTTP/1.1", f"Transfer-Encoding: {coding}") + b"0\r\n\r\n",
            (400, 501),
            True,
        )
    yield (
        "two transfer encodings",
        head("POST /predict HTTP/1.1", "Transfer-Encoding: chunked", "Transfer-Encoding: gzip")
        + b"0\r\n\r\n",
        (400, 501),
        True,
    )
    yield (
        "chunks in HTTP/1.0",
        head("POST /predict HTTP/1.0", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        (400, 501),
        True,
    )
    smuggled = b"GET /admin HTTP/1.1\r\nHost: evil.example\r\n\r\n"
    yield "a request behind a body of no length", head("POST /predict HTTP/1.1") + smuggled, (400,), False


def _chunks() -> Iterator[Request]:
    for size in ("g", "-5", "0x5", "+5", " 5", "5 5", "", "F" * 100, "5_0", "\xb2", "5\0"):
        yield (
            f"a chunk of the size {size[:20]!r}",
            chunked(size.encode("latin-1") + b"\r\nhello\r\n0\r\n\r\n"),
            (400, 413, 431),
            False,
        )
    yield "200,000 chunks of a byte", chunked(b"1\r\na\r\n" * 200_000 + b"0\r\n\r\n"), (400,), True
    yield (
        "chunks with long extensions",
        chunked((b"1;" + b"a" * 10_000 + b"\r\na\r\n") * 100 + b"0\r\n\r\n"),
        (400,),
        True,
    )
    yield (
        "a chunk with an extension of 1 MB",
        chunked(b"1;" + b"a" * 1_000_000 + b"\r\na\r\n0\r\n\r\n"),
        (400, 431),
        True,
    )
    yield "a chunk without its end", chunked(b"5\r\nhelloXX0\r\n\r\n"), (400,), True
    yield "10,000 trailers", chunked(b"1\r\na\r\n0\r\n" + b"X-A: b\r\n" * 10_000 + b"\r\n"), (400, 431), True
    yield (
        "a trailer of 1 MB",
        chunked(b"1\r\na\r\n0\r\nX-A: " + b"b" * 1_000_000 + b"\r\n\r\n"),
        (400, 431),
        True,
    )
    yield "a trailer with a host", chunked(b"1\r\na\r\n0\r\nHost: evil.example\r\n\r\n"), (400, 422), False
    yield (
        "30 MB in chunks",
        chunked((b"100000\r\n" + bytes(1 << 20) + b"\r\n") * 30 + b"0\r\n\r\n"),
        (413,),
        False,
    )


def _origins() -> Iterator[Request]:
    for origin in (
        "http://evil.example",
        "https://evil.example",
        "null",
        "http://127.0.0.1.evil.example",
        "http://127.0.0.1:1",
        "file://",
        "chrome-extension://abc",
        "http://127.0.0.1@evil.example",
        "http://",
        "",
        "a" * 5000,
    ):
        yield f"a page of {origin[:40] or 'no origin'}", post(b"x", f"Origin: {origin}"), (403,), False
    for site in ("cross-site", "same-site", "x"):
        yield f"a page that is {site}", post(b"x", f"Sec-Fetch-Site: {site}"), (403,), False
    yield (
        "a preflight of another page",
        head(
            "OPTIONS /predict HTTP/1.1", "Origin: http://evil.example", "Access-Control-Request-Method: POST"
        ),
        (405,),
        False,
    )
