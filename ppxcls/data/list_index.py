"""List files with lines ``path label``, in memory as numpy arrays."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from ppxcls.data.errors import DataError
from ppxcls.system.arrays import Array
from ppxcls.system.atomic_files import read_regular, reason_of
from ppxcls.system.line_shapes import line_shape

MAX_LIST_BYTES = (1 << 32) - 1
_BLOCK_BYTES = 1 << 20  # parsed per step; this limits the memory for parsing, in addition to the index
_NEWLINE, _CARRIAGE_RETURN, _TAB, _SPACE = b"\n\r\t "
_MAX_DIGITS = 9


def listed_path(path: str) -> str:
    """Returns a path as a list has it: with ``./`` before characters that a reader would strip."""
    return f"./{path}" if path[:1] in (" ", "\t", "\r", "\n", "\ufeff") else path


def list_line(path: str, label: int) -> str:
    """Returns the list line of a sample, for any path that a disk can hold; see ``listed_path``.

    A line break in a path is written as NUL, which no path can contain.
    """
    return f"{listed_path(path)} {label}".replace("\n", "\0")


class ListIndex:
    """A list file in memory: its bytes, and for each sample the position of its path and its label.

    Lines are ``path<delimiter>label``. The label follows the last delimiter, so a path may contain the
    delimiter. Blank lines, CRLF and a byte-order mark are skipped. ``list_line`` protects paths that would be
    changed by this.

    The 1.28 million lines of ImageNet take 0.2 s and 70 MB. The 14.2 million lines of ImageNet-21k take 2 to
    3 s and 650 MB.

    Args:
        file: list file.
        delimiter: text between path and label.

    Raises:
        DataError: the file is missing or empty, or a line has no path or no label. The message gives the file
            and the line.
    """

    def __init__(self, file: str | Path, delimiter: str = " ") -> None:
        self.file = Path(file)
        try:
            self._delimiter = delimiter.encode("utf-8", "surrogateescape")
            self._bytes = np.frombuffer(read_regular(self.file, MAX_LIST_BYTES), np.uint8)
        except FileNotFoundError:
            raise DataError(f"{file}: no such list file") from None
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: can't be read: {reason_of(error)}") from None
        self.starts, self.lengths, self.labels = self._parse_file()

    def _parse_file(self) -> tuple[Array, ...]:
        """Returns positions and lengths of the paths, and the labels. Raises DataError."""
        blocks = (self._bytes[i : i + _BLOCK_BYTES] for i in range(0, self._bytes.size, _BLOCK_BYTES))
        line_count = 1 + sum(np.count_nonzero(block == _NEWLINE) for block in blocks)
        arrays: tuple[Array, ...] = (
            np.empty(line_count, np.uint32),
            np.empty(line_count, np.uint16),
            np.empty(line_count, np.int32),
        )
        count = 0
        for start, stop in self._blocks():
            block_arrays = self._parse_block(start, stop)
            for array, part in zip(arrays, block_arrays, strict=True):
                array[count : count + part.size] = part
            count += block_arrays[0].size
        if not count:
            raise DataError(f"{self.file}: the list has no samples")
        return tuple(array[:count] for array in arrays)

    def __len__(self) -> int:
        return self.labels.size

    def digest(self) -> str:
        """Returns the SHA-256 of the list file."""
        return hashlib.sha256(self._bytes.data).hexdigest()

    def first_outside(self, root: Path) -> int | None:
        """Returns the index of a sample with a path outside a folder; None if there is none.

        Such a path contains ``..``, or is absolute and does not begin with the folder. Symbolic links may
        lead out of the folder, because somebody with access to the folder made them.
        """
        root_prefix = os.path.join(os.path.abspath(root), "")
        for absolute_index in np.flatnonzero(self._bytes[self.starts] == ord("/")).tolist():
            if not self.path(absolute_index).startswith(root_prefix):
                return int(absolute_index)
        # Search the bytes first, because few lists contain "..".
        for start in range(0, self._bytes.size, _BLOCK_BYTES):
            block = self._bytes[start : start + _BLOCK_BYTES + 1].tobytes()
            position = block.find(b"..")
            while position >= 0:
                index = int(np.searchsorted(self.starts, start + position, "right")) - 1
                if index >= 0 and ".." in self.path(index).split("/"):
                    return index
                position = block.find(b"..", position + 2)
        return None

    def path(self, index: int) -> str:
        """Returns the path of a sample in the list."""
        start = int(self.starts[index])
        encoded_path = self._bytes[start : start + int(self.lengths[index])].tobytes()
        return encoded_path.replace(b"\0", b"\n").decode("utf-8", "surrogateescape")

    def line(self, index: int) -> str:
        """Returns ``file:line`` of a sample."""
        return self._line_at(int(self.starts[index]))

    def _line_at(self, position: int) -> str:
        return f"{self.file}:{np.searchsorted(self._newlines, position) + 1}"

    @cached_property
    def _newlines(self) -> Array:
        """Positions of all line ends.

        They are computed for the first message that gives a line, because most runs need none.
        """
        return np.flatnonzero(self._bytes == _NEWLINE)

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """Yields start and stop of blocks of whole lines."""
        start = 3 if self._bytes[:3].tobytes() == b"\xef\xbb\xbf" else 0
        while start < self._bytes.size:
            stop = min(start + _BLOCK_BYTES, self._bytes.size)
            if stop < self._bytes.size:  # a block ends with a whole line; a longer line is an error
                newlines = np.flatnonzero(self._bytes[start:stop] == _NEWLINE)
                if not newlines.size:
                    raise DataError(f"{self._line_at(start)}: the line is longer than {_BLOCK_BYTES:,} bytes")
                stop = start + int(newlines[-1]) + 1
            yield start, stop
            start = stop

    def _parse_block(self, start: int, stop: int) -> tuple[Array, Array, Array]:
        """Returns starts and lengths of the paths, and the labels, for the lines between two positions."""
        data = self._bytes[start:stop]
        newlines = np.flatnonzero(data == _NEWLINE)
        if data[-1] != _NEWLINE:
            newlines = np.append(newlines, data.size)
        line_starts = np.concatenate(([0], newlines[:-1] + 1))
        line_starts, line_ends = _strip(data, line_starts, newlines)
        line_starts, line_ends = line_starts[line_ends > line_starts], line_ends[line_ends > line_starts]
        labels = np.zeros(line_ends.size, np.int64)
        digit_counts = np.zeros(line_ends.size, np.int64)
        is_label_digit = np.ones(line_ends.size, bool)
        for power in range(_MAX_DIGITS):
            position = line_ends - 1 - power
            digit = data[np.maximum(position, 0)].astype(np.int64) - ord("0")
            is_label_digit &= (position >= line_starts) & (digit >= 0) & (digit <= 9)
            if not is_label_digit.any():
                break
            labels += np.where(is_label_digit, digit * 10**power, 0)
            digit_counts += is_label_digit
        path_ends = line_ends - digit_counts - len(self._delimiter)
        is_invalid = (digit_counts == 0) | (path_ends <= line_starts)
        for offset, byte in enumerate(self._delimiter):
            is_invalid |= data[np.clip(path_ends + offset, 0, data.size - 1)] != byte
        if is_invalid.any():
            first = int(np.flatnonzero(is_invalid)[0])
            text = data[line_starts[first] : line_ends[first]].tobytes().decode("utf-8", "replace")
            delimiter = self._delimiter.decode("utf-8", "backslashreplace")
            line_format = f"path{delimiter}label, the label an integer of up to {_MAX_DIGITS} digits"
            raise DataError(
                f"{self._line_at(start + int(line_starts[first]))}: "
                f"expected {line_format!r}, received {line_shape(text)}"
            )
        lengths = path_ends - line_starts
        if (lengths > np.iinfo(np.uint16).max).any():
            first = int(np.argmax(lengths))
            raise DataError(
                f"{self._line_at(start + int(line_starts[first]))}: the path is longer than 65,535 bytes"
            )
        return (line_starts + start).astype(np.uint32), lengths.astype(np.uint16), labels.astype(np.int32)


def _strip(data: Array, line_starts: Array, line_ends: Array) -> tuple[Array, Array]:
    """Strips white space from both ends of every line.

    Lines of blanks become empty.
    """
    is_blank = np.zeros(256, bool)
    is_blank[[_CARRIAGE_RETURN, _TAB, _SPACE]] = True
    # Positions of the bytes that are not white space, and the end of the data.
    text_positions = np.append(np.flatnonzero(~is_blank[data]), data.size)
    first = text_positions[np.searchsorted(text_positions, line_starts)]
    last = text_positions[np.maximum(np.searchsorted(text_positions, line_ends) - 1, 0)]
    return np.minimum(first, line_ends), np.where(
        (last >= line_starts) & (last < line_ends), last + 1, np.minimum(first, line_ends)
    )
