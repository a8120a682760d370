"""Reads the pickles that Paddle and numpy write, without Python's unpickler.

A pickle is a program, and Python's unpickler runs it. Even if it may call numpy alone, a file can give numpy
a forged type with pointers as items. This module interprets only the opcodes that the writers use, and
refuses all others. It builds an array from a name in a table of plain types, a shape, and exactly the number
of bytes that these need.

Limits: ``MAX_OPCODES`` opcodes, as many values, and a nesting depth of ``_MAX_DEPTH``. A shared value counts
each time. So reading needs memory for the file, which the arrays share, and at most about 200 MB more.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from ppxcls.checkpoints.pickle_whitelist import (
    CALLS,
    GLOBALS,
    AllowedGlobal,
    PendingArray,
    PendingType,
    RefusedError,
    set_array,
    set_type,
)

MAX_OPCODES = 1_000_000  # a checkpoint of Xception71 and its optimizer has about 60,000
_MAX_DEPTH = 8
_COPY_ALLOWANCE_BYTES = 1 << 20  # part of the limits that is the same for a file of any size
_MAX_TEXT_LENGTH = 1 << 16  # limit of keys, in characters, and of names, in bytes


# Names that a message repeats. A file that is no pickle has other text there.
_PYTHON_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}(?:\.[A-Za-z_][A-Za-z0-9_]{0,39}){0,9}")
_MARK = object()


def read_arrays(data: bytes) -> Any:
    """Returns the value of a pickle.

    It consists of nested dictionaries, lists and tuples of arrays, numbers, text and bytes.

    Raises:
        RefusedError: the pickle contains something else, or is damaged. Nothing in it has been called.
    """
    value = Machine(data).run()
    return _finish_arrays(value, 4 * len(data) + _COPY_ALLOWANCE_BYTES)


class Machine:
    """Interprets the opcodes. Byte strings are views of the data, so they are not copied.

    Args:
        data: bytes of the pickle.
        position: position of its first byte.

    Attributes:
        position: position of the next byte.
    """

    max_integer_bytes = 8  # limit of the opcode LONG1

    def __init__(self, data: bytes | memoryview, position: int = 0) -> None:
        self._data = memoryview(data)
        self.position = position
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._copied_bytes = 0

    def spend(self, count: int) -> None:
        """Counts copied bytes, and refuses too many.

        A small file can request the same copy again and again.
        """
        self._copied_bytes += count
        if self._copied_bytes > 2 * len(self._data) + _COPY_ALLOWANCE_BYTES:
            raise RefusedError("it copies its bytes again and again")

    def run(self) -> Any:
        for _ in range(MAX_OPCODES):
            opcode = self.take(1)[0]
            if opcode == 0x2E:  # STOP
                if len(self._stack) != 1:
                    raise RefusedError("it ends with more or less than one value")
                return self.pop()
            action = self.actions().get(opcode)
            if action is None:
                raise RefusedError(f"it has the opcode {bytes([opcode])!r}, which weights do not need")
            action(self)
        raise RefusedError(f"it has more than {MAX_OPCODES:,} opcodes")

    def actions(self) -> dict[int, Callable[[Any], object]]:
        """Returns the method of each allowed opcode."""
        return ACTIONS

    def take(self, count: int) -> memoryview:
        if count > len(self._data) - self.position:
            raise RefusedError("it ends too early")
        self.position += count
        return self._data[self.position - count : self.position]

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def text(self, length: int) -> str:
        data = self.take(length)
        # Protocol 2 writes an array's bytes as text. One wider character would need up to 4 times the memory.
        if length > _MAX_TEXT_LENGTH and int(np.frombuffer(data, np.uint8).max()) > 0xC3:
            raise RefusedError("a long text has characters beyond 255")
        try:
            return str(data, "utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise RefusedError("a text is not UTF-8") from None

    def _line(self) -> str:
        end = self._data.obj.find(b"\n", self.position, self.position + _MAX_TEXT_LENGTH)  # type: ignore[attr-defined]
        if end < 0:
            raise RefusedError("a name has no end")
        return str(self.take(end + 1 - self.position)[:-1], "ascii", "replace")

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise RefusedError("it takes a value that is not there")
        return self._stack.pop()

    def top(self, kind: type) -> Any:
        if not self._stack or not isinstance(self._stack[-1], kind):
            raise RefusedError(f"it adds to something that is no {kind.__name__}")
        return self._stack[-1]

    def items_since_mark(self) -> list[Any]:
        for index in range(len(self._stack) - 1, -1, -1):
            if self._stack[index] is _MARK:
                items = self._stack[index + 1 :]
                del self._stack[index:]
                return items
        raise RefusedError("it takes values since a mark that is not there")

    def tuple_of(self, count: int) -> None:
        self.push(tuple(reversed([self.pop() for _ in range(count)])))

    def tuple_since_mark(self) -> None:
        self.push(tuple(self.items_since_mark()))

    def append(self) -> None:
        value = self.pop()
        self.top(list).append(value)

    def appends(self) -> None:
        values = self.items_since_mark()
        self.top(list).extend(values)

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_entry(key, value)

    def set_items(self) -> None:
        values = self.items_since_mark()
        if len(values) % 2:
            raise RefusedError("a dictionary has a key without a value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            self.set_entry(key, value)

    def set_entry(self, key: Any, value: Any) -> None:
        # The hash of a tuple includes all values that it shares, so a tuple as a key could take forever.
        if not isinstance(key, str | int) or (isinstance(key, str) and len(key) > _MAX_TEXT_LENGTH):
            raise RefusedError(f"a key of a dictionary is {type(key).__name__}")
        self.top(dict)[key] = value

    def put(self, index: int) -> None:
        if not self._stack or self._stack[-1] is _MARK:
            raise RefusedError("it remembers a value that is not there")
        self._memo[index] = self._stack[-1]

    def memoize(self) -> None:
        self.put(len(self._memo))

    def get(self, index: int) -> None:
        if index not in self._memo:
            raise RefusedError("it asks for a value that it has not remembered")
        self.push(self._memo[index])

    def long(self) -> None:
        length = self.take(1)[0]
        if length > self.max_integer_bytes:
            raise RefusedError(f"an integer has {length} bytes")
        self.push(int.from_bytes(self.take(length), "little", signed=True))

    def global_by_lines(self) -> None:
        self.push_global(self._line(), self._line())

    def global_from_stack(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise RefusedError("a name is no text")
        self.push_global(module, name)

    def push_global(self, module: str, name: str) -> None:
        global_name = GLOBALS.get((module, name))
        if global_name is None:
            is_pickle = bytes(self._data[:1]) == b"\x80"  # a text may begin with the opcode too
            is_name = is_pickle and _PYTHON_NAME.fullmatch(f"{module}.{name}") is not None
            asked_name = f"{module}.{name}" if is_name else "an unknown name"
            raise RefusedError(f"it asks for {asked_name}, and weights need arrays only")
        self.push(AllowedGlobal(global_name))

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if (
            not isinstance(function, AllowedGlobal)
            or not isinstance(arguments, tuple)
            or function.name not in CALLS
        ):
            raise RefusedError("it calls something that is no writer of arrays")
        self.push(CALLS[function.name](self.spend, arguments))

    def build(self) -> None:
        state = self.pop()
        target = self._stack[-1] if self._stack else None
        if isinstance(target, PendingType):
            set_type(target, state)
        elif isinstance(target, PendingArray):
            set_array(self.spend, target, state)
        else:
            raise RefusedError("it gives a state to something that is no array")

    def frame(self) -> None:
        if self.number("<Q") > len(self._data) - self.position:
            raise RefusedError("it ends too early")

    def protocol(self) -> None:
        if not 2 <= (number := self.take(1)[0]) <= 5:
            raise RefusedError(f"it is written by the protocol {number}")


ACTIONS: dict[int, Callable[[Machine], object]] = {
    0x80: Machine.protocol,
    0x95: Machine.frame,
    0x28: lambda m: m.push(_MARK),
    0x4E: lambda m: m.push(None),
    0x88: lambda m: m.push(True),  # noqa: FBT003  a value of the pickle
    0x89: lambda m: m.push(False),  # noqa: FBT003  a value of the pickle
    0x4A: lambda m: m.push(m.number("<i")),
    0x4B: lambda m: m.push(m.number("<B")),
    0x4D: lambda m: m.push(m.number("<H")),
    0x8A: Machine.long,
    0x47: lambda m: m.push(m.number(">d")),
    0x8C: lambda m: m.push(m.text(m.number("<B"))),
    0x58: lambda m: m.push(m.text(m.number("<I"))),
    0x8D: lambda m: m.push(m.text(m.number("<Q"))),
    0x43: lambda m: m.push(m.take(m.number("<B"))),
    0x42: lambda m: m.push(m.take(m.number("<I"))),
    0x8E: lambda m: m.push(m.take(m.number("<Q"))),
    0x96: lambda m: m.push(m.take(m.number("<Q"))),
    0x29: lambda m: m.push(()),
    0x85: lambda m: m.tuple_of(1),
    0x86: lambda m: m.tuple_of(2),
    0x87: lambda m: m.tuple_of(3),
    0x74: Machine.tuple_since_mark,
    0x5D: lambda m: m.push([]),
    0x61: Machine.append,
    0x65: Machine.appends,
    0x7D: lambda m: m.push({}),
    0x73: Machine.set_item,
    0x75: Machine.set_items,
    0x94: Machine.memoize,
    0x71: lambda m: m.put(m.number("<B")),
    0x72: lambda m: m.put(m.number("<I")),
    0x68: lambda m: m.get(m.number("<B")),
    0x6A: lambda m: m.get(m.number("<I")),
    0x63: Machine.global_by_lines,
    0x93: Machine.global_from_stack,
    0x52: Machine.reduce,
    0x62: Machine.build,
}


def _finish_arrays(value: Any, max_bytes: int) -> Any:
    """Returns the value with finished arrays instead of ``PendingArray`` objects.

    Shared values count each time, so that cycles and very large results end in an error.
    """
    count = size = 0
    strings: dict[int, bytes] = {}  # copies by id, so that a shared string is copied once

    def finish(part: Any, depth: int) -> Any:
        nonlocal count, size
        count += 1
        # The caller may copy each use.
        size += part.value.nbytes if isinstance(part, PendingArray) and part.value is not None else 0
        if size > max_bytes:
            raise RefusedError("it shares its arrays again and again")
        if count > MAX_OPCODES or depth > _MAX_DEPTH:
            raise RefusedError(
                f"it is nested more than {_MAX_DEPTH} deep, or shares values more than {MAX_OPCODES:,} times"
            )
        if isinstance(part, dict):
            return {key: finish(item, depth + 1) for key, item in part.items()}
        if isinstance(part, list):
            return [finish(item, depth + 1) for item in part]
        if isinstance(part, tuple):
            return tuple(finish(item, depth + 1) for item in part)
        if isinstance(part, PendingArray) and part.value is not None:
            return part.value
        if isinstance(part, memoryview):
            if id(part) not in strings:
                strings[id(part)] = bytes(part)
            return strings[id(part)]
        if part is None or isinstance(part, bool | int | float | str | np.generic):
            return part
        kind = type(part).__name__.strip("_").removeprefix("Pending").removeprefix("Allowed").lower()
        raise RefusedError(f"it holds {kind} without a value")

    return finish(value, 0)
