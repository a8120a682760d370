"""Members of archives are read up to a limit of real bytes."""

from __future__ import annotations

import io
import struct
import zipfile

import pytest

from ppxcls.checkpoints.archives import archive_of, read_member
from ppxcls.checkpoints.pickle_whitelist import RefusedError


def archive(content: bytes, method: int = zipfile.ZIP_DEFLATED, comment: bytes = b"") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as file:
        file.writestr("a", content)
        file.comment = comment
    return stream.getvalue()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("comment", [b"", b"a comment", b"c" * 65_535])
def test_a_member_is_read(method: int, comment: bytes) -> None:
    content = bytes(range(256)) * 999
    assert read_member(archive_of(archive(content, method, comment)), "a", 1 << 20) == content


def test_a_member_that_shrinks_too_much_is_refused() -> None:
    with pytest.raises(RefusedError, match=r"its part 'a' unpacks to 16,777,216 bytes; at most 1,048,576"):
        read_member(archive_of(archive(bytes(1 << 24))), "a", 1 << 30)
    assert len(read_member(archive_of(archive(bytes(1 << 20))), "a", 1 << 30)) == 1 << 20


def test_a_member_with_more_bytes_than_it_states_is_refused() -> None:
    data = bytearray(archive(bytes(1 << 24)))
    for signature, position in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = data.find(signature) + position
        data[place : place + 4] = struct.pack("<I", 100)
    with pytest.raises(RefusedError, match="its part 'a'"):
        read_member(archive_of(bytes(data)), "a", 1 << 30)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_without_a_bound_are_refused(method: int) -> None:
    with pytest.raises(RefusedError, match="compressed by an unknown method"):
        read_member(archive_of(archive(b"abc", method)), "a", 1 << 30)


@pytest.mark.parametrize("form", ["short", "long"])
def test_a_directory_of_many_members_is_refused_before_it_is_read(form: str) -> None:
    data = bytearray(archive(b"abc"))
    end = data.rfind(b"PK\x05\x06")
    if form == "short":
        data[end + 12 : end + 16] = struct.pack("<I", 1 << 23)
    else:
        record = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, 1 << 40, 0)
        locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
        data[end:end] = record + locator
    with pytest.raises(RefusedError, match="its directory of members has more than 4,194,304 bytes"):
        archive_of(bytes(data))
