"""Packed data sets that are damaged or forged, and stores that send something else than was asked for."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import fsspec
import numpy as np
from hostility.cases import Case, Outcome, call, refusal_problem

from ppxcls.data.decode import ImageParts
from ppxcls.packed.dataset import PackedDataset
from ppxcls.packed.write import pack, unpack, verify_pack

PROMISE = (
    "No road of a pack gives other bytes than were packed. A store is read up to the sizes of the manifest, "
    "and only by plain protocols"
)
Check = tuple[Outcome, str | None]
_FILES = (
    *("pack.json", "list.txt", "shard-00000.data", "shard-00000.index"),
    *("shard-00001.data", "shard-00001.index", "class_names.txt"),
)
_PLACES = (0.02, 0.3, 0.6, 0.98)
_WRONG_VALUES: tuple[Any, ...] = (None, -1, "x", [], {}, [None], 1e300, True, 1 << 60)
_PROTOCOLS = (
    *("ftp", "sftp", "ssh", "file", "local", "zip", "tar", "github", "git", "reference", "cached", "dir"),
    *("simplecache", "filecache", "blockcache", "data", "jupyter", "libarchive", "dask", "smb", "hf", "dbfs"),
    *("gist", "root", "dvc", "gdrive", "javascript", "S3+x", ""),
)
_CHAINS = (
    *("simplecache::s3://a/b", "s3://a/b::zip://c", "reference::memory://x.json", "memory://x::ftp://h/y"),
    "zip://x::https://localhost:1/a.zip",
)
_MAX_EXTRA_BYTES = 64 << 20  # that a server may have sent before it notices the end of the connection


def cases() -> Iterator[Case]:
    """Returns the cases."""
    yield from _damage_cases()
    yield from _manifest_cases()
    for protocol in _PROTOCOLS:
        url = f"{protocol}://localhost:1/pack"
        yield Case(f"the URL {url}", functools.partial(_url, url), is_quick=True)
    for url in _CHAINS:
        yield Case(f"the URL {url}", functools.partial(_url, url), is_quick=True)
    for name in ("pack.json", "list.txt", "shard-00000.index", "shard-00000.data"):
        for trick in _TRICKS:
            for cache_gb in (None, 0.1):
                road = "requests" if cache_gb is None else "copies"
                run = functools.partial(_web, name, trick, cache_gb)
                is_quick = name in ("pack.json", "shard-00000.data")
                yield Case(f"{road} of a web server: {name} is {trick}", run, is_quick=is_quick)
    yield Case("a web server that sends slowly", _slow_web)
    yield Case("a pack of a web server that behaves", _honest_web, is_quick=True)


def _damage_cases() -> Iterator[Case]:
    """Returns the cases of damaged files, for each road on which they are read."""
    for road, read in _ROADS.items():
        for name in _FILES:
            if name == "class_names.txt" and road not in ("verify", "unpack"):
                continue  # a user may rename the classes
            for place in _PLACES:
                run = functools.partial(_flipped, read, name, place)
                yield Case(f"{road}: a flipped bit at {place} of {name}", run, is_quick=place == 0.6)
    for name in _FILES[:-1]:
        for harm in _HARMS:
            run = functools.partial(_harmed, name, harm)
            yield Case(f"{name} that is {harm}", run, is_quick=True)


def _manifest_cases() -> Iterator[Case]:
    """Returns the cases of forged manifests."""
    for key in ("format", "list_sha256", "delimiter", "samples", "samples_per_shard", "quality", "shards"):
        for value in _WRONG_VALUES:
            if (key, value) != ("quality", None):
                run = functools.partial(_wrong_entry, key, value)
                yield Case(f"{value!r} as {key} of the manifest", run, is_quick=value in (None, -1))
    for key in ("samples", "bytes", "sha256", "index_sha256"):
        for value in _WRONG_VALUES:
            run = functools.partial(_wrong_shard, key, value)
            yield Case(f"{value!r} as {key} of a shard", run, is_quick=value in (None, -1))
    yield Case("a manifest of 16 MB of brackets", _many_brackets, is_quick=True)


@functools.cache
def _source() -> Path:
    """Returns a folder with six images, their list, and their pack."""
    folder = Path(tempfile.mkdtemp(prefix="hostile-packs-"))
    random = np.random.default_rng(0)
    for i in range(6):
        picture = cv2.resize(random.integers(0, 256, (6, 8, 3)).astype(np.uint8), (96, 72))
        cv2.imwrite(str(folder / f"{i}.jpg"), picture)
    lines = "".join(f"{i}.jpg {i % 3}\n" for i in range(6))
    (folder / "list.txt").write_text(lines, encoding="utf-8")
    (folder / "class_names.txt").write_text("0 a\n1 b\n2 c\n", encoding="utf-8")
    pack(folder / "list.txt", None, output=folder / "pack", samples_per_shard=3)
    return folder


def _copy(folder: Path) -> Path:
    return Path(shutil.copytree(_source() / "pack", folder / "pack"))


@functools.cache
def _expected() -> tuple[bytes, ...]:
    return tuple(_contents(str(_source() / "pack")))


def _contents(place: str, **options: Any) -> list[bytes]:
    """Returns the content of each record, as it is decoded or as bytes, and its label."""
    dataset = PackedDataset(place, None, **options)
    contents = []
    for i in range(len(dataset)):
        content: Any = dataset.load(i)
        data = content.whole().tobytes() if isinstance(content, ImageParts) else content
        contents.append(data + f" {dataset.listed(i)} {dataset.labels[i]}".encode())
    return contents


def _check_contents(contents: list[bytes]) -> None:
    if tuple(contents) != _expected():
        raise AssertionError("other bytes than were packed")


def _read_folder(folder: Path, _: Path) -> None:
    _check_contents(_contents(str(folder)))


def _read_store(folder: Path, _: Path) -> None:
    _fill_store(folder)
    _check_contents(_contents("memory://hostile", cache_dir=str(folder.parent / "cache")))


def _read_copies(folder: Path, _: Path) -> None:
    _fill_store(folder)
    _check_contents(_contents("memory://hostile", cache_dir=str(folder.parent / "cache"), cache_gb=1.0))


def _read_damaged_cache(folder: Path, file: Path) -> None:
    """Copies a whole pack to the cache, and then the damaged file into the cache."""
    cache = folder.parent / "cache"
    _fill_store(_source() / "pack")
    _check_contents(_contents("memory://hostile", cache_dir=str(cache), cache_gb=1.0))
    for copy in cache.rglob(file.name):
        copy.write_bytes(file.read_bytes())
    _check_contents(_contents("memory://hostile", cache_dir=str(cache), cache_gb=1.0))


def _verify(folder: Path, _: Path) -> None:
    verify_pack(folder)
    raise AssertionError("no damage is reported")


def _unpack(folder: Path, _: Path) -> None:
    unpack(folder, folder.parent / "out")
    for name in ("list.txt", "class_names.txt"):
        if (folder.parent / "out" / name).read_bytes() != (_source() / "pack" / name).read_bytes():
            raise AssertionError(f"{name} was unpacked with damage")
    _check_contents(_contents(str(folder)))


_ROADS: dict[str, Callable[[Path, Path], None]] = {
    "read": _read_folder,
    "requests": _read_store,
    "copies": _read_copies,
    "cached": _read_damaged_cache,
    "verify": _verify,
    "unpack": _unpack,
}


def _fill_store(folder: Path) -> None:
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pipe({f"/hostile/{file.name}": file.read_bytes() for file in folder.iterdir()})


def _flipped(read: Callable[[Path, Path], None], name: str, place: float, folder: Path) -> Check:
    file = _copy(folder) / name
    content = bytearray(file.read_bytes())
    content[int(place * (len(content) - 2))] ^= 1
    file.write_bytes(content)
    start = time.monotonic()
    try:
        outcome = call(read, file.parent, file)
    except AssertionError as error:
        return Outcome(0, "", "", time.monotonic() - start), str(error)
    # What was read is what was packed, because the damage was mended by another copy, or does not matter.
    return outcome, None if outcome.code == 0 else refusal_problem(outcome)


_HARMS: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: os.truncate(file, file.stat().st_size // 2),
    "missing": lambda file: file.unlink(),
    "a pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    "a device": lambda file: (file.unlink(), file.symlink_to("/dev/zero")),
    "a private text": lambda file: (file.unlink(), file.symlink_to("/etc/passwd")),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "huge": lambda file: os.truncate(file, 1 << 40),
}


def _harmed(name: str, harm: str, folder: Path) -> Check:
    file = _copy(folder) / name
    _HARMS[harm](file)
    if harm == "huge" and name.endswith(".data"):  # only its records are read
        return call(_read_folder, file.parent, file), None
    outcome = call(_read_folder, file.parent, file)
    return outcome, "its text is in the message" if "root:" in outcome.errors else refusal_problem(outcome)


def _rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    file = _copy(folder) / "pack.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    del values["sha256"]
    change(values)
    file.write_text(json.dumps(values), encoding="utf-8")
    return file.parent


def _wrong_entry(key: str, value: Any, folder: Path) -> Check:
    outcome = call(_contents, str(_rewrite(folder, lambda values: values.update({key: value}))))
    return outcome, refusal_problem(outcome)


def _wrong_shard(key: str, value: Any, folder: Path) -> Check:
    pack_folder = _rewrite(folder, lambda values: values["shards"][0].update({key: value}))
    if key == "sha256" and isinstance(value, str):  # reading compares records, and verifying whole shards
        outcome = call(verify_pack, pack_folder)
    else:
        outcome = call(_contents, str(pack_folder))
    if key == "bytes" and value == 1 << 60:
        return outcome, None if outcome.code == 1 else "accepted"
    return outcome, refusal_problem(outcome)


def _url(url: str, folder: Path) -> Check:
    outcome = call(_contents, url, cache_dir=str(folder / "cache"))
    # A URL without a protocol is the name of a folder.
    words = () if url.startswith("://") else ("expected a folder, or a URL with one of",)
    return outcome, refusal_problem(outcome, *words)


def _many_brackets(folder: Path) -> Check:
    (folder / "pack.json").write_bytes(b"[" * (16 << 20))
    outcome = call(_contents, str(folder))
    return outcome, refusal_problem(outcome, "pack.json")


# What a server does with one of the files.
_TRICKS = (
    *("endless", "endless with a short length", "longer than stated", "shorter than stated"),
    *("redirected to a file", "redirected to ftp", "redirected for ever", "an error page", "without ranges"),
    *("of a negative length", "of a length that is no number", "another file"),
)


class _Handler(http.server.BaseHTTPRequestHandler):
    """Serves a pack, one file of which is a trick."""

    protocol_version = "HTTP/1.1"
    trick_name = ""
    trick = ""
    sent_bytes = 0

    def do_HEAD(self) -> None:
        """Answers with the headers of a file."""
        self._answer(has_body=False)

    def do_GET(self) -> None:
        """Answers with a file, or with a range of it."""
        with contextlib.suppress(OSError):
            self._answer(has_body=True)

    def log_message(self, *_: Any) -> None:
        """Writes nothing."""

    def _answer(self, *, has_body: bool) -> None:
        self.close_connection = True
        name = self.path.rpartition("/")[2]
        content = (_source() / "pack" / name).read_bytes()
        requested_range = self.headers.get("Range", "")
        if name == self.trick_name:
            self._answer_trick(content, requested_range, has_body=has_body)
        else:
            self._answer_honestly(content, requested_range, has_body=has_body)

    def _answer_honestly(self, content: bytes, requested_range: str, *, has_body: bool) -> None:
        status = 200
        if requested_range:
            first, _, last = requested_range.removeprefix("bytes=").partition("-")
            content, status = content[int(first) : int(last) + 1], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if has_body:
            self.wfile.write(content)

    def _answer_trick(self, content: bytes, requested_range: str, *, has_body: bool) -> None:
        trick = self.trick
        places = {"file": "file:///etc/passwd", "ftp": "ftp://localhost:1/x", "ever": self.path}
        lengths = {
            "endless with a short length": "10",
            "longer than stated": str(len(content) - 7),
            "shorter than stated": str(len(content) + 7),
            "of a negative length": "-5",
            "of a length that is no number": "x" * 1000,
        }
        if trick.startswith("redirected"):
            self.send_response(302)
            self.send_header("Location", places[trick.rpartition(" ")[2]])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if trick == "another file":
            self._answer_honestly(bytes(len(content)), requested_range, has_body=has_body)
            return
        self.send_response(
            {"an error page": 500, "without ranges": 200}.get(trick, 206 if requested_range else 200)
        )
        if trick in lengths:
            self.send_header("Content-Length", lengths[trick])
        self.end_headers()
        if has_body:
            self._send(content)
        while has_body and trick == "slow":
            self._send(b" ")
            time.sleep(0.05)
        while has_body and trick.startswith("endless"):
            self._send(bytes(1 << 16))

    def _send(self, data: bytes) -> None:
        self.wfile.write(data)
        type(self).sent_bytes += len(data)


@contextlib.contextmanager
def _server(name: str, trick: str) -> Iterator[tuple[str, type[_Handler]]]:
    """Yields the URL of a pack on a web server, and the handler that counts what was sent."""
    handler = type("Handler", (_Handler,), {"trick_name": name, "trick": trick, "sent_bytes": 0})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/pack", handler
        finally:
            server.shutdown()
            thread.join()


def _web(name: str, trick: str, cache_gb: float | None, folder: Path) -> Check:
    with _server(name, trick) as (url, handler):
        start = time.monotonic()
        try:
            outcome = call(_read_url, url, folder, cache_gb)
        except AssertionError as error:
            return Outcome(0, "", "", time.monotonic() - start), str(error)
        if handler.sent_bytes > _MAX_EXTRA_BYTES:
            return outcome, f"{handler.sent_bytes:,} bytes were read"
    # A server that sends more than it states is read as far as it states, which may be all that is needed.
    return outcome, None if outcome.code == 0 else refusal_problem(outcome)


def _read_url(url: str, folder: Path, cache_gb: float | None) -> None:
    _check_contents(_contents(url, cache_dir=str(folder / "cache"), cache_gb=cache_gb))


def _slow_web(folder: Path) -> Check:
    with mock.patch("ppxcls.packed.web_files._SLOW_SECONDS", 1.0), _server("pack.json", "slow") as (url, _):
        outcome = call(_read_url, url, folder, None)
    return outcome, refusal_problem(outcome, "the server sends too slowly")


def _honest_web(folder: Path) -> Check:
    with _server("", "") as (url, _):
        outcomes = [call(_read_url, url, folder, cache_gb) for cache_gb in (None, 0.1)]
    problem = next((outcome.errors for outcome in outcomes if outcome.code != 0), None)
    return outcomes[0], problem
