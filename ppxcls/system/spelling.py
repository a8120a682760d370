"""Finds the word that somebody probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

# The time of a comparison is quadratic in the lengths, and words may come from a stranger's file.
_MAX_WORD_LENGTH = 100
_MAX_WORDS = 25_000  # the classes of ImageNet-21k, and some more


def nearest_spelling(word: str, words: Sequence[str]) -> str | None:
    """Returns the word with the nearest spelling, in any case of letters; None if none is near.

    Args:
        word: word to look for. A long one has no near spelling.
        words: words to choose from. Long ones are left out, and all after the first 25,000.
    """
    if len(word) > _MAX_WORD_LENGTH:
        return None
    words = [text for text in words[:_MAX_WORDS] if len(text) <= _MAX_WORD_LENGTH]
    matches = difflib.get_close_matches(word.lower(), [text.lower() for text in words], n=1)
    return next((text for text in words if matches and text.lower() == matches[0]), None)
