"""Finds the images in the body of a request: raw bytes, a form (multipart), or JSON with base64.

Every form is bounded. The body is in memory as a whole and has a limit, so it is split at its boundaries
instead of being parsed byte by byte. Its parts and their headers are counted before they are read.
"""

from __future__ import annotations

import base64
import binascii
import json
import string
import zlib
from dataclasses import dataclass
from email import message_from_string
from email.utils import collapse_rfc2231_value
from typing import Any, NamedTuple

from ppxcls.system.errors import UserError
from ppxcls.system.json_text import json_text

RIGHT_CALLS = (
    "send the file itself (curl --data-binary @image.jpg), a form (curl -F file=@image.jpg), "
    'or JSON ({"image": "<base64>"})'
)
_FORM_OVERHEAD = 64 << 10  # bytes of a body beside its images
_MAX_HEADER_BYTES = 8 << 10  # headers of one part of a form
_MAX_SEMICOLONS = 100  # in these headers; email takes a time that grows with the square of their number
_MAX_BOUNDARY = 70  # characters, RFC 2046
_MAX_CONTENT_TYPE = 1_000  # characters
_MAX_TOPK_DIGITS = 6
# Removes blanks and line ends, and changes the URL-safe alphabet. To split at the blanks would take 20 times
# the memory of a text with many of them.
_PLAIN_BASE64 = {**dict.fromkeys(map(ord, string.whitespace)), ord("-"): "+", ord("_"): "/"}
_GZIP_SIGNATURE = b"\x1f\x8b"
_ENCODINGS = {"gzip": 31, "x-gzip": 31, "deflate": 47}  # window sizes of zlib, which select its format
_MAX_MEMBERS = 8  # gzip files in one body
_PLAIN_ENCODINGS = ("", "binary", "8bit", "7bit")


class RequestError(UserError):
    """The request can't be answered.

    Attributes:
        status: status code of the answer.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class BodyLimits:
    """Limits of one request.

    Attributes:
        size: largest number of bytes of all its images together.
        images: largest number of images.
    """

    size: int
    images: int

    def wire_size(self, kind: str) -> int:
        """Returns the largest size of a body of this content type, in bytes."""
        if kind == "application/json":
            return self.size * 4 // 3 + _FORM_OVERHEAD  # base64 writes 3 bytes as 4 characters
        return self.size + (_FORM_OVERHEAD if kind.startswith("multipart/") else 0)

    def too_large(self, what: str = "the image has") -> RequestError:
        """Returns the error for too many bytes."""
        return RequestError(413, f"{what} more than {self.size:,} bytes")

    def too_many(self) -> RequestError:
        """Returns the error for too many images."""
        return RequestError(413, f"expected at most {self.images} images in a request")


@dataclass(frozen=True)
class Submission:
    """The images of a request.

    Attributes:
        names: names of the files, as the client gave them.
        images: contents of the files.
        topk: number of classes to answer with; None for the default.
        is_list: True if the answer is a list, one entry for each image.
    """

    names: list[str]
    images: list[bytes]
    topk: int | None = None
    is_list: bool = False


def content_kind(content_type: str) -> str:
    """Returns the content type of a body without its parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def is_plain(body: bytes, content_type: str) -> bool:
    """True if a body without ``Content-Encoding`` is an image file itself, which takes no time to find."""
    kind = content_kind(content_type)
    is_other = kind.startswith("multipart/") or kind == "application/json"
    return not is_other and body[:1] not in b"{d" and not body[:1].isspace()


def decompressed(body: bytes, encoding: str, max_size: int) -> bytes:
    """Returns a body without its ``Content-Encoding``.

    Args:
        body: body of the request.
        encoding: value of the header.
        max_size: largest size of the result, in bytes.

    Raises:
        RequestError: the encoding is not supported, or the body is damaged.
        OverflowError: the result is larger than ``max_size``.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in _ENCODINGS:
        raise RequestError(
            415, f"expected the Content-Encoding gzip, deflate or none, received {encoding[:50]!r}"
        )
    parts, size = [], 0
    for _ in range(_MAX_MEMBERS):  # gzip files may be written one after the other
        decoder = zlib.decompressobj(_ENCODINGS[encoding])
        try:
            parts.append(decoder.decompress(body, max_size - size + 1))
        except zlib.error as error:
            raise RequestError(400, f"the body is not valid {encoding} data: {error}") from None
        size += len(parts[-1])
        if size > max_size:
            raise OverflowError
        if not decoder.eof:
            raise RequestError(400, f"the {encoding} data is incomplete")
        body = decoder.unused_data
        if not body:
            return b"".join(parts)
    raise RequestError(400, f"the {encoding} data has more than {_MAX_MEMBERS} members")


def read_topk(text: str) -> int:
    """Returns the number of classes that a client wants.

    Raises:
        RequestError: the text is no whole number of at least 1.
    """
    if not (text.isascii() and text.isdecimal() and len(text) <= _MAX_TOPK_DIGITS and int(text) >= 1):
        raise RequestError(400, f"expected topk as a whole number of at least 1, received {text[:50]!r}")
    return int(text)


def read_submission(body: bytes, content_type: str, limits: BodyLimits) -> Submission:
    """Returns the images of a body.

    A body that begins with ``{`` is JSON, whatever its content type is, because no image begins with it.

    Raises:
        RequestError: the body has no images, or is invalid or too large.
    """
    kind = content_kind(content_type)
    if kind.startswith("multipart/"):
        submission = _read_form(body, content_type, limits)
    elif kind == "application/json" or body.lstrip()[:1] == b"{":
        submission = _read_json(body, limits)
    elif body[:5] == b"data:":
        text = body.decode("ascii", "replace")
        submission = Submission(["image 0"], [_decode(text, "the body", limits)])
    else:
        submission = Submission(["image 0"], [body])
        if not body:
            raise RequestError(400, f"expected an image file as the body of the request; {RIGHT_CALLS}")
    if len(submission.images) > limits.images:
        raise limits.too_many()
    if sum(map(len, submission.images)) > limits.size:
        raise limits.too_large("the images of the request have" if submission.is_list else "the image has")
    return submission


def advice(body: bytes, content_type: str) -> str:
    """Returns what to send instead of a raw body that is no image; empty if it looks like one."""
    if body.startswith(_GZIP_SIGNATURE):
        return "; it is gzip data, which needs the header Content-Encoding: gzip"
    start = body[:64]
    if start.isascii() and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start):
        return f"; {RIGHT_CALLS}"
    is_form = content_kind(content_type) == "application/x-www-form-urlencoded"
    if is_form and b"\n" not in body and b"\r" not in body:  # which curl -d removes
        return "; curl -d changes the bytes of a file: use curl --data-binary @image.jpg"
    return ""


def _read_json(body: bytes, limits: BodyLimits) -> Submission:
    example = 'expected JSON such as {"image": "<base64>"} or {"images": ["<base64>", ...], "topk": 5}'
    # Neither base64 nor a data URI contains these, except for one comma in a data URI. A list of millions of
    # empty lists would take much more memory than its text.
    if sum(body.count(character) for character in (b"[", b"{", b",")) > 4 * limits.images + 16:
        raise RequestError(400, f"{example}, with at most {limits.images} images")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError(400, f"{example}, received text that is not valid JSON") from None
    if not isinstance(content, dict):
        raise RequestError(400, f"{example}, received a JSON {_json_kind(content)}")
    unknown_keys = sorted(content.keys() - {"image", "images", "topk"})
    if unknown_keys:
        raise RequestError(400, f"{example}, received the key {unknown_keys[0][:50]!r}")
    if ("image" in content) == ("images" in content):
        raise RequestError(400, f"{example}: one of the keys image and images")
    is_list = "images" in content
    values = content["images"] if is_list else [content["image"]]
    if not isinstance(values, list) or not values:
        raise RequestError(400, "images: expected a list of base64 texts, at least one")
    if len(values) > limits.images:
        raise limits.too_many()
    places = [f"images[{i}]" if is_list else "image" for i in range(len(values))]
    images = [_decode(value, place, limits) for value, place in zip(values, places, strict=True)]
    topk = content.get("topk")
    return Submission(
        [f"image {i}" for i in range(len(images))],
        images,
        topk=None if topk is None else read_topk(json_text(topk)),
        is_list=is_list,
    )


def _json_kind(value: Any) -> str:
    kinds = {list: "list", str: "text", bool: "boolean", type(None): "null"}
    return kinds.get(type(value), "number")


def _decode(value: Any, place: str, limits: BodyLimits) -> bytes:
    """Returns the bytes of a base64 text, which may be a data URI or have no padding."""
    if not isinstance(value, str):
        raise RequestError(400, f"{place}: expected a base64 text, received a JSON {_json_kind(value)}")
    start = value[:200].lstrip().lower()
    if start.startswith(("http://", "https://", "ftp://", "file:", "s3:")):
        raise RequestError(
            400, f"{place}: expected base64, received an address; nothing is downloaded: {RIGHT_CALLS}"
        )
    if start.startswith("data:"):
        header, _, value = value.partition(",")
        if not header.lower().rstrip().endswith(";base64"):
            raise RequestError(
                400, f"{place}: expected a data URI with ;base64, such as data:image/jpeg;base64,..."
            )
    text = value.translate(_PLAIN_BASE64).rstrip("=")
    if len(text) * 3 // 4 > limits.size:
        raise limits.too_large()
    try:
        image = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(400, f"{place}: not valid base64; {RIGHT_CALLS}") from None
    if not image:
        raise RequestError(400, f"{place}: the text is empty")
    return image


def _form_parts(body: bytes, content_type: str, limits: BodyLimits) -> list[bytes]:
    """Returns everything between the boundaries of a form (RFC 7578)."""
    if len(content_type) > _MAX_CONTENT_TYPE:
        raise RequestError(400, f"the form's Content-Type has more than {_MAX_CONTENT_TYPE} characters")
    boundary = _read_header(f"Content-Type: {' '.join(content_type.split())}", "the request").boundary
    if content_kind(content_type) != "multipart/form-data":
        raise RequestError(415, f"expected multipart/form-data, received {content_kind(content_type)[:50]!r}")
    if not 0 < len(boundary) <= _MAX_BOUNDARY or not boundary.isascii():
        raise RequestError(400, f"the form's Content-Type has no valid boundary; {RIGHT_CALLS}")
    max_parts = limits.images + 2  # fields beside the files
    # The first boundary may be the first line of the body.
    parts = (b"\r\n" + body).split(b"\r\n--" + boundary.encode(), max_parts + 2)[1:]
    if not parts:
        raise RequestError(400, f"the form has no part with the boundary of its Content-Type; {RIGHT_CALLS}")
    if parts[-1].startswith(b"--"):
        return parts[:-1]
    if len(parts) > max_parts:
        raise limits.too_many()
    raise RequestError(400, "the form is incomplete: its last boundary is missing")


def _read_form(body: bytes, content_type: str, limits: BodyLimits) -> Submission:
    """Returns the files of a form in their order, and its field ``topk``."""
    names, images = [], []
    topk = None
    for number, part in enumerate(_form_parts(body, content_type, limits)):
        header, content = _part(part, number)
        file_name = header.file_name
        if file_name is None and header.name == "topk":
            topk = read_topk(content[:20].decode("utf-8", "replace").strip())
        elif file_name is None:
            message = "has no file name, so it is no file: curl -F file=@image.jpg, with @"
            raise RequestError(400, f"the field {header.name[:50]!r} {message}")
        elif not file_name and not content:
            continue  # a browser's form without a chosen file
        elif not content:
            raise RequestError(400, f"the file {file_name[:50]!r} is empty")
        else:
            names.append(file_name.replace("%22", '"'))  # as browsers write a quotation mark
            images.append(content)
    if not images:
        raise RequestError(400, f"the form has no file; {RIGHT_CALLS}")
    return Submission(names, images, topk=topk, is_list=len(images) > 1)


def _part(part: bytes, number: int) -> tuple[_Header, bytes]:
    """Returns the headers and the content of one part of a form.

    Args:
        part: everything between two boundaries.
        number: index of the part, for errors.
    """
    place = f"part {number} of the form"
    start = part.find(b"\r\n")
    end = part.find(b"\r\n\r\n", start, start + _MAX_HEADER_BYTES)
    if start < 0 or part[:start].strip(b" \t") or end < 0:
        raise RequestError(400, f"{place} has no headers, or more than {_MAX_HEADER_BYTES:,} bytes of them")
    header = _read_header(part[start + 2 : end].decode("utf-8", "replace"), place)
    if header.main_type == "multipart":
        raise RequestError(400, f"{place} is a form itself; send the files side by side")
    if header.encoding not in _PLAIN_ENCODINGS:
        raise RequestError(400, f"{place}: expected the bytes of a file, received {header.encoding[:50]!r}")
    if header.disposition != "form-data":
        raise RequestError(400, f"{place}: expected the header Content-Disposition: form-data")
    return header, part[end + 4 :]


class _Header(NamedTuple):
    """What the headers of a form or of one of its parts say.

    Attributes:
        main_type: first word of the content type, in lower case.
        boundary: text between the parts of a form; empty if there is none.
        encoding: ``Content-Transfer-Encoding`` in lower case; empty if there is none.
        disposition: first word of ``Content-Disposition``; None if there is none.
        name: name of a field; empty if it has none.
        file_name: name of a file; None for a field that is no file.
    """

    main_type: str
    boundary: str
    encoding: str
    disposition: str | None
    name: str
    file_name: str | None


def _read_header(text: str, place: str) -> _Header:
    """Returns what headers say.

    Nothing else here calls ``email``. For hostile parameters it raises TypeError, UnicodeError and others.

    Args:
        text: header lines without the empty line at the end.
        place: part of the request, for errors.

    Raises:
        RequestError: the headers can't be read.
    """
    if text.count(";") > _MAX_SEMICOLONS:
        raise RequestError(400, f"{place} has headers with more than {_MAX_SEMICOLONS} semicolons")
    try:
        message = message_from_string(text + "\r\n\r\n")
        file_name = message.get_filename()
        return _Header(
            main_type=message.get_content_maintype(),
            boundary=message.get_boundary(""),
            encoding=str(message.get("Content-Transfer-Encoding", "")).strip().lower(),
            disposition=message.get_content_disposition(),
            name=collapse_rfc2231_value(message.get_param("name", "", "Content-Disposition")),
            file_name=None if file_name is None else _whole_characters(file_name),
        )
    except Exception:
        raise RequestError(400, f"{place} has headers that can't be read; {RIGHT_CALLS}") from None


def _whole_characters(text: str) -> str:
    """Returns a text without surrogates, which some character sets can write. No answer can contain them."""
    return text.encode("utf-8", "replace").decode()
