"""Checks file names from outside for URLs, which nothing here downloads, and for control characters."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_JOINERS = {"\u200c", "\u200d"}  # zero-width joiners, which some scripts and emoji need
# Unicode's categories of control characters, surrogates and line separators
_UNSAFE_CATEGORIES = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def url_problem(path: object) -> str | None:
    """Returns an error message if a path is a URL, which must be downloaded first; None otherwise."""
    return f"expected a file, received a URL; download it first: {path}" if _URL.match(str(path)) else None


def is_address(text: str) -> bool:
    """True if a text is a URL, or on Windows the name of a folder of another host."""
    return "://" in text or (os.name == "nt" and text[:2] in ("//", "\\\\"))


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
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        _escape(c) if c not in _JOINERS and unicodedata.category(c) in _UNSAFE_CATEGORIES else c for c in text
    )


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode()
