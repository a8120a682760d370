"""Fuzzes images, lists, names, YAMLs and checkpoints: each case must work or end in a named error.

    python scripts/fuzz.py --images 5000 --configs 1000 --lists 1000 --names 1000 --maps 1000 \\
        --checkpoints 500 --pickles 50000 --safetensors 5000 --seed 0

Each kind of case runs in its own process, with a memory limit and a time limit per case. Findings are a
crash, a hang, an exception other than the named one, and memory beyond the limit. Each finding is printed
with the number of its case. The seed and this number reproduce the case.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import yaml
from fuzzing.mutation import Case, Generator, mutate
from fuzzing.weights import checkpoint_cases, pickle_cases, safetensors_cases
from PIL import Image

import ppxcls
from ppxcls.config.load import load_config
from ppxcls.data.class_names import read_class_names
from ppxcls.data.dataset import ImageNetDataset
from ppxcls.data.decode import decode_image
from ppxcls.data.errors import DataError
from ppxcls.data.list_index import ListIndex
from ppxcls.system.paths import printable

ROOT = Path(__file__).resolve().parents[1]
MAX_CASE_SECONDS = 20  # time limit of a case
# Address space in bytes beyond the use at the start; the largest allowed image takes half of it.
MAX_ADDED_BYTES = 3 << 30


def _valid_images() -> list[bytes]:
    rng = np.random.default_rng(1)
    pixels = cv2.resize(
        rng.integers(0, 256, (12, 16, 3), np.uint8), (160, 120), interpolation=cv2.INTER_CUBIC
    )
    pillow = Image.fromarray(pixels)
    files = []
    for settings in ({}, {"progressive": True}, {"quality": 30, "subsampling": 0}, {"optimize": True}):
        files.append(_encode(pillow, "JPEG", **settings))
    exif = Image.Exif()
    exif[0x0112] = 6
    files += [
        _encode(pillow, "JPEG", exif=exif.tobytes()),
        _encode(pillow.convert("L"), "JPEG"),
        _encode(pillow.convert("CMYK"), "JPEG"),
    ]
    for mode in ("RGB", "RGBA", "L", "P", "1", "I;16"):
        image = (
            Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
            if mode == "I;16"
            else pillow.convert(mode)
        )
        files.append(_encode(image, "PNG"))
    return files


def _encode(image: Image.Image, kind: str, **settings: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **settings)
    return stream.getvalue()


def _change_header_size(data: bytes, rng: Generator) -> bytes:
    """Changes the image size in a file's header. A PNG's checksum is updated."""
    width, height = (int(rng.choice([0, 1, 300, 5000, 40_000, 65_535])) for _ in range(2))
    if data[:2] == b"\xff\xd8":
        frame_position = next(
            (i for i in range(2, len(data) - 9) if data[i] == 0xFF and data[i + 1] in (0xC0, 0xC1, 0xC2)),
            None,
        )
        return (
            data
            if frame_position is None
            else data[: frame_position + 5] + struct.pack(">HH", height, width) + data[frame_position + 9 :]
        )
    header = b"IHDR" + struct.pack(">II", width * 1000, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def image_cases(count: int, seed: int, folder: Path) -> Iterator[Case]:
    """Yields cases of mutated JPEGs and PNGs of every kind."""
    files = _valid_images()
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        data = files[i % len(files)]
        data = _change_header_size(data, rng) if i % 10 == 9 else mutate(data, rng)

        def decode(data: bytes = data) -> None:
            image = decode_image(data)
            assert image.dtype == np.uint8
            assert image.ndim == 3
            assert image.shape[2] == 3

        yield decode, ValueError


def config_cases(count: int, seed: int, folder: Path) -> Iterator[Case]:
    """Yields cases of this repository's YAMLs, with mutated bytes or mutated values."""
    files = sorted((ROOT / "configs").rglob("*.yaml"))
    target = folder / "config.yaml"
    values = [
        None,
        -1,
        0,
        10**30,
        1e300,
        float("nan"),
        "",
        "x" * 1000,
        "!!python/object/apply:os.system [id]",
        [],
        {},
        [[]],
        True,
        "1/0",
    ]
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        text = files[i % len(files)].read_bytes()
        if i % 2:
            tree = yaml.safe_load(text)
            _change(tree, rng, values)
            text = yaml.safe_dump(tree, sort_keys=False).encode()
        else:
            text = mutate(text, rng)

        def load(text: bytes = text) -> None:
            target.write_bytes(text)
            load_config(target).to_yaml()

        yield load, ppxcls.ConfigError


def _change(tree: Any, rng: Generator, values: list[Any]) -> None:
    """Replaces one value somewhere in a tree, removes it, or renames its key."""
    while True:
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        key = keys[int(rng.integers(len(keys)))]
        if isinstance(tree[key], dict | list) and tree[key] and rng.random() < 0.8:
            tree = tree[key]
            continue
        if rng.random() < 0.2 and isinstance(tree, dict):
            tree[str(key) + "_"] = tree.pop(key)
        else:
            tree[key] = values[int(rng.integers(len(values)))]
        return


def list_cases(count: int, seed: int, folder: Path) -> Iterator[Case]:
    """Yields cases of mutated list files."""
    text = "".join(f"train/n{i:08d}/n{i:08d}_{i * 7}.JPEG {i % 1000}\n" for i in range(300)).encode()
    target = folder / "list.txt"
    for i in range(count):
        data = mutate(
            b"\xef\xbb\xbf" * (i % 3 == 0) + text.replace(b"\n", b"\r\n" if i % 2 else b"\n"),
            np.random.default_rng([seed, i]),
        )

        def load(data: bytes = data) -> None:
            target.write_bytes(data)
            dataset = ImageNetDataset(str(folder), str(target), class_num=1000)
            for index in range(len(dataset)):
                dataset.path(index)
            try:
                dataset.load(0)
            except DataError:
                return

        yield load, DataError


# Parts of names: blanks, control characters, line separators, dots, bytes that are not UTF-8, and characters
# with a special meaning in lists and class names.
_NAME_PARTS = [
    b" ",
    b"  ",
    b"\t",
    b"\n",
    b"\r",
    b"\x1b[2J",
    b"\x7f",
    b"\xe9",
    b"\xff\xfe",
    b"..",
    b".",
    b"a",
    b"0",
    b" 7",
    b"'",
    b'"',
    b"\\",
]
_NAME_PARTS += [
    text.encode()
    for text in ("é", "e\u0301", "\u2028", "\ufeff", "蜂", "*", "%00", "-", "#", ",", "train", "val")
]


def _name(rng: Generator) -> bytes:
    pieces = [_NAME_PARTS[int(k)] for k in rng.integers(len(_NAME_PARTS), size=int(rng.integers(1, 5)))]
    return (
        b"".join(pieces) if rng.random() < 0.8 else rng.bytes(4).replace(b"/", b"").replace(b"\0", b"") + b"x"
    )


def name_cases(count: int, seed: int, folder: Path) -> Iterator[Case]:
    """Yields cases of class folders and images with names of every kind.

    The lists must contain each image once, with the label of its folder.
    """
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        root = os.fsencode(folder / f"data_{i}")
        expected_files = set()
        for _ in range(int(rng.integers(1, 4))):
            name = _name(rng)
            for _ in range(int(rng.integers(1, 4))):
                file = _name(rng) + b".jpg"
                if name in (b".", b"..") or len(name) > 200 or len(file) > 200:
                    continue
                os.makedirs(root + b"/" + name, exist_ok=True)
                with open(root + b"/" + name + b"/" + file, "wb"):
                    pass
                if not name.startswith(b".") and not file.startswith(b"."):
                    expected_files.add((name, file))

        def check(
            root: bytes = root, expected_files: set[tuple[bytes, bytes]] = expected_files, number: int = i
        ) -> None:
            output = folder / f"lists_{number}"
            summary = ppxcls.make_lists(os.fsdecode(root), output, seed=number)
            assert str(summary) == "\n".join(map(printable, str(summary).split("\n")))
            labels_by_path = {}
            for part in ("train", "val"):
                if (output / f"{part}_list.txt").exists():
                    index = ListIndex(output / f"{part}_list.txt")
                    labels_by_path |= {
                        os.fsencode(os.path.normpath(index.path(k))): int(index.labels[k])
                        for k in range(len(index))
                    }
            assert labels_by_path.keys() == {b"/".join(pair) for pair in expected_files}
            # Labels are in Python's string order.
            classes = sorted({os.fsdecode(name) for name, _ in expected_files})
            assert all(
                classes[label] == os.fsdecode(path.split(b"/")[0]) for path, label in labels_by_path.items()
            )
            assert len(read_class_names(output / "class_names.txt", len(classes))) == len(classes)

        yield check, DataError


def map_cases(count: int, seed: int, folder: Path) -> Iterator[Case]:
    """Yields cases of class-name files in every form and encoding, mutated or not."""
    target = folder / "names.txt"
    encodings = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        separator, end = ("\t", " ", ",", ", ")[i % 4], ("\n", "\r\n")[i % 2]
        names = [os.fsdecode(_name(rng)).encode("utf-8", "replace").decode() for _ in range(5)]
        names = [" ".join(name.split()) or "x" for name in names]
        data = "".join(f"{k}{separator}{name}{end}" for k, name in enumerate(names)).encode(
            encodings[i % len(encodings)]
        )
        is_whole = i % 3 == 0
        data = data if is_whole else mutate(data, rng)

        def read(data: bytes = data, names: list[str] = names, *, is_whole: bool = is_whole) -> None:
            target.write_bytes(data)
            received = read_class_names(target, 5)
            assert len(received) == 5
            if is_whole:
                assert received == [
                    printable(name.lstrip(" ,\t")) or received[k] for k, name in enumerate(names)
                ]
            assert all(name == printable(name) for name in received)

        yield read, DataError


KINDS: dict[str, Callable[[int, int, Path], Iterator[Case]]] = {
    "images": image_cases,
    "configs": config_cases,
    "lists": list_cases,
    "names": name_cases,
    "maps": map_cases,
    "checkpoints": checkpoint_cases,
    "pickles": pickle_cases,
    "safetensors": safetensors_cases,
}


class Hang(BaseException):
    """A case exceeded its time limit."""


def run(kind: str, count: int, seed: int) -> None:
    """Runs the cases of a kind in this process. Prints a JSON line per finding, and the counts at the end."""

    def raise_hang(number: int, frame: Any) -> None:
        raise Hang

    outcomes: collections.Counter[str] = collections.Counter()
    signal.signal(signal.SIGALRM, raise_hang)
    with tempfile.TemporaryDirectory() as folder:
        cases = KINDS[kind](count, seed, Path(folder))
        is_first = True
        for i, (attempt, allowed_error) in enumerate(cases):
            if is_first:
                is_first = False
                limit = _address_space() + MAX_ADDED_BYTES
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            print(f"{i}", file=sys.stderr, flush=True)  # after a crash, the last number is the case
            signal.alarm(MAX_CASE_SECONDS)
            try:
                attempt()
                outcomes["worked"] += 1
            except allowed_error as error:
                outcomes["named error"] += 1
                if "\n" in str(error):
                    _report_finding(outcomes, i, "an error message of several lines", error)
            except Hang as error:
                _report_finding(outcomes, i, "hang", error)
            except Exception as error:
                _report_finding(outcomes, i, "another exception", error)
            signal.alarm(0)
    print(json.dumps({"kind": kind, "outcomes": outcomes}))


def _report_finding(
    outcomes: collections.Counter[str], number: int, description: str, error: BaseException
) -> None:
    outcomes["finding"] += 1
    print(
        json.dumps({"case": number, "what": description, "error": f"{type(error).__name__}: {error}"[:300]}),
        flush=True,
    )


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=int, default=0, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run(arguments.run, getattr(arguments, arguments.run), arguments.seed)
        return 0
    findings = 0
    for kind in KINDS:
        count = getattr(arguments, kind)
        if not count:
            continue
        command = [
            sys.executable,
            __file__,
            "--run",
            kind,
            f"--{kind}",
            str(count),
            "--seed",
            str(arguments.seed),
        ]
        # S603: runs this file with numbers that argparse has parsed, without a shell.
        result = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
        lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
        outcomes = lines.pop()["outcomes"] if result.returncode == 0 else {}
        for finding in lines:
            print(f"{kind}: {finding}")
        if result.returncode != 0:
            case = next((line for line in reversed(result.stderr.splitlines()) if line.isdigit()), "none")
            print(
                f"{kind}: the process ended with {result.returncode} at case {case}: {result.stderr[-300:]}"
            )
        findings += len(lines) + (result.returncode != 0)
        print(f"{kind}: {count:,} cases, seed {arguments.seed}: {outcomes}")
    print(f"{findings} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
