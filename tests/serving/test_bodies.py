"""The forms of a request: what is accepted, what is refused in words, and bounds on hostile bodies."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import tracemalloc
import zlib
from email import message_from_string
from email.message import Message

import pytest

from ppxcls.serving import bodies
from ppxcls.serving.bodies import (
    BodyLimits,
    RequestError,
    Submission,
    advice,
    decompressed,
    is_plain,
    read_submission,
)

LIMITS = BodyLimits(size=1 << 20, images=4)
IMAGE = b"\xff\xd8\r\n--b\r\n\r\n--bb\x00" + bytes(range(256))
TEXT = base64.b64encode(IMAGE).decode()
FORM = "multipart/form-data; boundary=b0"


def form(*parts: tuple[str, bytes], boundary: str = "b0") -> bytes:
    """Returns a form of parts with these values of Content-Disposition after ``form-data; ``."""
    pieces = [
        f"--{boundary}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode() + content + b"\r\n"
        for disposition, content in parts
    ]
    return b"".join(pieces) + f"--{boundary}--\r\n".encode()


FILE = 'name="file"; filename="a.jpg"'


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        (IMAGE, "", Submission(["image 0"], [IMAGE])),
        (IMAGE, "image/jpeg", Submission(["image 0"], [IMAGE])),
        (IMAGE, "application/x-www-form-urlencoded", Submission(["image 0"], [IMAGE])),
        (f"data:image/jpeg;base64,{TEXT}".encode(), "text/plain", Submission(["image 0"], [IMAGE])),
        (json.dumps({"image": TEXT}).encode(), "application/json", Submission(["image 0"], [IMAGE])),
        (
            json.dumps({"image": TEXT, "topk": 2}).encode(),
            "application/x-www-form-urlencoded",
            Submission(["image 0"], [IMAGE], 2),
        ),
        (
            json.dumps({"image": f"data:image/png;base64,{TEXT}"}).encode(),
            "application/json; charset=utf-8",
            Submission(["image 0"], [IMAGE]),
        ),
        (
            json.dumps({"images": [TEXT.rstrip("="), TEXT.replace("+", "-").replace("/", "_") + " \r\n\t"]}).encode(),
            "application/json",
            Submission(["image 0", "image 1"], [IMAGE, IMAGE], is_list=True),
        ),
        (form((FILE, IMAGE)), FORM, Submission(["a.jpg"], [IMAGE])),
        (form((FILE, IMAGE)), 'Multipart/Form-Data; Boundary="b0"', Submission(["a.jpg"], [IMAGE])),
        (
            b"preamble\r\n" + form((FILE, IMAGE), ('name="f"; filename="Zwölf %22x%22.png"', b"\r\n"), ("name=topk", b"3")) + b"end",
            FORM,
            Submission(["a.jpg", 'Zwölf "x".png'], [IMAGE, b"\r\n"], 3, is_list=True),
        ),
        (form(('name="empty"; filename=""', b""), (FILE, IMAGE)), FORM, Submission(["a.jpg"], [IMAGE])),
    ],
)  # fmt: skip
def test_every_form_gives_the_same_bytes(body: bytes, content_type: str, expected: Submission) -> None:
    assert read_submission(body, content_type, LIMITS) == expected


def test_forms_of_a_client_library() -> None:
    httpx = pytest.importorskip("httpx")
    files = [("file", (f"{i}.png", IMAGE + bytes([i]), "image/png")) for i in range(3)]
    request = httpx.Request("POST", "http://x/", files=files, data={"topk": "7"})
    submission = read_submission(request.read(), request.headers["content-type"], LIMITS)
    assert submission.names == ["0.png", "1.png", "2.png"]
    assert submission.images == [IMAGE + bytes([i]) for i in range(3)]
    assert submission.topk == 7


@pytest.mark.parametrize(
    ("body", "content_type", "status", "message"),
    [
        (b"", "", 400, "expected an image file as the body of the request; send the file itself (curl --data"),
        (b"[1]", "application/json", 400, 'expected JSON such as {"image": "<base64>"}'),
        (b"{", "application/json", 400, "not valid JSON"),
        (b"{}", "application/json", 400, "one of the keys image and images"),
        (b'{"file": "x"}', "application/json", 400, "received the key 'file'"),
        (b'{"image": 3}', "application/json", 400, "image: expected a base64 text, received a JSON number"),
        (b'{"image": "a.jpg"}', "application/json", 400, "image: not valid base64"),
        (b'{"image": "https://example.org/a.jpg"}', "application/json", 400, "nothing is downloaded"),
        (b'{"image": "data:image/png,abc"}', "application/json", 400, "data URI with ;base64"),
        (b'{"images": []}', "application/json", 400, "at least one"),
        (b'{"images": ["AAAA", ""]}', "application/json", 400, "images[1]: the text is empty"),
        (b'{"image": "AAAA", "topk": 0}', "application/json", 400, "expected topk as a whole number"),
        (b'{"image": "AAAA", "topk": 1.5}', "application/json", 400, "received '1.5'"),
        (b'{"image": "AAAA", "topk": true}', "application/json", 400, "received 'true'"),
        (json.dumps({"images": ["AAAA"] * 5}).encode(), "application/json", 413, "at most 4 images"),
        (form((FILE, b"")), FORM, 400, "the file 'a.jpg' is empty"),
        (form(("name=file", IMAGE)), FORM, 400, "curl -F file=@image.jpg, with @"),
        (form((FILE, IMAGE), ("name=topk", b"many")), FORM, 400, "received 'many'"),
        (form((FILE, IMAGE))[:-6], FORM, 400, "the form is incomplete"),
        (form((FILE, IMAGE)), "multipart/form-data", 400, "no valid boundary"),
        (form((FILE, IMAGE)), "multipart/form-data; boundary=" + 71 * "b", 400, "no valid boundary"),
        (form((FILE, IMAGE)), "multipart/form-data; boundary=other", 400, "no part with the boundary"),
        (form((FILE, IMAGE)), "multipart/mixed; boundary=b0", 415, "expected multipart/form-data"),
        (form(), FORM, 400, "the form has no file"),
        (form((f"{FILE}\r\nContent-Type: multipart/mixed; boundary=b1", b"x")), FORM, 400, "is a form itself"),
        (form((f"{FILE}\r\nContent-Transfer-Encoding: base64", b"x")), FORM, 400, "received 'base64'"),
        (form((f"{FILE}; a=\"{';' * 99}\"", IMAGE)), FORM, 400, "part 0 of the form has headers with more than 100"),
        (form(*[(FILE, IMAGE)] * 5), FORM, 413, "at most 4 images"),
        (form(*[(FILE, bytes(300 << 10))] * 4), FORM, 413, "the images of the request have more than 1,048,576"),
        (bytes((1 << 20) + 1), "", 413, "the image has more than 1,048,576 bytes"),
        (json.dumps({"image": "A" * 1_400_000}).encode(), "application/json", 413, "more than 1,048,576 bytes"),
    ],
)  # fmt: skip
def test_what_is_refused_names_the_right_call(
    body: bytes, content_type: str, status: int, message: str
) -> None:
    with pytest.raises(RequestError) as caught:
        read_submission(body, content_type, LIMITS)
    assert caught.value.status == status
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "parameters",
    [
        "{}*=a; {}*0=b",
        "{}*0=a; {}*=b",
        "{}*=undefined''a",
        "{}*=idna''" + "%ff" * 9,
        "{}*=a%00b'en'x",
        "{}*=no-such-charset''a",
        "{}*=utf-8'",
        "{}*" + "9" * 5_000 + "=a",
        "{}*\u0661=a; {}*x=b; {}**=c",
        "{}=\0; {}*=\0''\0",
    ],
)
@pytest.mark.parametrize("name", ["filename", "name", "boundary"])
def test_hostile_parameters_are_an_error_of_the_request(name: str, parameters: str) -> None:
    """Some of them are read, as by other servers. No other error than RequestError may come."""
    text = parameters.replace("{}", name)
    with contextlib.suppress(RequestError):
        read_submission(form((text, IMAGE)), FORM, LIMITS)
    with contextlib.suppress(RequestError):
        read_submission(form((FILE, IMAGE)), f"multipart/form-data; {text}", LIMITS)


@pytest.mark.parametrize(
    ("hostile_word", "place"), [("boundary", "the request"), ("filename", "part 0 of the form")]
)
def test_parameters_that_can_t_be_read_are_named(
    hostile_word: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parameters for which ``email`` raises errors differ between versions of Python."""

    def read(text: str) -> Message:
        if hostile_word in text:
            raise TypeError("'<' not supported between instances of 'int' and 'NoneType'")
        return message_from_string(text)

    monkeypatch.setattr(bodies, "message_from_string", read)
    with pytest.raises(RequestError, match=f"^{place} has headers that can't be read; send the") as caught:
        read_submission(form((FILE, IMAGE)), FORM, LIMITS)
    assert caught.value.status == 400


@pytest.mark.parametrize("charset", ["unicode_escape", "raw_unicode_escape"])
def test_names_of_files_can_be_written(charset: str) -> None:
    """The answer contains them. A surrogate can't be written as UTF-8."""
    part = (f"name=file; filename*={charset}''a%5Cud800.jpg", IMAGE)
    assert read_submission(form(part), FORM, LIMITS).names == ["a?.jpg"]


def test_encoded_names() -> None:
    parts = (("name*=utf-8''file; filename*=utf-8''%C3%A9.jpg", IMAGE), ("name*=utf-8''topk", b"3"))
    assert read_submission(form(*parts), FORM, LIMITS) == Submission(["é.jpg"], [IMAGE], 3)


def test_packed_bodies() -> None:
    packed = gzip.compress(IMAGE)
    assert decompressed(packed, "gzip", 1000) == decompressed(packed, " X-GZIP", 1000) == IMAGE
    assert decompressed(gzip.compress(IMAGE[:9]) + gzip.compress(IMAGE[9:]), "gzip", 1000) == IMAGE
    assert decompressed(zlib.compress(IMAGE), "deflate", 1000) == IMAGE
    assert decompressed(IMAGE, "identity", 1000) is IMAGE
    for body, encoding, status in [
        (packed[:-4], "gzip", 400),
        (packed[:5], "gzip", 400),
        (b"", "gzip", 400),
        (IMAGE, "gzip", 400),
        (packed + b"tail", "gzip", 400),
        (packed, "br", 415),
        (packed, "gzip, gzip", 415),
    ]:
        with pytest.raises(RequestError) as caught:
            decompressed(body, encoding, 1000)
        assert caught.value.status == status


HOSTILE = {
    "endless headers": (b"--b0\r\n" + b"X: y\r\n" * 150_000, FORM),
    "one endless header": (b"--b0\r\nContent-Disposition: " + b"a" * (1 << 20), FORM),
    "huge counts": (b"--b0\r\n" * 170_000 + b"--b0--", FORM),
    "many empty parts": (form(*[(FILE, b"x")] * 10_000), FORM),
    "boundaries of dashes": (b"\r\n--" * 250_000, "multipart/form-data; boundary=--"),
    "lists": (b'{"images": [' + b"[]," * 330_000 + b"[]]}", "application/json"),
    "depth": (b'{"image": ' + b"[" * 1_000_000, "application/json"),
    "digits": (b'{"image": ' + b"9" * 1_000_000 + b"}", "application/json"),
    "blanks": (b'{"image": "' + b"AA " * 350_000 + b'!"}', "application/json"),
    "line ends": (b"data:image/png;base64," + b"AA\n" * 350_000 + b"!", ""),
    "parameters": (IMAGE, "multipart/form-data; " + "a=b; " * 10_000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bodies_take_no_more_than_their_size(name: str) -> None:
    body, content_type = HOSTILE[name]
    tracemalloc.start()
    with pytest.raises(RequestError):
        read_submission(body, content_type, LIMITS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize(
    "body",
    [
        gzip.compress(bytes(200 << 20), 9),
        gzip.compress(b"") * 40_000,
        gzip.compress(b"x") * 40_000,
    ],
    ids=["bomb", "empty members", "members"],
)
def test_packed_bodies_are_bounded(body: bytes) -> None:
    tracemalloc.start()
    with pytest.raises((OverflowError, RequestError)):
        decompressed(body, "gzip", 1 << 20)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_advice_about_a_raw_body_that_is_no_image() -> None:
    assert "curl -F file=@image.jpg" in advice(b"image=abc", "application/x-www-form-urlencoded")
    assert "--data-binary" in advice(b"\x89PNG\x1a\xff", "application/x-www-form-urlencoded")
    # A file with its line ends was sent with curl --data-binary, which names the same type.
    assert advice(b"\x89PNG\r\n\x1a\xff", "application/x-www-form-urlencoded") == ""
    assert "Content-Encoding: gzip" in advice(gzip.compress(b"x"), "")
    assert advice(b"\xff\xd8\xff\xe0", "image/jpeg") == ""


@pytest.mark.parametrize(
    ("body", "content_type", "is_file"),
    [
        (b"\xff\xd8\xff\n", "", True),
        (b"\xff\xd8\xff\n", "image/jpeg", True),
        (b"", "", False),
        (b" {", "", False),
        (b'{"image": ""}', "", False),
        (b"data:image/png;base64,", "", False),
        (b"\xff\xd8", "Multipart/Form-Data; boundary=a", False),
        (b"\xff\xd8", "application/json", False),
    ],
)
def test_bodies_that_are_files(body: bytes, content_type: str, is_file: bool) -> None:
    assert is_plain(body, content_type) is is_file
