"""The pickle reader against Python's own, and against files that attack a reader."""

from __future__ import annotations

import collections
import os
import pickle
import pickletools
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

import ppxcls
from ppxcls.checkpoints.pickle_reader import MAX_OPCODES, read_arrays
from ppxcls.checkpoints.pickle_whitelist import RefusedError
from tests.conftest import ROOT

RNG = np.random.default_rng(0)


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def named(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


DTYPE = named("numpy", "dtype") + text("f4") + b"\x89\x88\x87R"
STATE = b"(" + number(3) + text("<") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
EMPTY = (
    named("numpy._core.multiarray", "_reconstruct")
    + named("numpy", "ndarray")
    + number(0)
    + b"\x85"
    + b"C\x01b"
    + b"\x87R"
)


def array(
    shape: bytes = number(2) + b"\x85", data: bytes = b"C\x08" + bytes(8), dtype: bytes = DTYPE + STATE
) -> bytes:
    return EMPTY + b"(" + number(1) + shape + dtype + b"\x89" + data + b"tb"


def pickled(body: bytes) -> bytes:
    return b"\x80\x04" + body + b"."


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray | np.generic):
        return (
            a.dtype.newbyteorder("=") == b.dtype.newbyteorder("=")
            and np.shape(a) == np.shape(b)
            and np.array_equal(a, b)
        )
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_numpy_and_python_write(protocol: int) -> None:
    arrays = [
        RNG.integers(0, 2, (3, 4)).astype(kind)
        for kind in ("?", "i1", "u1", "i2", "u2", "i4", "i8", "f2", "f4", "f8")
    ]
    arrays += [
        np.asfortranarray(RNG.normal(size=(3, 5))),
        np.float32(1.5).reshape(()),
        np.zeros((0, 4)),
        np.arange(6, dtype=">i4"),
    ]
    arrays += [RNG.normal(size=(7, 9))[::2, 1:], np.arange(5)[::-1]]
    value = {
        "arrays": arrays,
        "scalars": (np.float32(0.5), np.int64(-3), np.bool_(True)),
        "plain": [
            None,
            True,
            False,
            0,
            255,
            65_535,
            -5,
            2**40,
            -(2**62),
            1.5,
            "é\udc00",
            "",
            b"\x00\xff" * 200,
            (),
            (1,),
            [[], {}],
        ],
        "shared": [arrays[0], arrays[0]],
        3: {"a": {"b": 1}},
        "long": "x" * 300,
    }
    data = pickle.dumps(value, protocol)
    assert same(read_arrays(data), pickle.loads(data))


def test_ordered_dictionaries_and_many_arrays() -> None:
    value = collections.OrderedDict(
        (f"layer_{i}.weight", RNG.normal(size=(3, 3)).astype(np.float32)) for i in range(3000)
    )
    assert same(read_arrays(pickle.dumps(value, 4)), dict(value))


@pytest.mark.every_paddle
def test_what_paddle_writes(tmp_path: Path) -> None:
    model = ppxcls.build_model("Xception41", class_num=3)
    optimizer = paddle.optimizer.AdamW(
        parameters=model.parameters(), learning_rate=paddle.optimizer.lr.StepDecay(0.1, 2)
    )
    model(paddle.randn([1, 3, 71, 71])).sum().backward()
    optimizer.step()
    states = {
        "w": model.state_dict(),
        "o": optimizer.state_dict(),
        "s": {"epoch": 3, "metric": {"top1": np.float32(0.5)}},
    }
    for name, state in states.items():
        paddle.save(state, str(tmp_path / name))
        data = (tmp_path / name).read_bytes()
        assert same(read_arrays(data), pickle.loads(data))
        assert sum(1 for _ in pickletools.genops(data)) < MAX_OPCODES / 10


FORGED = (
    b"("
    + number(3)
    + text("|")
    + b"N"
    + text("f")
    + b"\x85"
    + b"}"
    + text("f")
    + named("numpy", "dtype")
    + text("O")
    + b"\x89\x88\x87R"
)
FORGED += number(0) + b"\x86s" + number(8) + number(1) + number(0) + b"tb"

HOSTILE = {
    "a forged type": (named("numpy", "dtype") + text("V8") + b"\x89\x88\x87R", "an array has the type 'V8'"),
    "a forged state": (
        DTYPE + FORGED,
        "is called with other arguments|an array has the type 'O'|a state that plain types",
    ),
    "objects": (named("numpy", "dtype") + text("O") + b"\x89\x88\x87R", "an array has the type 'O'"),
    "another state": (
        DTYPE + STATE.replace(number(0) + b"tb", number(63) + b"tb"),
        "a state that plain types do not have",
    ),
    "a call": (
        named("os", "system") + text("true") + b"\x85R",
        "it asks for os.system, and weights need arrays only",
    ),
    "a call by lines": (b"cos\nsystem\n" + text("true") + b"\x85R", "it asks for os.system"),
    "a name that is a value": (named("builtins", "tuple"), "it holds global without a value"),
    "a call of a value": (text("os") + b")R", "it calls something that is no writer of arrays"),
    "a class": (named("numpy", "ndarray") + b")\x81", r"it has the opcode b'\\x81'"),
    "persistent": (text("x") + b"Q", "it has the opcode b'Q'"),
    "an extension": (b"\x82\x01", r"it has the opcode b'\\x82'"),
    "an instance": (b"(ios\nsystem\n", "it has the opcode b'i'"),
    "more bytes than there are": (b"\x8e" + struct.pack("<Q", 1 << 62), "it ends too early"),
    "a long integer": (b"\x8a\xff" + bytes(255), "an integer has 255 bytes"),
    "a longer integer": (b"\x8b" + struct.pack("<i", 1 << 30), r"it has the opcode b'\\x8b'"),
    "a huge shape": (
        array(shape=number(2**31 - 1) + number(2**31 - 1) + b"\x86"),
        r"an array of shape \[2147483647, 2147483647\]",
    ),
    "a huger shape": (
        array(shape=b"\x8a\x08" + bytes(7) + b"\x7f" + b"\x85"),
        "a shape that its bytes can't fill",
    ),
    "a wrong shape": (array(shape=number(3) + b"\x85"), r"an array of shape \[3\] and type f4 has 8 bytes"),
    "a negative shape": (array(shape=number(-2) + b"\x85"), "a shape that its bytes can't fill"),
    "a shape of truths": (array(shape=b"\x88\x85"), "a shape that its bytes can't fill"),
    "too many dimensions": (array(shape=b"(" + number(1) * 9 + b"t"), "a shape that its bytes can't fill"),
    "no bytes": (array(data=b"N"), "bytes are missing"),
    "an array without a state": (EMPTY, "it holds array without a value"),
    "a type as a value": (DTYPE, "it holds type without a value"),
    "a state for nothing": (b"]" + b")b", "it gives a state to something that is no array"),
    "a remembered place that is not there": (
        b"j" + struct.pack("<I", 0xFFFFFFFF),
        "it asks for a value that it has not remembered",
    ),
    "a tuple as a key": (b"})Ns", "a key of a dictionary is tuple"),
    "an odd dictionary": (b"}(Nu", "a key without a value"),
    "an item of nothing": (b"Na", "it takes a value that is not there|it adds to something"),
    "no mark": (b"Nt", "since a mark that is not there"),
    "two values": (b"NN", "more or less than one value"),
    "a list in itself": (b"]\x94h\x00a", "nested more than 8 deep"),
    "nested": (b"]" + b"]" * 20 + b"a" * 20, "nested more than 8 deep"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_refused(name: str) -> None:
    body, message = HOSTILE[name]
    with pytest.raises(RefusedError, match=message):
        read_arrays(pickled(body))


def test_bytes_that_are_shared_are_copied_once() -> None:
    data = pickled(
        b"(" + b"\x8e" + struct.pack("<Q", 1 << 20) + bytes(1 << 20) + b"\x94" + b"h\x00" * 1000 + b"t"
    )
    values = read_arrays(data)
    assert len(values) == 1001
    assert len({id(value) for value in values}) == 1


def test_a_plain_array_by_hand() -> None:
    assert same(read_arrays(pickled(array())), np.zeros(2, np.float32))


@pytest.mark.parametrize(
    "data", [b"", b"\x80", b"\x80\x04", b"\x80\x00N.", b"\x80\x04N", b"N", b"<html></html>", b"I5\n."]
)
def test_no_pickle(data: bytes) -> None:
    with pytest.raises(RefusedError):
        read_arrays(data)


def floods() -> dict[str, bytes]:
    """Returns small files that request huge amounts of memory or time."""
    shared = b"]" + b"\x94"
    for level in range(40):  # each level contains the previous level twice
        shared += b"]" + b"\x94" + b"(" + b"h" + bytes([level]) + b"h" + bytes([level]) + b"e"
    tuples = b")" + b"\x94"
    for level in range(40):
        tuples += b"h" + bytes([level]) + b"h" + bytes([level]) + b"\x86\x94"
    megabyte = b"\x8e" + struct.pack("<Q", 1 << 20) + bytes(1 << 20) + b"\x94"
    text_of_a_megabyte = b"X" + struct.pack("<I", 1 << 20) + b"x" * (1 << 20) + b"\x94"
    call = named("_codecs", "encode") + b"h\x00" + text("latin1") + b"\x86R"
    frombuffer = (
        named("numpy._core.numeric", "_frombuffer") + b"(h\x00" + DTYPE + STATE.replace(text("<"), text(">"))
    )
    frombuffer += number(1 << 18) + b"\x85" + text("C") + b"tR"
    return {
        "the same bytes encoded again and again": b"\x80\x04(" + text_of_a_megabyte + call * 5000 + b"t.",
        "the same array swapped again and again": b"\x80\x04(" + megabyte + frombuffer * 5000 + b"t.",
        "the same tuple made again and again": b"\x80\x04(("
        + b"N" * 100_000
        + b"t\x94"
        + (named("builtins", "tuple") + b"h\x00\x85R") * 20_000
        + b"t.",
        "a million nested tuples": b"\x80\x04)" + b"\x85" * 1_000_000 + b".",
        "a million marks": b"\x80\x04" + b"(" * 1_000_000 + b".",
        "lists that double": b"\x80\x04" + shared + b".",
        "tuples that double, as a key": b"\x80\x04}" + tuples + b"Ns.",
        "tuples that double": b"\x80\x04" + tuples + b".",
        "marks searched again and again": b"\x80\x04(" + b"N" * 400_000 + b"t" + b"t" * 500_000 + b".",
        "an index of 4 GiB": b"\x80\x04N"
        + b"r"
        + struct.pack("<I", 0xFFFFFFFF)
        + b"j"
        + struct.pack("<I", 0xFFFFFFF0)
        + b".",
        "empty dictionaries": b"\x80\x04" + b"(" + b"}" * 999_000 + b"l.",
    }


@pytest.mark.parametrize("name", floods())
def test_floods_end_soon_and_need_little(name: str, tmp_path: Path) -> None:
    """Runs in a subprocess with a memory limit of 400 MB more than an import needs."""
    file = tmp_path / "flood.pdparams"
    file.write_bytes(floods()[name])
    script = (
        "import resource, sys\n"
        "from ppxcls.checkpoints.files import CheckpointError, read_state\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 400_000_000,) * 2)\n"
        "try:\n    read_state(sys.argv[1])\nexcept CheckpointError as error:\n    print(error)\n"
    )
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script, file],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.count("\n") == 1
    assert "refused, not a file of weights: " in done.stdout
    assert time.monotonic() - start < 60


def sparse(file: Path) -> None:
    with open(file, "wb") as stream:
        stream.truncate(10 << 30)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (sparse, "10,737,418,240 bytes; the limit is 4,294,967,296"),
        (os.mkfifo, "it is not a regular file"),
        (Path.mkdir, "it is a folder"),
        (lambda file: file.symlink_to("/dev/zero"), "it is not a regular file"),
    ],
)
def test_files_that_are_none(make: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    file = tmp_path / "w.pdparams"
    make(file)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ppxcls.CheckpointError, match=f"w.pdparams: can't be read: {message}"):
        ppxcls.load_weights(ppxcls.build_model("Xception41", class_num=3), file)
    # Limit in kilobytes; the file has 10 GB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2_000_000
