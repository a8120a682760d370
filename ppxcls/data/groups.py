"""Groups of images that belong together, such as those of one patient or of one video.

Images of one group resemble each other. A group must not train and judge, because the figure would be too
high.
"""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ppxcls.data.errors import DataError
from ppxcls.data.list_index import listed_path
from ppxcls.data.tables import MAX_TABLE_BYTES, excerpt_of, table_of_text
from ppxcls.system.atomic_files import read_regular, reason_of

GROUPS_FILE = "groups.csv"  # file name, in the folder of the lists
GROUP_COLUMNS = ("image", "group")


def group_pattern(text: str) -> re.Pattern[str]:
    """Returns a regular expression whose group in parentheses is the name of an image's group.

    Args:
        text: regular expression with one group, which is searched in the path of an image.

    Raises:
        DataError: it is invalid, or it has no group or several.
    """
    try:
        pattern = re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise DataError(f"{text!r} is no regular expression: {error}") from None
    if pattern.groups != 1:
        raise DataError(
            "expected a regular expression with one pair of parentheses around the name of the group, "
            f"such as 'patient_([0-9]+)', received {text!r}"
        )
    return pattern


def groups_by_pattern(paths: Iterable[str], pattern: re.Pattern[str]) -> dict[str, str]:
    """Returns the group of each path.

    Args:
        paths: paths of images, as they are in the lists.
        pattern: result of ``group_pattern``.

    Raises:
        DataError: the pattern finds no group in some of the paths.
    """
    groups: dict[str, str] = {}
    unmatched_paths = []
    for path in paths:
        match = pattern.search(path)
        if match and match[1]:
            groups[path] = match[1]
        else:
            unmatched_paths.append(path)
    if unmatched_paths:
        total = len(unmatched_paths) + len(groups)
        raise DataError(
            f"{pattern.pattern!r} finds no group in {len(unmatched_paths):,} of {total:,} paths: "
            f"{excerpt_of(unmatched_paths)}"
        )
    return groups


def groups_text(paths: Iterable[str], groups: Mapping[str, str]) -> str:
    """Returns the content of ``groups.csv`` for these paths, which are written as in a list."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(GROUP_COLUMNS)
    writer.writerows((listed_path(path), groups[path]) for path in paths)
    return text.getvalue()


def read_groups(file: Path) -> dict[str, str] | None:
    """Returns the group of each path in a file such as ``groups.csv``; None if there is no such file.

    Raises:
        DataError: the file can't be read, or a row is invalid. The message contains no text of the file.
    """
    try:
        data = read_regular(file, MAX_TABLE_BYTES)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: can't be read: {reason_of(error)}") from None
    table = table_of_text(file, data.decode("utf-8", "surrogateescape").removeprefix("\ufeff"))
    if tuple(table.columns) != GROUP_COLUMNS:
        raise DataError(f"{file}:1: expected the columns {','.join(GROUP_COLUMNS)}")
    groups: dict[str, str] = {}
    for line, (path, group) in table.rows:
        if not path or not group:
            raise DataError(f"{file}:{line}: expected an image and its group, received an empty cell")
        if groups.setdefault(path, group) != group:
            raise DataError(f"{file}:{line}: the image of this line has another group already")
    return groups


def shared_groups(pairs_by_part: Mapping[str, Iterable[tuple[str, str]]]) -> list[str]:
    """Returns a line about each group with images in several parts.

    Args:
        pairs_by_part: path and group of the images of each part, by the name of the part.
    """
    places_by_group: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for part, pairs in pairs_by_part.items():
        for path, group in pairs:
            places_by_group[group][part].append(path)
    return [
        f"{group}: {', '.join(_count_text(part, paths) for part, paths in places.items())}"
        for group, places in sorted(places_by_group.items())
        if len(places) > 1
    ]


def _count_text(part: str, paths: Sequence[str]) -> str:
    return f"{len(paths):,} in {part} ({paths[0]}{', ...' if len(paths) > 1 else ''})"


def check_groups_apart(paths_by_part: Mapping[str, Iterable[str]], groups: Mapping[str, str]) -> None:
    """Checks that the parts of a data set share no group.

    Args:
        paths_by_part: paths of the images of each part, by the name of the part.
        groups: group by path.

    Raises:
        DataError: some groups have images in several parts.
    """
    lines = shared_groups(
        {part: [(path, groups[path]) for path in paths] for part, paths in paths_by_part.items()}
    )
    if lines:
        raise DataError(
            f"{len(lines):,} groups have images in several parts of the data set: {excerpt_of(lines)}"
        )
