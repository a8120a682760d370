"""Reads texts in any Unicode encoding that can be recognised."""

from __future__ import annotations

import codecs
from pathlib import Path

from ppxcls.data.errors import DataError
from ppxcls.system.atomic_files import read_regular, reason_of
from ppxcls.system.file_kinds import other_kind

_BYTE_ORDER_MARKS = (  # UTF-32 comes first, because its mark can begin with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
# Encodings of files without a mark, if the text begins with ASCII. They are recognised by the zero bytes of
# the first characters. A dot is any other byte.
_ZERO_PATTERNS = (
    (b"\0\0\0.", "utf-32-be"),
    (b".\0\0\0", "utf-32-le"),
    (b"\0.", "utf-16-be"),
    (b".\0", "utf-16-le"),
)


def read_unicode(file: Path, max_bytes: int, kind: str) -> str:
    """Reads a text in UTF-8, UTF-16 or UTF-32. The byte-order mark is left out.

    Args:
        file: file to read.
        max_bytes: largest size in bytes.
        kind: what the file is, for a message that it is missing.

    Raises:
        DataError: the file can't be read, or it is not in the encoding that it seems to have. The message
            contains no text of the file.
    """
    try:
        data = read_regular(file, max_bytes)
    except FileNotFoundError:
        raise DataError(f"{file}: no such {kind}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: can't be read: {reason_of(error)}") from None
    encoding = _encoding(data)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        kind_of_data = other_kind(data)
        if kind_of_data and not kind_of_data.startswith("a text"):
            raise DataError(f"{file}: expected a text, received {kind_of_data}") from None
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{file}:{line}: not {encoding.upper()}: {error.reason} at byte {error.start}"
        ) from None


def _encoding(data: bytes) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return encoding
    for pattern, encoding in _ZERO_PATTERNS:
        head = data[: len(pattern)]
        if len(head) == len(pattern) and all(
            (byte == 0) == (expected == 0) for byte, expected in zip(head, pattern, strict=True)
        ):
            return encoding
    return "utf-8"
