"""What the CPU's operators share: when they apply, how they see a tensor's memory, how their kernels are compiled and run."""

from __future__ import annotations

import importlib
import importlib.util
import os
import threading
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import paddle

HAS_NUMBA = importlib.util.find_spec("numba") is not None
# numba's portable threading layer does not survive two threads entering a parallel kernel at once.
_LOCK = threading.Lock()


def applies_to(*tensors: paddle.Tensor) -> bool:
    """Whether numba is installed and these are eager float32 tensors on the CPU."""
    return (
        HAS_NUMBA
        and paddle.in_dynamic_mode()
        and all(t.place.is_cpu_place() and t.dtype == paddle.float32 and 0 not in t.shape for t in tensors)
    )


def view(tensor: paddle.Tensor) -> np.ndarray[Any, Any]:
    """The tensor's memory as a numpy array, not copied."""
    return np.from_dlpack(tensor.detach().contiguous())


def run(module: str, kernel: str, *arguments: Any) -> None:
    """Run a kernel of a module of this folder, which is imported on first use: numba takes half a second."""
    with _LOCK:
        _set_threads()
        getattr(importlib.import_module(f"ppxcls.ops.{module}"), kernel)(*arguments)


def _set_threads() -> None:
    """As many threads as Paddle's own kernels use (``OMP_NUM_THREADS``, which ranks on one machine share out)."""
    import numba

    wanted = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(wanted) if wanted.isdigit() and int(wanted) > 0 else numba.config.NUMBA_NUM_THREADS
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))


def compiled(function: Callable[..., Any], name: str, fastmath: set[str]) -> Callable[..., Any]:
    """Compile for parallel use; cached on disk unless neither the package nor the user's cache folder can be written.

    Args:
        name: numba's cache tells functions apart by their name, not by the options they are compiled with.
        fastmath: the liberties LLVM may take.
    """
    import numba

    function = types.FunctionType(function.__code__, function.__globals__, name)
    function.__qualname__ = name
    options = {"parallel": True, "fastmath": fastmath, "nogil": True, "error_model": "numpy", "boundscheck": False}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba found no folder to cache in
        return numba.njit(**options)(function)
