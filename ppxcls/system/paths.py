"""Checks file names from outside for URLs, which only weights may have, and writes messages with names.

Names may contain control characters and be of any length.
"""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

MAX_MESSAGE_LENGTH = 500  # characters of a message, of which the rest is left out in the middle
MAX_NAME_LENGTH = 100  # characters of a class name in a line of the log
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
HUB_PREFIXES = ("hf-hub:", "hf_hub:")  # of words that stand for weights in a repository of the hub
_JOINERS = {"\u200c", "\u200d"}  # zero-width joiners, which some scripts and emoji need
# Unicode's categories of control characters, surrogates and line separators
_UNSAFE_CATEGORIES = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def url_problem(path: object) -> str | None:
    """Returns an error message if a path is a URL, which must be downloaded first; None otherwise."""
    return f"expected a file, received a URL; download it first: {path}" if _URL.match(str(path)) else None


def is_address(text: str) -> bool:
    """True if a text is a URL or names a repository of the hub, or on Windows a folder of another host."""
    is_of_other_host = os.name == "nt" and text[:2] in ("//", "\\\\")
    return "://" in text or text.startswith(HUB_PREFIXES) or is_of_other_host


def short_path(path: Path) -> Path:
    """Returns a path relative to the current folder if it is inside, otherwise unchanged."""
    try:
        return path.relative_to(Path.cwd())
    except (ValueError, OSError):
        return path


def printable(text: str) -> str:
    r"""Returns a text with escapes for characters that could move a terminal's cursor or forge a line.

    Such characters become ``\n``, ``\x1b``, ``\u202e``. Bytes of a file name that are not UTF-8, which Python
    stores as surrogates, become ``\xff``.
    """
    return text if text.isascii() and text.isprintable() else text.translate(_ESCAPES)


def bounded(text: str, max_length: int = MAX_MESSAGE_LENGTH) -> str:
    """Returns a text with its middle left out if it is longer than a limit.

    Args:
        text: any text.
        max_length: largest length of the result in characters, at least 100.
    """
    if len(text) <= max_length:
        return text
    mark = f"… ({len(text):,} characters left out) …"  # the longest that it can be
    head_length = (max_length - len(mark)) // 2
    tail_length = max_length - len(mark) - head_length
    left_out = len(text) - head_length - tail_length
    return f"{text[:head_length]}… ({left_out:,} characters left out) …{text[-tail_length:]}"


def one_line(text: str, max_length: int = MAX_MESSAGE_LENGTH) -> str:
    """Returns a message as one printable line of bounded length.

    Messages contain names and values from files, which may be long or contain control characters.

    Args:
        text: message.
        max_length: largest length of the result in characters, at least 100.
    """
    return bounded(printable(text), max_length)


class _Escapes(dict[int, str]):
    """Escapes of unsafe characters by code, for ``str.translate``. Other characters stay as they are."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if character not in _JOINERS and unicodedata.category(character) in _UNSAFE_CATEGORIES:
            self[code] = _escape(character)
        else:
            self[code] = character
        return self[code]


_ESCAPES = _Escapes()


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode()


def is_unicode(text: str) -> bool:
    """True if a text has no lone surrogates, which stand for bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
