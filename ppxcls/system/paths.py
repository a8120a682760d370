"""Names of files from outside: URLs, which nothing here fetches, and names that a terminal must not see raw."""

from __future__ import annotations

import re
import unicodedata

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_KEPT = {"\u200c", "\u200d"}  # joiners, which some scripts and emoji need
_UNSAFE = {
    "Cc",
    "Cf",
    "Cs",
    "Zl",
    "Zp",
}  # Unicode's categories of control characters, surrogates and line separators


def url_problem(path: object) -> str | None:
    """Why a path can't be a file: it is a URL, which must be downloaded first. None if it is none."""
    return f"expected a file, received a URL; download it first: {path}" if _URL.match(str(path)) else None


def printable(text: str) -> str:
    r"""A text without what could move a terminal's cursor or forge a line: such characters become ``\n``, ``\x1b``, ``\u202e``.

    Bytes of a file name that are no UTF-8, which Python holds as surrogates, become ``\xff``.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(c) if c not in _KEPT and unicodedata.category(c) in _UNSAFE else c for c in text)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode()
