"""Compiles numba kernels, once on a host, and runs them on all cores.

Modules named ``*_kernels`` contain the kernels. They import numba, which takes half a second and may be
missing. So a function that needs a kernel imports its module inside the function.
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
from typing import Any, TypeVar, cast

from ppxcls.system.environment import thread_count
from ppxcls.system.file_lock import locked
from ppxcls.system.variables import is_numba_off

R = TypeVar("R")

HAS_NUMBA = importlib.util.find_spec("numba") is not None and not is_numba_off(os.environ)
_COMPILE_LOCK = threading.Lock()  # one thread compiles at a time
_MAX_WAIT_SECONDS = 300.0  # seconds to wait for another process that compiles a kernel
_USED_KERNELS: set[Any] = set()  # kernels that this process has called, and so has compiled or loaded


def run(kernel: Callable[..., Any], count: int, *arguments: Any) -> None:
    """Runs a kernel on all threads; see ``call``.

    Args:
        kernel: function of ``arguments``, its first row, and the row after its last.
        count: number of independent rows, planes or channels. Each thread computes some of them.
        arguments: arguments before the rows.
    """
    part_count = min(thread_count(), count) or 1  # the number of threads that Paddle's operators use
    if kernel not in _USED_KERNELS:
        call(kernel, *arguments, 0, count)
        return
    compute = functools.partial(kernel, *arguments)
    bounds = [count * part // part_count for part in range(part_count + 1)]
    pool = _pool(os.getpid(), part_count - 1) if part_count > 1 else None
    futures = (
        [pool.submit(compute, *bounds[part : part + 2]) for part in range(1, part_count)] if pool else []
    )
    compute(*bounds[:2])
    for future in futures:
        future.result()


def call(kernel: Callable[..., R], *arguments: Any) -> R:
    """Calls a kernel.

    The first calls of a kernel on one host happen one after another: one process compiles it, and the others
    load it from the cache.
    """
    if kernel in _USED_KERNELS:
        return kernel(*arguments)
    folder = kernel.stats.cache_path  # type: ignore[attr-defined]  # None if there is no cache
    lock: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if folder and os.path.isdir(folder):
        lock = locked(Path(folder) / f"{kernel.__name__}.lock", max_seconds=_MAX_WAIT_SECONDS)
    with _COMPILE_LOCK, lock:
        result = kernel(*arguments)
    _USED_KERNELS.add(kernel)
    return result


@functools.cache
def _pool(process: int, count: int) -> ThreadPoolExecutor:
    """Returns the threads of a process. After a fork, the parent's threads do not exist in the child.

    Kernels release the interpreter's lock. numba's own threads would work too, but a kernel with them takes
    twice as long to compile.
    """
    return ThreadPoolExecutor(count, thread_name_prefix=f"kernels-{process}")


@functools.cache
def _digest() -> str:
    """Returns a digest of all kernels' sources and of this file, which contains their options.

    A kernel contains the helpers and constants of other files.
    """
    package = Path(__file__).resolve().parents[1]
    sources = [*sorted(package.glob("*/*_kernels.py")), package / "packed/jpeg_codes.py", Path(__file__)]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def numba_module() -> Any:
    """Returns numba, without the settings of a ``.numba_config.yaml`` in the current folder.

    numba reads this file when it is imported and before each compilation. A stranger's file could name a
    folder of compiled code.
    """
    import numba
    from numba.core import config

    if getattr(config, "_config_fname", os.devnull) != os.devnull:
        config._config_fname = os.devnull
        config.reload_config()
    return numba


def compile_kernel(function: Callable[..., R]) -> Callable[..., R]:
    """Compiles a function.

    The result is cached on disk if there is a folder that no other user can change.
    """
    from ppxcls.system.kernel_cache import KernelCache, kernel_cache_folder

    numba = numba_module()
    kernel: Any = numba.njit(nogil=True, error_model="numpy", boundscheck=False)(function)
    folder = kernel_cache_folder(Path(function.__code__.co_filename))
    if folder is not None:
        kernel._cache = KernelCache(function, folder, _digest())
    return cast(Callable[..., R], kernel)


def kernel_helper(fastmath: set[str]) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Returns a decorator for functions that kernels call.

    The functions keep their own fast-math flags, and become a part of the kernel.

    If they were called, a process that compiles the kernel would call other code than a process that loads it
    from the cache, with differences in rounding.

    Args:
        fastmath: numba's fast-math flags.
    """
    numba = numba_module()
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
