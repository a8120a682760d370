"""Compiles numba kernels, once on a host, and runs them on all cores.

Modules named ``*_kernels`` hold the kernels. They import numba, which takes half a second and may be missing,
so their callers import them inside the function that needs a kernel.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from ppxcls.system.environment import own_threads
from ppxcls.system.turns import turn

R = TypeVar("R")

HAS_NUMBA = importlib.util.find_spec("numba") is not None
_COMPILE_LOCK = threading.Lock()  # one thread compiles a kernel
_USED_KERNELS: set[Any] = set()  # kernels that this process has called, so that they are compiled


def run(kernel: Callable[..., Any], count: int, *arguments: Any) -> None:
    """Run a kernel on all threads; see ``call``.

    Args:
        kernel: a function of ``arguments``, the first of its rows, and the row after its last.
        count: number of rows, planes or channels that do not depend on each other; each thread computes some.
        arguments: the arguments before the rows.
    """
    parts = min(own_threads(), count) or 1  # as many as Paddle's own operators use
    if kernel not in _USED_KERNELS:
        call(kernel, *arguments, 0, count)
        return
    compute = functools.partial(kernel, *arguments)
    bounds = [count * part // parts for part in range(parts + 1)]
    pool = _pool(os.getpid(), parts - 1) if parts > 1 else None
    futures = [pool.submit(compute, *bounds[part : part + 2]) for part in range(1, parts)] if pool else []
    compute(*bounds[:2])
    for future in futures:
        future.result()


def call(kernel: Callable[..., R], *arguments: Any) -> R:
    """Call a kernel.

    The processes of a host take turns at a kernel's first call: one compiles it, and the others load it from
    numba's cache.
    """
    if kernel in _USED_KERNELS:
        return kernel(*arguments)
    folder = kernel.stats.cache_path  # type: ignore[attr-defined]  # None if numba has no folder
    lock: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if folder and os.path.isdir(folder):
        lock = turn(Path(folder) / f"{kernel.__name__}.lock")
    with _COMPILE_LOCK, lock:
        result = kernel(*arguments)
    _USED_KERNELS.add(kernel)
    return result


@functools.cache
def _pool(process: int, count: int) -> ThreadPoolExecutor:
    """The threads of a process; after a fork, its parent's are gone.

    Kernels don't hold the interpreter's lock. numba's own threads would do, but a kernel with them takes
    twice as long to compile.
    """
    return ThreadPoolExecutor(count, thread_name_prefix=f"kernels-{process}")


@functools.cache
def _digest() -> str:
    """Digest of all kernels' sources and of this file, which has their options.

    numba's cache notices changes of a kernel's own file only, and a kernel contains the helpers and constants
    of other files.
    """
    package = Path(__file__).resolve().parents[1]
    sources = [*sorted(package.glob("*/*_kernels.py")), package / "packed/jpeg_codes.py", Path(__file__)]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:8]


def compiled(function: Callable[..., R]) -> Callable[..., R]:
    """A decorator that compiles a function.

    The result is cached on disk, if a folder for it can be written.
    """
    import numba

    function.__qualname__ = f"{function.__name__}_{_digest()}"  # for numba's cache
    options = {"nogil": True, "error_model": "numpy", "boundscheck": False}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba has no folder to cache in
        return numba.njit(**options)(function)


def helper(fastmath: set[str]) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """A decorator for functions that kernels call.

    They keep their own fast-math flags, and become a part of the kernel.

    If they were called, a process that compiles the kernel would call other code than one that loads it from
    the cache, with differences in rounding.

    Args:
        fastmath: numba's fast-math flags.
    """
    import numba

    decorate: Callable[[Callable[..., R]], Callable[..., R]] = numba.njit(
        fastmath=fastmath,
        nogil=True,
        error_model="numpy",
        boundscheck=False,
        no_cpython_wrapper=True,
        no_cfunc_wrapper=True,
        forceinline=True,
    )
    return decorate
