"""Hostile bodies: packed, forms, JSON and base64."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable, Iterator, Sequence

from hostility.servers.wire import LIMIT, bomb, each_form, file_part, form, json_post, post

Request = tuple[str, Callable[[], bytes], Sequence[int]]
_DISPOSITION = b'Content-Disposition: form-data; name="file"; filename="a.png"'


def requests() -> Iterator[Request]:
    """Yields each request with its name, a function that makes it, and the allowed status codes."""
    for requests_of_kind in (_packed(), _forms(), _json(), _base64(), _plain()):
        yield from requests_of_kind


def _packed() -> Iterator[Request]:
    def packed(make_body: Callable[[], bytes], encoding: str) -> Callable[[], bytes]:
        return lambda: post(make_body(), f"Content-Encoding: {encoding}")

    yield "gzip of 512 MB of zeros", packed(lambda: bomb(512 << 20), "gzip"), (413,)
    yield "deflate of 512 MB of zeros", packed(lambda: bomb(512 << 20, 15), "deflate"), (413,)
    yield "gzip in gzip", packed(lambda: gzip.compress(bomb(512 << 20)), "gzip"), (422,)
    yield "100 files of gzip in a row", packed(lambda: gzip.compress(b"a") * 100, "gzip"), (400,)
    yield "gzip that ends early", packed(lambda: gzip.compress(bytes(100_000))[:50], "gzip"), (400,)
    yield "noise as gzip", packed(lambda: bytes(range(256)) * 10, "gzip"), (400,)
    yield (
        "a packed form of 512 MB",
        lambda: post(
            bomb(512 << 20), "Content-Encoding: gzip", "Content-Type: multipart/form-data; boundary=b0"
        ),
        (413,),
    )
    yield (
        "packed JSON of 512 MB",
        lambda: post(bomb(512 << 20), "Content-Encoding: gzip", "Content-Type: application/json"),
        (413,),
    )
    for encoding in ("br", "zstd", "gzip, gzip", "compress", "x" * 5000, "gzip\t", "*"):
        statuses = (415,) if encoding != "gzip\t" else (400,)
        yield f"the encoding {encoding[:20]!r}", packed(lambda: b"hello", encoding), statuses


def _forms() -> Iterator[Request]:
    kind = "Content-Type: multipart/form-data; boundary="
    yield "a form of 100,000 parts", lambda: form(*[file_part(b"a")] * 100_000), (413,)
    yield "a form of 17 files", lambda: form(*[file_part(b"a")] * 17), (413,)
    yield "a form with 1 MB of headers", lambda: form(b"X-A: " + b"a" * (1 << 20) + b"\r\n\r\nx"), (400,)
    yield (
        "a form with 1,000 headers",
        lambda: form(b"X-A: a\r\n" * 1000 + _DISPOSITION + b"\r\n\r\nx"),
        (400, 422),
    )
    yield "a form with endless headers", lambda: form(b"X-A: a\r\n" * 1_000_000), (400,)
    yield "a form with 5,000 semicolons", lambda: form(_DISPOSITION + b";a" * 5000 + b"\r\n\r\nx"), (400,)
    yield "a form with a name of 7,000 characters", lambda: form(file_part(b"x", b"a" * 7000)), (422,)
    yield "16 files with long names", lambda: form(*[file_part(b"x", b"a" * 7000)] * 16), (422,)
    yield "a form with a name with NUL", lambda: form(file_part(b"x", b"a\0b")), (400, 422)
    yield "a form with a path as a name", lambda: form(file_part(b"x", b"../../../etc/passwd")), (422,)
    yield (
        "a form in a form",
        lambda: form(b"Content-Type: multipart/mixed; boundary=c\r\n\r\n--c\r\n\r\nx"),
        (400,),
    )
    yield "a form without headers", lambda: form(b"x"), (400,)
    yield "a form without an end", lambda: form(file_part(b"x"), end=b""), (400,)
    yield "a form without a file", form, (400,)
    yield (
        "a field that is no file",
        lambda: form(b'Content-Disposition: form-data; name="a"\r\n\r\nx'),
        (400,),
    )
    yield (
        "a form in base64",
        lambda: form(_DISPOSITION + b"\r\nContent-Transfer-Encoding: base64\r\n\r\nx"),
        (400,),
    )
    for name, boundary in (
        ("no", ""),
        ("an empty", '""'),
        ("a long", "a" * 10_000),
        ("a blank", '" "'),
        ("a broken", '"a'),
    ):
        yield (
            f"a form with {name} boundary",
            lambda b=boundary: post(b"--a\r\n\r\nx\r\n--a--", kind + b),
            (400,),
        )
    yield "20 MB of dashes as a form", lambda: post(b"-" * LIMIT, f"{kind}b0"), (400,)
    yield "20 MB of boundaries", lambda: post(b"--b\r\n" * (LIMIT // 5), f"{kind}b"), (413,)
    yield (
        "another kind of form",
        lambda: post(b"--a--", "Content-Type: multipart/x-mixed-replace; boundary=a"),
        (415,),
    )
    yield "a form's type with 900 parameters", lambda: post(b"x", f"{kind}b" + ";a=b" * 230), (400,)
    yield (
        "a name in an unknown alphabet",
        lambda: form(b"Content-Disposition: form-data; name=a; filename*=utf-7''%2BADw-\r\n\r\nx"),
        (400, 422),
    )


def _json() -> Iterator[Request]:
    for name, make_text in (
        ("100,000 nested lists", lambda: "[" * 100_000),
        ("100,000 nested objects", lambda: '{"image":' * 100_000),
        ("lists in a key", lambda: '{"images": ' + "[" * 50_000 + "]" * 50_000 + "}"),
        ("a million keys", lambda: "{" + ",".join(f'"{i}":1' for i in range(1_000_000)) + "}"),
        ("a million images", lambda: '{"images": [' + ",".join(['""'] * 1_000_000) + "]}"),
        ("a number of a million digits", lambda: '{"image": "", "topk": ' + "9" * 1_000_000 + "}"),
        ("a number with a huge exponent", lambda: '{"image": "aGk=", "topk": 1e999999999}'),
        ("topk as text", lambda: '{"image": "aGk=", "topk": "5"}'),
        ("topk that is not a number", lambda: '{"image": "aGk=", "topk": NaN}'),
        ("topk that is infinite", lambda: '{"image": "aGk=", "topk": Infinity}'),
        ("topk that is true", lambda: '{"image": "aGk=", "topk": true}'),
        ("topk that is a list", lambda: '{"image": "aGk=", "topk": [1]}'),
        ("a long unknown key", lambda: '{"' + "a" * 100_000 + '": 1}'),
        ("an unknown key of escapes", lambda: '{"\\u001b]0;a\\u0007": 1}'),
        ("half of a character", lambda: '{"image": "\\ud800"}'),
        ("both keys", lambda: '{"image": "aGk=", "images": ["aGk="]}'),
        ("no key", lambda: "{}"),
        ("an empty list", lambda: '{"images": []}'),
        ("null", lambda: "null"),
        ("a text", lambda: '"image"'),
        ("an image that is null", lambda: '{"image": null}'),
        ("an image that is an object", lambda: '{"image": {"a": 1}}'),
        ("an image that is a number", lambda: '{"image": ' + "1" * 5000 + "}"),
        ("17 images", lambda: json.dumps({"images": ["aGk="] * 17})),
        ("27 MB of blanks", lambda: " " * (27 << 20)),
        ("27 MB of quotation marks", lambda: '{"image": "' + '\\"' * (13 << 20) + '"}'),
        ("UTF-16", lambda: '{"image": "aGk="}'.encode("utf-16")),
        ("bytes that are no text", lambda: b'{"image": "\xff\xfe"}'),
        ("NUL", lambda: b'{"image": "a\0"}'),
        ("an end that is missing", lambda: '{"image": "aGk='),
    ):  # fmt: skip
        statuses = (200, 400, 422) if "UTF-16" in name else (400, 413)
        yield f"JSON with {name}", lambda make=make_text: json_post(make()), statuses


def _base64() -> Iterator[Request]:
    for name, make_text in (
        ("of signs", lambda: "!@#$%^&*()"),
        ("of one letter", lambda: "a"),
        ("of padding", lambda: "=" * 100_000),
        ("of 20 MB of line ends", lambda: "\n" * LIMIT),
        ("of an address", lambda: "http://169.254.169.254/latest/meta-data"),
        ("of a file's address", lambda: "file:///etc/passwd"),
        ("of another alphabet", lambda: "ä" * 1000),
        ("with padding inside", lambda: "aGk=aGk="),
        ("of a data URI of text", lambda: "data:text/html,<script>"),
        ("of a data URI without a comma", lambda: "data:image/png;base64" + "a" * 100_000),
        ("of a data URI of commas", lambda: "data:" + "," * 50),
    ):
        yield (
            f"base64 {name}",
            lambda make=make_text: json_post(json.dumps({"image": make()})),
            (400, 413, 422),
        )
    yield (
        "base64 of 25 MB",
        lambda: json_post(json.dumps({"image": base64.b64encode(bytes(25 << 20)).decode()})),
        (413,),
    )
    yield (
        "16 images of 2 MB that are zeros",
        lambda: json_post(json.dumps({"images": [base64.b64encode(bytes(1_200_000)).decode()] * 16})),
        (422,),
    )


def _plain() -> Iterator[Request]:
    yield "an empty body", lambda: post(b""), (400,)
    yield "a body of 21 MB", lambda: post(bytes(LIMIT + 1)), (413,)
    yield (
        "a body of 1 GB in its head",
        lambda: post(b"", "X-A: b").replace(b": 0\r\n", b": 1073741824\r\n"),
        (413,),
    )
    yield "a page as an image", lambda: post(b"<html>" + b"a" * 100_000), (422,)
    yield "20 MB of comments", lambda: post(b"<!---->" * (LIMIT // 7)), (422,)
    yield (
        "a data URI of 20 MB",
        lambda: post(b"data:image/png;base64," + b"A" * (LIMIT - 100)),
        (400, 413, 422),
    )
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "a" * 5000,
        "image/png;" + "a=b;" * 1000,
        "\x7f",
        "application/json; charset=utf-7",
    ):
        yield f"the type {kind[:30]!r}", lambda k=kind: post(b"hello", f"Content-Type: {k}"), (400, 422)
    for name, data in each_form(b"hello"):
        yield f"no image, {name}", lambda d=data: d, (422,)
