"""Pictures of names in scripts that matplotlib's own font does not have."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from ppxcls.system.logs import set_up_logging

pytest.importorskip("matplotlib")

from matplotlib import font_manager

from ppxcls.reports import curves, fonts
from ppxcls.reports.curves import draw_balance, has_missing_characters, plot_label
from ppxcls.reports.fonts import fonts_for, report_missing


def font_of(characters: str, file: Path, name: str) -> Path:
    """Writes a font that has a filled square in the place of each character."""
    builder = pytest.importorskip("fontTools.fontBuilder").FontBuilder(1000, isTTF=True)
    pen = pytest.importorskip("fontTools.pens.ttGlyphPen").TTGlyphPen(None)
    for move, point in (
        ("moveTo", (0, 0)),
        ("lineTo", (0, 900)),
        ("lineTo", (900, 900)),
        ("lineTo", (900, 0)),
    ):
        getattr(pen, move)(point)
    pen.closePath()
    glyph = pen.glyph()
    names = [".notdef", *(f"g{ord(c):x}" for c in characters)]
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): f"g{ord(c):x}" for c in characters})
    builder.setupGlyf(dict.fromkeys(names, glyph))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": name, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=900, usWeightClass=400)
    builder.setupPost()
    builder.save(str(file))
    return file


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The files that the system has as fonts, at first none; matplotlib has its own."""
    files: list[str] = []
    own_fonts = [e for e in font_manager.fontManager.ttflist if "/mpl-data/" in e.fname.replace("\\", "/")]
    assert own_fonts
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own_fonts)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: files)
    fonts._default_characters.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield files


def ink(picture: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_UNCHANGED)


def test_a_font_that_has_the_characters_is_used(
    installed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_logging()
    names, counts = ["猫", "狗", "cat"], np.array([3, 2, 1])
    without_font = draw_balance(counts, names)
    capsys.readouterr()
    installed.append(str(font_of("猫", tmp_path / "one.ttf", "First")))
    installed.append(str(font_of("狗", tmp_path / "two.ttf", "Second")))
    assert not has_missing_characters(names)
    picture = ink(draw_balance(counts, names))
    assert capsys.readouterr().out == ""
    assert picture.shape != ink(without_font).shape or not np.array_equal(picture, ink(without_font))
    with fonts_for(names) as missing_characters:
        import matplotlib as mpl

        assert not missing_characters
        assert set(mpl.rcParams["font.family"]) >= {"First", "Second"}
    assert "First" not in mpl.rcParams["font.family"]


def test_without_a_font_the_picture_has_ids_and_one_line_says_what_to_install(
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_up_logging()
    counts = np.array([3, 2, 1])
    picture = draw_balance(counts, ["猫", "dog", "ねこ"])
    (line,) = capsys.readouterr().out.splitlines()
    reason = "balance.png shows numbers in the place of names: no installed font has the characters こね猫"
    advice = "install a font, such as Noto Sans CJK (on Debian and Ubuntu: apt install fonts-noto-cjk)"
    assert line.endswith(f"WARNING: {reason}; {advice}, and run ppxcls report")
    assert np.array_equal(ink(picture), ink(draw_balance(counts, ["class 0", "dog", "class 2"])))


@pytest.mark.parametrize(
    ("name", "font"),
    [
        ("แมว", "Noto Sans Thai"),
        ("قط", "Noto Sans Arabic"),
        ("בתול", "Noto Sans Hebrew"),
        ("ᚠᚢ", "Noto Sans"),
        ("ಬೆಕ್ಕು", "Noto Sans Kannada"),
    ],
)
def test_another_script_has_another_font(name: str, font: str, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging()
    report_missing("balance.png", name)
    advice = f"install a font, such as {font} (on Debian and Ubuntu: apt install fonts-noto), and run"
    assert advice in capsys.readouterr().out


def test_names_of_two_scripts_need_two_fonts(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging()
    report_missing("balance.png", "แมว猫")
    text = capsys.readouterr().out
    assert "fonts-noto-cjk) and Noto Sans Thai (on Debian" in text


def test_an_svg_has_the_names_as_text() -> None:
    names = ["猫", "a <b> & c", "ねこ"]
    assert has_missing_characters(names)
    text = draw_balance(np.array([3, 2, 1]), names, "svg").decode()
    for name in ("猫", "a &lt;b&gt; &amp; c", "ねこ"):
        assert f">{name}</text>" in text
    assert text == draw_balance(np.array([3, 2, 1]), names, "svg").decode() or "<dc:date>" in text


def test_placeholder_fonts_are_none(installed: list[str], tmp_path: Path) -> None:
    installed.append(str(font_of("猫", tmp_path / "last.ttf", "Last Resort High-Efficiency")))
    assert has_missing_characters(["猫"])


def test_files_that_are_no_fonts(installed: list[str], tmp_path: Path) -> None:
    for name in ("damaged.ttf", "bitmap.otf"):
        (tmp_path / name).write_bytes(b"no font")
        installed.append(str(tmp_path / name))
    installed.append(str(tmp_path / "missing.ttf"))
    assert has_missing_characters(["猫"])


@pytest.mark.parametrize("name", ["кошка", "γάτα", "çağ", "cat", "été", "a\tb", "$x$", "e\u0301"])
def test_scripts_that_every_matplotlib_draws(name: str) -> None:
    assert not has_missing_characters([name])
    draw_balance(np.array([1]), [name])


def test_labels_are_shortened_by_their_width() -> None:
    assert plot_label("a" * 24) == "a" * 24
    assert plot_label("a" * 25) == "a" * 23 + "…"
    assert plot_label("猫" * 12) == "猫" * 12
    assert plot_label("猫" * 13) == "猫" * 11 + "…"
    assert plot_label("a$b") == r"a\$b"
    assert plot_label("") == ""


def test_many_classes_have_no_names() -> None:
    assert not has_missing_characters(["猫"] * 31)
    draw_balance(np.ones(31, int), ["猫"] * 31)
    assert curves._MAX_NAMED_CLASSES == 30
