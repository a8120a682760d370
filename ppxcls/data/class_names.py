"""Class names: files of ``id name`` lines, in any Unicode encoding that can be recognised."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from pathlib import Path

from ppxcls.data.errors import DataError
from ppxcls.system.paths import printable
from ppxcls.system.whole_files import read_regular, reason_of

CLASS_NAMES = "class_names.txt"  # beside the lists, and in a run's folder
IMAGENET_NAMES = Path(__file__).with_name("imagenet1k_classes.txt")
_MAX_BYTES = 1 << 26
_SHOWN_NAMES = 5
_MARKS = (  # the marks of UTF-32 begin with those of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
# Without a mark: which bytes of the first characters are zero, for text that begins with ASCII.
_ZEROS = ((b"\0\0\0.", "utf-32-be"), (b".\0\0\0", "utf-32-le"), (b"\0.", "utf-16-be"), (b".\0", "utf-16-le"))
_LINE = re.compile(r"(\d{1,9})[\t ,]+(\S.*)")


def read_class_names(file: str | Path, class_num: int | None) -> list[str]:
    """The names of the classes, in the order of their ids.

    Lines are ``id name``, with a blank, tab or comma between them. A file named ``labels.txt`` may have one
    name per line instead, as PaddleX writes it. Control characters are escaped.

    Args:
        file: the file.
        class_num: number of classes that it must have; None for any number.

    Raises:
        DataError: it can't be read, a line has another form, or the ids are not 0 to ``class_num`` - 1, each
            once.
    """
    file = Path(file)
    lines = [
        (number, line.strip()) for number, line in enumerate(_text(file).splitlines(), 1) if line.strip()
    ]
    names: dict[int, str] = {}
    is_plain = file.name == "labels.txt" and not all(_LINE.fullmatch(line) for _, line in lines)
    for number, line in lines:
        match = _LINE.fullmatch(f"{len(names)} {line}" if is_plain else line)
        if not match:
            raise DataError(f"{file}:{number}: expected 'id name', received {line[:80]!r}")
        if int(match[1]) in names:
            raise DataError(f"{file}:{number}: the id {int(match[1])} has two names")
        names[int(match[1])] = printable(match[2])
    if class_num is None:
        class_num = len(names)
    if len(names) != class_num:
        raise DataError(f"{file}: expected the names of {class_num:,} classes, received {len(names):,}")
    for expected, index in enumerate(sorted(names)):
        if index != expected:
            raise DataError(
                f"{file}: expected ids from 0 to {class_num - 1}, received {index} and no {expected}"
            )
    return [names[index] for index in range(class_num)]


def class_name_lines(names: Sequence[str]) -> str:
    """The content of a file that ``read_class_names`` reads.

    A name that it would change, such as one with a blank, is quoted.
    """
    return "".join(f"{index} {_as_read(printable(name))}\n" for index, name in enumerate(names))


def _as_read(name: str) -> str:
    match = _LINE.fullmatch(f"0 {name}".strip())
    return name if match and match[2] == name else repr(name)


def describe_classes(count: int, names: Sequence[str]) -> str:
    """Such as ``3 classes: ant, bee, cat``."""
    shown = ", ".join(names[:_SHOWN_NAMES]) + (", ..." if len(names) > _SHOWN_NAMES else "")
    return f"{count:,} classes" + (f": {shown}" if names else "")


def _text(file: Path) -> str:
    try:
        data = read_regular(file, _MAX_BYTES)
    except FileNotFoundError:
        raise DataError(f"{file}: no such file of class names") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: can't be read: {reason_of(error)}") from None
    encoding = _encoding(data)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{file}:{line}: not {encoding.upper()}: {error.reason} at byte {error.start}"
        ) from None


def _encoding(data: bytes) -> str:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return encoding
    for pattern, encoding in _ZEROS:
        head = data[: len(pattern)]
        if len(head) == len(pattern) and all(
            (byte == 0) == (wanted == 0) for byte, wanted in zip(head, pattern, strict=True)
        ):
            return encoding
    return "utf-8"
