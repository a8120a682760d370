"""Finds the files that an ONNX file of another exporter names for its constants.

ONNX Runtime reads such files. Before 1.24.3 it follows any path, so it could read the user's own files into a
network's weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ppxcls.deploy.program_check import ProgramError, short
from ppxcls.deploy.wire_format import FormatError, parts_of_message

_MAX_DEPTH = 32  # graphs within operators
_TENSOR_ENTRIES, _ENTRY_KEY, _ENTRY_VALUE = 13, 1, 2
# For each kind of message, the fields that lead to constants, with the kind of the message in them.
_PATHS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
}


def check_external_data(data: bytes, folder: Path) -> None:
    """Checks that the files of an ONNX file's constants lie in its folder.

    Args:
        data: ONNX file.
        folder: folder of the file.

    Raises:
        ProgramError: a file lies elsewhere, does not exist, or the ONNX file is damaged.
    """
    try:
        locations = sorted(set(_locations(memoryview(data), "model", 0)))
    except FormatError as error:
        raise ProgramError(f"not an ONNX model: {error}", is_foreign=False) from None
    for location in locations:
        if not _is_inside(location, folder):
            raise ProgramError(
                f"a constant lies in {short(location)}, expected a file in the folder of the ONNX file"
            )


def has_external_data(data: bytes) -> bool:
    """True if constants of an ONNX file lie in other files."""
    return next(_locations(memoryview(data), "model", 0), None) is not None


def _is_inside(location: str, folder: Path) -> bool:
    try:
        path = (folder / location).resolve(strict=True)
        is_plain = not Path(location).is_absolute() and ".." not in Path(location.replace("\\", "/")).parts
        return is_plain and path.is_file() and path.is_relative_to(folder.resolve(strict=True))
    except (OSError, ValueError, RuntimeError):
        return False


def _locations(data: memoryview, kind: str, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        raise FormatError("it is nested too deeply")
    for number, part in parts_of_message(data):
        if kind == "tensor":
            if number == _TENSOR_ENTRIES and (location := _location(part)) is not None:
                yield location
        elif number in _PATHS[kind]:
            yield from _locations(part, _PATHS[kind][number], depth + 1)


def _location(entry: memoryview) -> str | None:
    values: dict[int, Any] = {}
    for number, part in parts_of_message(entry):
        values[number] = bytes(part).decode(errors="replace")
    return values.get(_ENTRY_VALUE, "") if values.get(_ENTRY_KEY) == "location" else None
