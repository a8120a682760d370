"""Helpers of the CPU operators: when they apply, access to a tensor's memory, compiling and running kernels."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from ppxcls.system.environment import own_threads
from ppxcls.system.turns import turn

HAS_NUMBA = importlib.util.find_spec("numba") is not None
_LOCK = threading.Lock()  # one thread compiles a kernel
_HAVE_RUN: set[tuple[str, str]] = set()  # modules and kernels


def are_plain(*tensors: paddle.Tensor) -> bool:
    """Whether these are eager float32 tensors on the CPU."""
    return paddle.in_dynamic_mode() and all(
        t.place.is_cpu_place() and t.dtype == paddle.float32 and 0 not in t.shape for t in tensors
    )


def applies_to(*tensors: paddle.Tensor) -> bool:
    """Whether numba is installed and these are eager float32 tensors on the CPU."""
    return HAS_NUMBA and are_plain(*tensors)


def check_channels(expected: int, received: int) -> None:
    """Raise ValueError if an input has another number of channels than the parameters."""
    if expected != received:
        raise ValueError(f"expected an input of {expected} channels, received {received}")


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """A size of both sides, or one for each, as (y, x)."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def output_size(size: int, taps: int, padding: int, stride: int, dilation: int = 1) -> int:
    """Of one side of a convolution's or a pool's output."""
    return (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1


class Kept:
    """The state of a tensor that is kept for the backward pass."""

    def __init__(self, tensor: paddle.Tensor) -> None:
        self._tensor, self._version = tensor, tensor.inplace_version

    def check(self) -> None:
        """Raise RuntimeError if it was changed since, because the gradient would be wrong."""
        if self._tensor.inplace_version != self._version:
            raise RuntimeError("a tensor that the backward pass needs was modified by an inplace operation after the forward pass")


class _Memory:
    """The memory of a contiguous float32 tensor, for numpy, which keeps this object alive as long as the array."""

    def __init__(self, tensor: paddle.Tensor) -> None:
        self._tensor = tensor
        data = tensor.data_ptr(), False
        self.__array_interface__ = {"data": data, "shape": tuple(tensor.shape), "typestr": np.dtype(np.float32).str, "version": 3}


def view(tensor: paddle.Tensor) -> np.ndarray[Any, Any]:
    """A numpy array that shares the tensor's memory. DLPack would give a read-only one with numpy 1."""
    return np.asarray(_Memory(tensor.detach().contiguous()))


def run(module: str, kernel: str, count: int, *arguments: Any) -> None:
    """Run a kernel of a module in this folder, on all threads; see ``call``.

    Args:
        module: its name.
        kernel: name of the kernel.
        count: number of rows, planes or channels that do not depend on each other; each thread computes some.
        arguments: of the kernel, without its last two: the first of its rows, and the one after its last.
    """
    parts = min(own_threads(), count) or 1  # as many as Paddle's own operators use
    if (module, kernel) not in _HAVE_RUN:
        call(module, kernel, *arguments, 0, count)
        return
    compute = functools.partial(_loaded(module, kernel), *arguments)
    bounds = [count * part // parts for part in range(parts + 1)]
    others = [_pool(os.getpid(), parts - 1).submit(compute, *bounds[part : part + 2]) for part in range(1, parts)]
    compute(*bounds[:2])
    for other in others:
        other.result()


def call(module: str, kernel: str, *arguments: Any) -> Any:
    """Call a kernel of a module in this folder, which is imported at first use, because numba takes half a second.

    The processes of a host take turns at a kernel's first call: one compiles it, and the others load it from numba's cache.
    """
    function = _loaded(module, kernel)
    if (module, kernel) in _HAVE_RUN:
        return function(*arguments)
    folder = function.stats.cache_path  # None if numba found no folder
    with _LOCK, turn(Path(folder) / f"{kernel}.lock") if folder and os.path.isdir(folder) else contextlib.nullcontext():
        result = function(*arguments)
    _HAVE_RUN.add((module, kernel))
    return result


def _loaded(module: str, kernel: str) -> Any:
    return getattr(importlib.import_module(f"ppxcls.ops.{module}"), kernel)


@functools.cache
def _pool(process: int, count: int) -> ThreadPoolExecutor:
    """Threads of a process; those of its parent are not there after a fork.

    Kernels don't hold the interpreter's lock. numba's own threads would do, but a kernel with them takes twice as long to compile.
    """
    return ThreadPoolExecutor(count, thread_name_prefix=f"kernels-{process}")


@functools.cache
def _digest() -> str:
    """Of all kernels' sources and of this file, which has their options: numba's cache sees changes of a kernel's own file only."""
    sources = [*sorted(Path(__file__).parent.glob("*_kernels.py")), Path(__file__)]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:8]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that compiles a function. The result is cached on disk, if a folder for it can be written."""
    import numba

    function.__qualname__ = f"{function.__name__}_{_digest()}"  # for numba's cache
    options = {"nogil": True, "error_model": "numpy", "boundscheck": False}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba found no folder to cache in
        return numba.njit(**options)(function)


def helper(fastmath: set[str]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator for functions that kernels call. They keep their own fast-math flags, and become a part of the kernel.

    If they were called, a process that compiles the kernel would call other code than one that loads it from the cache, with
    differences in rounding.
    """
    import numba

    decorate: Callable[[Callable[..., Any]], Callable[..., Any]] = numba.njit(
        fastmath=fastmath,
        nogil=True,
        error_model="numpy",
        boundscheck=False,
        no_cpython_wrapper=True,
        no_cfunc_wrapper=True,
        forceinline=True,
    )
    return decorate
