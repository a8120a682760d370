"""Helpers of the CPU operators: when they apply, sizes of their outputs, access to a tensor's memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle

from ppxcls.system import kernels


def are_plain(*tensors: paddle.Tensor) -> bool:
    """Whether these are eager float32 tensors on the CPU."""
    return paddle.in_dynamic_mode() and all(
        t.place.is_cpu_place() and t.dtype == paddle.float32 and 0 not in t.shape for t in tensors
    )


def applies_to(*tensors: paddle.Tensor) -> bool:
    """Whether numba is installed and these are eager float32 tensors on the CPU."""
    return kernels.HAS_NUMBA and are_plain(*tensors)


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
            raise RuntimeError(
                "a tensor that the backward pass needs was modified by an inplace operation after the forward pass"
            )


class _Memory:
    """The memory of a contiguous float32 tensor, for numpy, which keeps this object alive as long as the array."""

    def __init__(self, tensor: paddle.Tensor) -> None:
        self._tensor = tensor
        data = tensor.data_ptr(), False
        self.__array_interface__ = {
            "data": data,
            "shape": tuple(tensor.shape),
            "typestr": np.dtype(np.float32).str,
            "version": 3,
        }


def view(tensor: paddle.Tensor) -> np.ndarray[Any, Any]:
    """A numpy array that shares the tensor's memory. DLPack would give a read-only one with numpy 1."""
    return np.asarray(_Memory(tensor.detach().contiguous()))
