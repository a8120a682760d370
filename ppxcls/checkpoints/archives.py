"""Opens ZIP archives of weights, and reads their members up to a limit of real bytes.

An archive states the size of its directory and of each member. What follows may unpack to more. Neither the
directory nor a member may take much more memory than the file has bytes.
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from typing import BinaryIO

from ppxcls.checkpoints.pickle_whitelist import RefusedError

_MAX_DIRECTORY_BYTES = 1 << 22  # a network with 10,000 tensors has 1 MB
_MAX_RATIO = 8  # numbers of weights hardly shrink
_MIN_MAX_BYTES = 1 << 20  # smaller members may shrink to anything
_BLOCK_BYTES = 1 << 20
_END_SIGNATURE, _LOCATOR_SIGNATURE = b"PK\x05\x06", b"PK\x06\x07"
_END_BYTES, _END64_BYTES, _LOCATOR_BYTES = 22, 56, 20
_MAX_TAIL_BYTES = (1 << 16) + _END_BYTES + _END64_BYTES + _LOCATOR_BYTES  # with the longest comment


def open_archive(stream: BinaryIO) -> zipfile.ZipFile:
    """Opens an archive.

    Raises:
        RefusedError: the file is no archive, is damaged, or has a directory of too many bytes.
    """
    if _directory_bytes(stream) > _MAX_DIRECTORY_BYTES:
        raise RefusedError(f"its directory of members has more than {_MAX_DIRECTORY_BYTES:,} bytes")
    try:
        return zipfile.ZipFile(stream)
    except Exception as error:  # zipfile raises errors of many kinds for damaged archives
        raise RefusedError(f"it is a damaged archive ({type(error).__name__})") from None


def read_member(archive: zipfile.ZipFile, name: str, max_bytes: int) -> bytes:
    """Returns the bytes of a member.

    Args:
        archive: archive of ``open_archive``.
        name: name of the member.
        max_bytes: largest size of the member in bytes.

    Raises:
        RefusedError: the member is missing or damaged, states or has too many bytes, or is compressed by
            another method than deflate.
    """
    text = repr(name[:40])
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise RefusedError(f"the part {text} is missing") from None
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise RefusedError(f"its part {text} is compressed by an unknown method")
    limit = min(max_bytes, max(_MIN_MAX_BYTES, _MAX_RATIO * info.compress_size))
    if info.file_size > limit:
        raise RefusedError(
            f"its part {text} unpacks to {info.file_size:,} bytes; "
            f"at most {limit:,} are read for {info.compress_size:,} in the archive"
        )
    parts: list[bytes] = []
    size = 0
    try:
        with archive.open(info) as stream:
            while block := stream.read(_BLOCK_BYTES):
                size += len(block)
                parts.append(block)
                if size > info.file_size:
                    raise RefusedError(f"its part {text} has more bytes than it states")
    except RefusedError:
        raise
    except (Exception, zlib.error) as error:  # as in open_archive
        raise RefusedError(f"its part {text} is damaged ({type(error).__name__})") from None
    if size != info.file_size:
        raise RefusedError(f"its part {text} has {size:,} bytes, and states {info.file_size:,}")
    return b"".join(parts)


def _directory_bytes(stream: BinaryIO) -> int:
    """Returns the size of an archive's directory, as the records at its end state it."""
    size = stream.seek(0, os.SEEK_END)
    tail = _bytes_at(stream, max(0, size - _MAX_TAIL_BYTES), _MAX_TAIL_BYTES)
    end = len(tail) - _END_BYTES
    if not tail[max(end, 0) :].startswith(_END_SIGNATURE) or tail[-2:] != b"\0\0":
        end = tail.rfind(_END_SIGNATURE)  # a comment follows it
    if end < 0:
        return 0  # no archive, which opening it reports
    locator = tail[max(0, end - _LOCATOR_BYTES) : end]
    sizes = [int.from_bytes(tail[end + 12 : end + 16], "little")]
    if locator.startswith(_LOCATOR_SIGNATURE):  # an archive of more than 4 GiB has a second record
        place = int.from_bytes(locator[8:16], "little")
        before_locator = size - len(tail) + end - _LOCATOR_BYTES - _END64_BYTES
        records = [_bytes_at(stream, offset, _END64_BYTES) for offset in (place, before_locator)]
        sizes = [int.from_bytes(record[40:48], "little") for record in records]
    stream.seek(0)
    return max(sizes)


def _bytes_at(stream: BinaryIO, offset: int, size: int) -> bytes:
    if not 0 <= offset < 1 << 62:
        return b""
    stream.seek(offset)
    return stream.read(size)


def archive_of(data: bytes) -> zipfile.ZipFile:
    """Opens an archive in memory. Raises RefusedError as ``open_archive``."""
    return open_archive(io.BytesIO(data))
