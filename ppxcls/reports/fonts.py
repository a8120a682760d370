"""Finds fonts for the texts of a picture.

matplotlib's own font has no Chinese, Japanese or Korean characters. It would draw boxes, and warn about each.
"""

from __future__ import annotations

import contextlib
import functools
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ppxcls.system.logs import logger
from ppxcls.system.packages import matplotlib_module

_MAX_SHOWN_CHARACTERS = 20  # characters in a message
# Fonts to install, by the beginning of the Unicode names of the characters that they have.
_CJK_NAMES = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC", "FULLWIDTH")
_CJK_FONT = "Noto Sans CJK (on Debian and Ubuntu: apt install fonts-noto-cjk)"
# Scripts with a font of their own, by the first word of the Unicode names. Noto Sans has none of them.
_SCRIPTS = frozenset(
    (
        *("ARABIC", "ARMENIAN", "BENGALI", "CHEROKEE", "ETHIOPIC", "GEORGIAN", "GUJARATI", "GURMUKHI"),
        *("HEBREW", "JAVANESE", "KANNADA", "KHMER", "LAO", "MALAYALAM", "MONGOLIAN", "MYANMAR", "ORIYA"),
        *("SINHALA", "SYRIAC", "TAMIL", "TELUGU", "THAANA", "THAI", "TIBETAN"),
    )
)
_OTHER_PACKAGE = "(on Debian and Ubuntu: apt install fonts-noto)"
# One of these names is better than another font with the same characters, such as a handwriting.
_GOOD_NAMES = (
    "noto sans",
    "source han sans",
    "droid sans",
    "wenquanyi",
    "microsoft yahei",
    "pingfang",
    "gothic",
)


@contextlib.contextmanager
def fonts_for(texts: Iterable[str]) -> Iterator[frozenset[str]]:
    """Makes matplotlib draw texts with fonts that have their characters, inside this context.

    Args:
        texts: texts of the picture.

    Yields:
        The characters that no installed font has. The picture must not contain them.
    """
    mpl = matplotlib_module()
    characters = frozenset(c for text in texts for c in text if not _is_invisible(c))
    families, missing_characters = _fallback_families(characters - _default_characters())
    with mpl.rc_context({"font.family": [*mpl.rcParams["font.family"], *families]}):
        yield missing_characters


def report_missing(file_name: str, characters: Iterable[str]) -> None:
    """Logs one line about characters that no font has, with a font to install; nothing if there are none."""
    if not characters:
        return
    excerpt = "".join(sorted(characters)[:_MAX_SHOWN_CHARACTERS])
    fonts = " and ".join(sorted({_font_for(character) for character in characters}))
    logger.warning(
        f"{file_name} shows numbers in the place of names: no installed font has the characters {excerpt}; "
        f"install a font, such as {fonts}, and run ppxcls report"
    )


def _font_for(character: str) -> str:
    """Returns the name of a font that has a character, and the command that installs it."""
    name = unicodedata.name(character, "")
    if name.startswith(_CJK_NAMES):
        return _CJK_FONT
    script = name.partition(" ")[0]
    font = f"Noto Sans {script.title()}" if script in _SCRIPTS else "Noto Sans"
    return f"{font} {_OTHER_PACKAGE}"


def _is_invisible(character: str) -> bool:
    return character.isspace() or not character.isprintable() or unicodedata.category(character) == "Mn"


@functools.cache
def _default_characters() -> frozenset[str]:
    from matplotlib import font_manager

    return _characters_of(font_manager.findfont(font_manager.FontProperties()))


@functools.cache
def _characters_of(file: str) -> frozenset[str]:
    """Returns the characters of a font; none if it can't be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(map(chr, FT2Font(file).get_charmap()))
    except (OSError, RuntimeError, ValueError):
        return frozenset()


def _fallback_families(characters: frozenset[str]) -> tuple[list[str], frozenset[str]]:
    """Returns names of fonts that have characters together, and the characters that none has."""
    families: list[str] = []
    if not characters:
        return families, characters
    fonts = {entry.fname: entry.name for entry in _installed_fonts() if not _is_placeholder(entry.name)}
    while characters and fonts:
        file = max(fonts, key=lambda file: (len(characters & _characters_of(file)), _is_good(fonts[file])))
        covered_characters = characters & _characters_of(file)
        if not covered_characters:
            break
        families.append(fonts.pop(file))
        characters -= covered_characters
    return families, characters


def _is_placeholder(name: str) -> bool:
    """True for a font that has a box, or nothing, in the place of each character."""
    return name.lower().startswith(("last resort", "lastresort", "adobe blank", "unicode bmp fallback"))


def _is_good(name: str) -> bool:
    return name.lower().startswith(_GOOD_NAMES)


def _installed_fonts() -> list[Any]:
    """Returns upright fonts, also those that were installed after matplotlib made its list."""
    from matplotlib import font_manager

    manager = font_manager.fontManager
    known_files = {Path(entry.fname) for entry in manager.ttflist}
    for file in sorted(set(map(Path, font_manager.findSystemFonts())) - known_files):
        with contextlib.suppress(Exception), warnings.catch_warnings():  # bitmap fonts, and damaged ones
            warnings.simplefilter("ignore")
            manager.addfont(str(file))
    upright = [entry for entry in manager.ttflist if entry.style == "normal" and Path(entry.fname).is_file()]
    return sorted(upright, key=lambda entry: (entry.weight != 400, entry.fname))
