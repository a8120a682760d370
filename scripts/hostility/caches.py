"""Caches and locks of other users, and damaged ones. Root plays the other user; others skip those cases."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
from hostility.cases import Case, Outcome, message_problem, run_command
from numba.core.registry import cpu_target

from ppxcls.data.errors import DataError
from ppxcls.packed.storage import storage_of
from ppxcls.system import file_lock, kernel_cache
from ppxcls.system.file_lock import LockedError, locked
from ppxcls.system.kernel_cache import KernelCache, kernel_cache_folder
from ppxcls.system.logs import logger
from ppxcls.system.own_folders import cache_folder
from ppxcls.system.temporary_files import UnsafeFileError

PROMISE = "A cache or a lock that another user can change is not used, and a damaged one is made again"
_STRANGER = 65534
_IS_ROOT = hasattr(os, "getuid") and os.getuid() == 0
_KERNELS = """
import sys
import numpy as np
from ppxcls.data.normalize_kernels import normalize
from ppxcls.system import kernels
images, table = np.zeros((2, 4, 4, 3), np.uint8), np.ones((3, 256), np.float32)
out = np.zeros((2, 3, 4, 4), np.float32)
kernels.run(normalize, 8, images, table, out)
print("sum", int(out.sum()), normalize.stats.cache_path)
"""


def _owner(path: Path) -> None:
    os.chown(path, _STRANGER, _STRANGER)


def _mode(path: Path, mode: int) -> None:
    path.chmod(mode)


def _first_in_sticky_folder(path: Path) -> None:
    path.chmod(0o1777)
    for part in path.rglob("*"):
        _owner(part)


def _behind_link(path: Path) -> None:
    target = path.with_name("target")
    os.replace(path, target)
    _owner(target)
    path.symlink_to(target)


def _given_to_group(path: Path) -> None:
    os.chown(path, -1, _STRANGER)
    path.chmod(0o775)


# What is hostile about a folder: functions of its path.
_FOLDERS: dict[str, Callable[[Path], None]] = {
    "of another user": _owner,
    "that everybody can write": functools.partial(_mode, mode=0o777),
    "like that of temporary files, in which another user was first": _first_in_sticky_folder,
    "that another group can write": _given_to_group,
    "in a folder of another user": lambda path: _owner(path.parent),
    "in a folder that everybody can write": lambda path: _mode(path.parent, 0o777),
    "deep in a folder that everybody can write": lambda path: _mode(path.parent.parent, 0o777),
    "behind a link to a folder of another user": _behind_link,
}
_NO_FOLDERS: dict[str, Callable[[Path], None]] = {
    "that is a file": Path.touch,
    "that is a pipe": os.mkfifo,
    "that is a link to a file": lambda path: path.symlink_to("/etc/passwd"),
    "that is a link to itself": lambda path: path.symlink_to(path),
    "that is a device": lambda path: path.symlink_to("/dev/null"),
    "below a file": lambda path: path.parent.joinpath("file").touch(),
}
_PLACES = {"NUMBA_CACHE_DIR": "", "XDG_CACHE_HOME": "ppxcls/kernels"}  # where a variable puts the kernels


class _Evil:
    """Its pickle creates a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def _kernel(folder: Path | None) -> Any:
    """Returns a new dispatcher, as a new process would have it."""

    def multiply(number: int) -> int:
        return number * 3

    dispatcher = numba.njit(multiply)
    if folder is not None:
        dispatcher._cache = KernelCache(multiply, folder, "digest")
    return dispatcher


def _plant(folder: Path, marker: Path) -> Path:
    """Writes a file with a matching digest that creates a folder when it is unpickled."""
    folder.mkdir(parents=True, exist_ok=True)
    file, key = _kernel(folder)._cache._place((numba.int64,), cpu_target.target_context.codegen())
    content = pickle.dumps(_Evil(marker))
    file.write_bytes(kernel_cache._digest(key, content) + content)
    return file


@contextlib.contextmanager
def _variables(**values: str) -> Iterator[list[str]]:
    """Sets environment variables, forgets chosen caches, and yields a list that the warnings are added to."""
    previous_values = {name: os.environ.get(name) for name in values}
    lines: list[str] = []
    previous_emit = logger.handlers[:]
    handler = _Lines(lines)
    logger.addHandler(handler)
    os.environ.update(values)
    cache_folder.cache_clear()
    try:
        yield lines
    finally:
        cache_folder.cache_clear()
        logger.handlers[:] = previous_emit
        for name, value in previous_values.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


class _Lines:
    """A handler of log records that keeps their texts."""

    level = 0

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def handle(self, record: Any) -> None:
        self._lines.append(record.getMessage())


def _outcome(start: float, result: object, lines: list[str]) -> Outcome:
    return Outcome(0, repr(result), "\n".join(lines), time.monotonic() - start)


def cases() -> Iterator[Case]:
    """Returns the cases; those that need root only if this is root."""
    for variable in _PLACES:
        for description, change in {**(_FOLDERS if _IS_ROOT else {}), **_NO_FOLDERS}.items():
            run = functools.partial(_kernels_in, variable, change, is_folder=description in _FOLDERS)
            yield Case(f"{variable} {description}", run, is_quick=variable == "NUMBA_CACHE_DIR")
    for description, damage in _DAMAGES.items():
        yield Case(f"a kernel's file {description}", functools.partial(_damaged, damage), is_quick=True)
    for description, place in _LOCKS.items():
        yield Case(f"a lock that is {description}", functools.partial(_lock, place), is_quick=True)
    yield Case("a lock that a reader holds", _held_lock, is_quick=True)
    yield Case(
        "a lock that a reader holds, for somebody who does not wait", _held_lock_at_once, is_quick=True
    )
    if _IS_ROOT:
        for description, code in _STRANGERS_ACTS.items():
            yield Case(f"another user {description}", functools.partial(_act, code))
        for description in ("of another user", "that everybody can write"):
            run = functools.partial(_copies, _FOLDERS[description])
            yield Case(f"copies of a store in a folder {description}", run, is_quick=True)
        yield Case("a process with a cache of another user", _process_with_strangers_cache)
    for description, variables in _PROCESSES.items():
        yield Case(f"a process with {description}", functools.partial(_process, variables))


def _kernels_in(
    variable: str, change: Callable[[Path], None], folder: Path, *, is_folder: bool
) -> tuple[Outcome, str | None]:
    """Lets a kernel run with a hostile folder for its cache, in which a file waits to be unpickled."""
    start = time.monotonic()
    chosen_folder, marker = folder / "a/b/chosen", folder / "ran"
    chosen_folder.parent.mkdir(parents=True)
    (folder / "home").mkdir()
    if is_folder:
        _plant(chosen_folder / _PLACES[variable], marker)
    change(chosen_folder)
    if not is_folder and (folder / "a/b/file").exists():
        chosen_folder = folder / "a/b/file/below"
    values = {"NUMBA_CACHE_DIR": "", "HOME": str(folder / "home"), variable: str(chosen_folder)}
    with _variables(**values) as lines:
        place = kernel_cache_folder(Path("/proc/nowhere/a_kernels.py"))
        result = _kernel(place)(5)
    outcome = _outcome(start, (result, place), lines)
    if marker.exists():
        return outcome, "the file of another user ran"
    if result != 15:
        return outcome, f"a wrong result: {result}"
    if place != folder / "home/.cache/ppxcls/kernels":
        return outcome, f"the cache is {place}"
    if is_folder and len(lines) != 1:
        return outcome, f"{len(lines)} lines"
    return outcome, message_problem(outcome.errors) if lines else None


def _rewritten(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda file: [None, file.write_bytes(change(file.read_bytes()))][0]


def _replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def replace(file: Path) -> None:
        file.unlink()
        make(file)

    return replace


def _sparse(file: Path) -> None:
    os.truncate(file, 1 << 33)


def _with_flipped_bit(data: bytes) -> bytes:
    return data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]


_DAMAGES: dict[str, Callable[[Path], None]] = {
    "that is empty": lambda file: os.truncate(file, 0),
    **{f"cut after {n} bytes": _rewritten(lambda data, n=n: data[:n]) for n in (1, 31, 32, 33, 1000)},
    "without its last byte": _rewritten(lambda data: data[:-1]),
    "of zeros": _rewritten(lambda data: bytes(len(data))),
    "of noise": _rewritten(lambda data: os.urandom(len(data))),
    "with a byte too many": _rewritten(lambda data: data + b"\0"),
    "with another first bit": _rewritten(lambda data: bytes([data[0] ^ 1]) + data[1:]),
    "with another bit in its code": _rewritten(_with_flipped_bit),
    "with another last bit": _rewritten(lambda data: data[:-1] + bytes([data[-1] ^ 128])),
    "of 8 GiB": _sparse,
    "that is a folder": _replaced(Path.mkdir),
    "that is a pipe": _replaced(os.mkfifo),
    "that is a link to an endless device": _replaced(lambda file: file.symlink_to("/dev/zero")),
    "that is a link to itself": _replaced(lambda file: file.symlink_to(file)),
    "that everybody can write": lambda file: file.chmod(0o666),
    "that nobody can read": lambda file: file.chmod(0),
}


def _damaged(damage: Callable[[Path], None], folder: Path) -> tuple[Outcome, str | None]:
    """Damages the stored code, and runs the kernel again twice."""
    start = time.monotonic()
    _kernel(folder)(5)
    (file,) = folder.iterdir()
    damage(file)
    with _variables() as lines:
        result = [_kernel(folder)(5), _kernel(folder)(5)]
    outcome = _outcome(start, result, lines)
    if result != [15, 15]:
        return outcome, f"a wrong result: {result}"
    return outcome, message_problem(outcome.errors) if lines else None


_LOCKS: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a link to a user's file": lambda path: path.symlink_to(path.with_name("precious")),
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "open to everybody": lambda path: path.touch(0o666) or path.chmod(0o666),
    "a large file": lambda path: path.touch() or os.truncate(path, 1 << 33),
}


def _lock(make: Callable[[Path], object], folder: Path) -> tuple[Outcome, str | None]:
    start = time.monotonic()
    precious = folder / "precious"
    precious.write_text("a")
    make(folder / "lock")
    blocks = []
    try:
        with locked(folder / "lock"):
            blocks.append(1)
    except UnsafeFileError as error:  # it names the lock file
        blocks.append(str(error))
    outcome = _outcome(start, blocks, [])
    if precious.read_text() != "a" or (folder / "nowhere").exists():
        return outcome, "a file was changed through a link"
    if (folder / "lock").is_file() and not (folder / "lock").is_symlink():
        mode = (folder / "lock").stat().st_mode & 0o777
        return outcome, None if mode == 0o600 else f"its mode is {mode:o}"
    return outcome, None if blocks and outcome.seconds < 1 else "the block waited"


@contextlib.contextmanager
def _reader(lock: Path) -> Iterator[subprocess.Popen[str]]:
    lock.touch()
    code = (
        "import fcntl, sys; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_SH); "
        "print(1, flush=True); sys.stdin.read()"
    )
    # S603: runs Python with the code above, without a shell.
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    process.stdout.readline()  # type: ignore[union-attr]
    try:
        yield process
    finally:
        process.communicate("")


def _held_lock(folder: Path) -> tuple[Outcome, str | None]:
    start = time.monotonic()
    silent_seconds, file_lock._SILENT_SECONDS = file_lock._SILENT_SECONDS, 0.1
    try:
        with (
            _reader(folder / "lock") as process,
            _variables() as lines,
            locked(folder / "lock", max_seconds=0.5),
        ):
            pass
    finally:
        file_lock._SILENT_SECONDS = silent_seconds
    outcome = _outcome(start, None, lines)
    if len(lines) != 2:
        return outcome, f"{len(lines)} lines"
    return outcome, message_problem(outcome.errors, str(process.pid), str(folder / "lock"))


def _held_lock_at_once(folder: Path) -> tuple[Outcome, str | None]:
    start = time.monotonic()
    try:
        with _reader(folder / "lock"), locked(folder / "lock", waits=False):
            return _outcome(start, None, []), "the lock was given twice"
    except LockedError as error:
        return _outcome(start, None, [str(error)]), message_problem(str(error))


_AS_STRANGER = "import fcntl, os, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
_STRANGERS_ACTS = {
    "opens a lock": "open(sys.argv[1] + '/lock')",
    "opens a lock for writing": "open(sys.argv[1] + '/lock', 'ab')",
    "reads the code": "open(sys.argv[1] + '/code.nbc', 'rb')",
    "writes into a new cache": "open(sys.argv[1] + '/new', 'wb')",
    "renames a file of a new cache": "os.rename(sys.argv[1] + '/lock', sys.argv[1] + '/other')",
    "lists a new cache": "os.listdir(sys.argv[1])",
}


def _act(code: str, folder: Path) -> tuple[Outcome, str | None]:
    """Lets another user act on a new cache. The folder above it is open to all, as a home may be."""
    folder.chmod(0o755)
    previous_mask = os.umask(0)
    try:
        cache = cache_folder.__wrapped__("kernels", str(folder / "cache"))
        with locked(cache / "lock"):
            _kernel(cache)(5)
    finally:
        os.umask(previous_mask)
    next(cache.glob("*.nbc")).rename(cache / "code.nbc")
    outcome = run_command([sys.executable, "-c", _AS_STRANGER + code, cache], folder)
    is_refused = outcome.code == 1 and "PermissionError" in outcome.errors
    return outcome, None if is_refused else f"exit code {outcome.code}: {outcome.errors[-200:]}"


def _copies(change: Callable[[Path], None], folder: Path) -> tuple[Outcome, str | None]:
    start = time.monotonic()
    (folder / "a/shared").mkdir(parents=True)
    change(folder / "a/shared")
    with _variables(XDG_CACHE_HOME=str(folder / "home")):
        try:
            storage: Any = storage_of("memory://data/pack", str(folder / "a/shared"), None)
        except DataError as error:
            return _outcome(start, None, [str(error)]), message_problem(str(error), str(folder / "a/shared"))
    return _outcome(start, storage._cache, []), f"copies go to {storage._cache}"


def _process_with_strangers_cache(folder: Path) -> tuple[Outcome, str | None]:
    (folder / "cache").mkdir()
    _owner(folder / "cache")
    (folder / "home").mkdir()
    variables = {"NUMBA_CACHE_DIR": str(folder / "cache"), "XDG_CACHE_HOME": str(folder / "home")}
    outcome = run_command([sys.executable, "-c", _KERNELS], folder, variables=variables)
    problem = _process_problem(outcome, str(folder / "home/ppxcls/kernels"))
    return outcome, problem or message_problem(outcome.errors, "belongs to")


_PROCESSES: dict[str, dict[str, str | None]] = {
    "a file for all caches": {
        "NUMBA_CACHE_DIR": "/etc/passwd",
        "XDG_CACHE_HOME": "/etc/passwd",
        "HOME": "/proc/nowhere",
    },
    "a device for its cache": {"NUMBA_CACHE_DIR": "/dev/null"},
    "a cache in /proc": {"NUMBA_CACHE_DIR": "/proc/1"},
    "a cache with a name of 5,000 characters": {"NUMBA_CACHE_DIR": "/tmp/" + "a" * 5000},  # noqa: S108
    "a cache named with escape codes": {"NUMBA_CACHE_DIR": "/proc/\x1b[2J"},
}


def _process(variables: dict[str, str | None], folder: Path) -> tuple[Outcome, str | None]:
    values = {"HOME": str(folder), "XDG_CACHE_HOME": str(folder / "home"), **variables}
    outcome = run_command([sys.executable, "-c", _KERNELS], folder, variables=values)
    problem = message_problem(outcome.errors) if outcome.errors.strip() else None
    return outcome, _process_problem(outcome, "") or problem


def _process_problem(outcome: Outcome, place: str) -> str | None:
    """Returns why the kernel's process did not compute what it should, with its cache in a place."""
    if outcome.code != 0:
        return f"exit code {outcome.code}: {outcome.errors[-200:]}"
    return None if f"sum 96 {place}" in outcome.output else f"the output is {outcome.output[:200]}"
