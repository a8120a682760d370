"""Finds names of classes that look alike, such as ``Cat`` and ``cat``, which are two classes by mistake."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_SEPARATORS = re.compile(r"[\s_\-\u2010-\u2015]+")
# Cyrillic and Greek letters that look like Latin ones.
_LATIN_BY_LETTER = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u04bb\u03bf\u03bd\u0251\u0261",
    "aeopcyxijshovag",
)
_INVISIBLE_CATEGORIES = ("Cc", "Cf")


def similar_names(names: Sequence[str]) -> list[tuple[int, int]]:
    """Returns pairs of labels with names that look alike.

    Such names differ only in case, blanks, hyphens, underscores, invisible characters, width, or the form of
    their Unicode, or in letters of another script that look the same.

    Args:
        names: names of the classes, in the order of their labels.
    """
    first_labels: dict[str, int] = {}
    pairs = []
    for label, name in enumerate(names):
        first = first_labels.setdefault(_appearance(name), label)
        if first != label:
            pairs.append((first, label))
    return pairs


def similar_name_notes(names: Sequence[str]) -> list[str]:
    """Returns a line about each pair of names that look alike."""
    return [
        f"the names of the classes {first} and {label} look alike: "
        f"{names[first]!a} and {names[label]!a}; if they are one class, put their images in one folder"
        for first, label in similar_names(names)
    ]


def _appearance(name: str) -> str:
    """Returns a text that is equal for names that look alike."""
    text = unicodedata.normalize("NFKC", name).casefold()
    text = "".join(
        letter
        for letter in text
        if letter.isspace() or unicodedata.category(letter) not in _INVISIBLE_CATEGORIES
    )
    return unicodedata.normalize("NFKC", _SEPARATORS.sub(" ", text).strip().translate(_LATIN_BY_LETTER))
