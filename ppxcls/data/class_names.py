"""Class names: files with lines ``id name``, in any Unicode encoding that can be recognised."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ppxcls.data.errors import DataError
from ppxcls.data.text_files import read_unicode
from ppxcls.system.line_shapes import line_shape
from ppxcls.system.paths import printable

CLASS_NAMES_FILE = "class_names.txt"  # file name, in the folder of the lists and in a run's folder
PADDLEX_NAMES_FILE = "labels.txt"  # PaddleX's file beside its lists, with one name per line
IMAGENET_NAMES_FILE = Path(__file__).with_name("imagenet1k_classes.txt")
MAX_NAMES_BYTES = 1 << 26  # bytes of a file of class names
_MAX_SHOWN_NAMES = 5
_LINE = re.compile(r"(\d{1,9})[\t ,]+(\S.*)")


def read_class_names(file: str | Path, class_num: int | None) -> list[str]:
    """Reads the class names, in the order of their ids.

    Each line is ``id name``, separated by blanks, tabs or commas. In a file named ``class_names.txt``, each
    line is a name if no line has an id. In a file named ``labels.txt``, as PaddleX writes it, each line is a
    name if one of them has no id. If such a file is a link to another folder, each line needs an id. Control
    characters are escaped.

    Args:
        file: file of class names.
        class_num: number of classes that the file must have; None for any number.

    Raises:
        DataError: the file can't be read, a line is invalid, or the ids are not 0 to ``class_num`` - 1, each
            once.
    """
    file = Path(file)
    lines = [
        (number, line.strip())
        for number, line in enumerate(
            read_unicode(file, MAX_NAMES_BYTES, "file of class names").splitlines(), 1
        )
        if line.strip()
    ]
    names: dict[int, str] = {}
    have_ids = [bool(_LINE.fullmatch(line)) for _, line in lines]
    # A link may lead to a private text, which must not become names.
    has_plain_names = not _leads_out(file) and _may_have_plain_names(file, have_ids)
    for number, line in lines:
        match = _LINE.fullmatch(f"{len(names)} {line}" if has_plain_names else line)
        if not match:
            raise DataError(f"{file}:{number}: expected 'id name', received {line_shape(line)}")
        if int(match[1]) in names:
            raise DataError(f"{file}:{number}: the id of this line has a name already")
        names[int(match[1])] = printable(match[2])
    if class_num is None:
        class_num = len(names)
    if not names:
        raise DataError(f"{file}: expected class names, received none")
    if len(names) != class_num:
        raise DataError(f"{file}: expected the names of {class_num:,} classes, received {len(names):,}")
    for expected, index in enumerate(sorted(names)):
        if index != expected:
            raise DataError(f"{file}: expected each id from 0 to {class_num - 1}, received no {expected}")
    return [names[index] for index in range(class_num)]


def _may_have_plain_names(file: Path, have_ids: Sequence[bool]) -> bool:
    """True if each line of a file is a name, by the file's name and by the lines that begin with an id."""
    return (file.name == PADDLEX_NAMES_FILE and not all(have_ids)) or (
        file.name == CLASS_NAMES_FILE and not any(have_ids)
    )


def _leads_out(file: Path) -> bool:
    """True if a file is a link to a file in another folder."""
    return file.is_symlink() and Path(os.path.realpath(file)).parent != Path(os.path.realpath(file.parent))


def class_name_lines(names: Sequence[str]) -> str:
    """Returns the content of a file that ``read_class_names`` reads.

    A name that ``read_class_names`` would change is quoted, such as a name that begins with a blank.
    """
    return "".join(f"{index} {_quoted_name(printable(name))}\n" for index, name in enumerate(names))


def _quoted_name(name: str) -> str:
    match = _LINE.fullmatch(f"0 {name}".strip())
    return name if match and match[2] == name else repr(name)


def describe_classes(count: int, names: Sequence[str]) -> str:
    """Returns a summary such as ``3 classes: ant, bee, cat``."""
    excerpt = ", ".join(names[:_MAX_SHOWN_NAMES]) + (", ..." if len(names) > _MAX_SHOWN_NAMES else "")
    return f"{count:,} classes" + (f": {excerpt}" if names else "")
