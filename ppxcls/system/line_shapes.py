"""Describes a line of a file without its content.

A config or a list from somebody else may name any file that the user can read. So no message contains a line
of a file that has not the expected form.
"""

from __future__ import annotations

_SEPARATORS = {"\t": "a tab", ",": "a comma", ";": "a semicolon"}


def line_shape(line: str) -> str:
    """Returns a description such as ``2 words, the first no number, the last a number (length 11)``.

    Args:
        line: line of a file.
    """
    words = line.split()
    if not words:
        return "no word"
    if len(words) == 1:
        count_text = "1 word"
        number_text = _number_text(words[0])
    else:
        count_text = f"{len(words):,} words"
        number_text = f"the first {_number_text(words[0])}, the last {_number_text(words[-1])}"
    separators = "".join(f", with {name}" for mark, name in _SEPARATORS.items() if mark in line.strip())
    return f"{count_text}, {number_text}{separators} (length {len(line):,})"


def _number_text(word: str) -> str:
    return "a number" if word.isascii() and word.isdecimal() else "no number"
