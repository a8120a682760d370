"""Messages are one printable line of bounded length, whatever the names in them are."""

from __future__ import annotations

import importlib
import inspect
import logging
import pickle
import re
import unicodedata
from pathlib import Path

import pytest

import ppxcls
from ppxcls.system.devices import DeviceError
from ppxcls.system.environment import PaddleError
from ppxcls.system.errors import UserError
from ppxcls.system.logs import logger
from ppxcls.system.paths import MAX_MESSAGE_LENGTH, bounded, one_line, printable
from ppxcls.system.spelling import nearest_spelling
from tests.conftest import ROOT


def user_errors() -> list[type[BaseException]]:
    """Returns all exception classes of the package that are no private ones."""
    classes = set()
    for file in sorted((ROOT / "ppxcls").rglob("*.py")):
        if not re.search(r"class \w+\(.*(Error|Exception)\)", file.read_text()):
            continue
        if file.name in ("__main__.py", "device_facts.py"):
            continue
        module = importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
        classes |= {
            value
            for name, value in vars(module).items()
            if inspect.isclass(value) and issubclass(value, BaseException) and not name.startswith("_")
        }
    return sorted((c for c in classes if c.__module__.startswith("ppxcls")), key=lambda c: c.__name__)


def test_a_long_text_keeps_its_ends() -> None:
    text = "config.yaml:3: " + "a" * 100_000 + ": no such file"
    short_text = bounded(text)
    assert short_text.startswith("config.yaml:3: aaa")
    assert short_text.endswith("aaa: no such file")
    left_out = len(text) - (len(short_text) - len("… (99,999 characters left out) …"))
    assert f"… ({left_out:,} characters left out) …" in short_text
    assert len(short_text) <= MAX_MESSAGE_LENGTH == 500


@pytest.mark.parametrize("length", [0, 1, 499, 500, 501, 999, 1000, 1001, 10_000, 10_000_000])
def test_lengths(length: int) -> None:
    text = "é" * length
    assert (bounded(text) == text) == (length <= 500)
    assert len(bounded(text)) <= 500
    assert bounded(bounded(text)) == bounded(text)


def test_escapes_are_those_of_each_character() -> None:
    """A table gives the same result as one character after another, for all characters of Unicode."""
    text = "".join(map(chr, range(0x110000)))
    unsafe = {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - {
        "\u200c",
        "\u200d",
    }
    result = printable(text)
    assert not unsafe & set(result)
    assert printable("a\nb\x1b\udcff\u202e\ud800é") == r"a\nb\x1b\xff\u202e\ud800é"
    assert printable("".join(c for c in text if c not in unsafe)) == "".join(
        c for c in text if c not in unsafe
    )


def test_an_escaped_text_is_bounded_too() -> None:
    assert len(one_line("\x1b" * 499)) <= 500
    assert one_line("\n" * 3) == r"\n\n\n"


def test_every_public_error_has_a_bounded_message() -> None:
    classes = user_errors()
    names = {c.__name__ for c in classes}
    assert {"ConfigError", "DataError", "CheckpointError", "RunFolderError", "TrainingError"} <= names
    assert {"JobError", "Preempted", "PaddleError", "DeviceError", "RequestError"} <= names
    for kind in classes:
        # Errors about files are the system's. A busy server has its own message. A broken transfer is tried
        # again, or becomes another error.
        is_internal = kind.__name__ in ("BusyError", "BrokenTransferError")
        assert issubclass(kind, UserError | OSError) or is_internal, kind


@pytest.mark.parametrize("kind", [ppxcls.ConfigError, ppxcls.DataError, DeviceError, PaddleError])
def test_an_error_of_a_notebook_is_one_short_line(kind: type[UserError]) -> None:
    error = kind("\x1b[2J" + "a" * 100_000)
    assert len(str(error)) <= 500
    assert str(error).startswith(r"\x1b[2Jaaa")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_preempted_run_keeps_its_advice() -> None:
    error = ppxcls.Preempted("f" * 10_000, "continue it with -o Global.checkpoints=auto")
    assert str(error).endswith("; continue it with -o Global.checkpoints=auto")
    assert len(str(error)) <= 500


def test_records_are_short_before_any_handler(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    records: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record.getMessage())

    handler = Handler()
    logger.addHandler(handler)
    try:
        logger.warning("%s: %s\x07", "a" * 100_000, "b")
        logger.info("c" * 100_000)
    finally:
        logger.removeHandler(handler)
    assert len(records[0]) <= 500
    assert records[0].endswith(r": b\x07")
    assert all(len(record) <= 2000 for record in records)


def test_nearest_spelling() -> None:
    assert nearest_spelling("epoch", ["epochs", "device"]) == "epochs"
    assert nearest_spelling("EPOCH", ["Epochs"]) == "Epochs"
    assert nearest_spelling("zzz", ["epochs"]) is None
    assert nearest_spelling("epoch", []) is None


def test_long_words_are_not_compared() -> None:
    """The comparison of two long texts can take hours."""
    word = "".join(chr(0x4E00 + i * 7919 % 20_000) for i in range(100_000))
    assert nearest_spelling(word, [word + "a"] * 1000) is None
    assert nearest_spelling("a", [word] * 1000) is None
    with pytest.raises(ppxcls.ConfigError, match="allowed: Arch, Global, AMP") as error:
        ppxcls.load_config({word: {}})
    assert len(str(error.value)) <= 500


def test_a_long_name_of_a_config(tmp_path: Path) -> None:
    with pytest.raises(ppxcls.ConfigError, match="characters left out"):
        ppxcls.load_config("a" * 100_000)
