"""Helpers of the CPU operators: conditions for their use, output sizes, access to a tensor's memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import paddle

from ppxcls.system import kernels
from ppxcls.system.arrays import Array

F = TypeVar("F", bound=Callable[..., Any])


def without_translation(function: F) -> F:
    """Marks a function that is traced to a static graph as it is.

    Paddle translates the code of every other function for each layer that has it. This is most of the time
    of an export, and needed only if a condition or a loop depends on a tensor.
    """
    return cast(F, paddle.jit.not_to_static(function))


def are_plain(*tensors: paddle.Tensor) -> bool:
    """True if these are eager float32 tensors on the CPU, and none is empty."""
    return paddle.in_dynamic_mode() and all(
        t.place.is_cpu_place() and t.dtype == paddle.float32 and 0 not in t.shape for t in tensors
    )


def applies_to(*tensors: paddle.Tensor) -> bool:
    """True if numba is installed and these are eager float32 tensors on the CPU, none of them empty."""
    return kernels.HAS_NUMBA and are_plain(*tensors)


def check_channels(expected: int, received: int) -> None:
    """Raises ValueError if an input's number of channels does not match the parameters."""
    if expected != received:
        raise ValueError(f"expected an input of {expected} channels, received {received}")


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """Returns a size as (y, x). One number is used for both sides."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def output_size(size: int, taps: int, *, padding: int, stride: int, dilation: int = 1) -> int:
    """Size of one side of the output of a convolution or a pool."""
    return (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1


class SavedTensor:
    """A tensor that the backward pass needs, with its version at the time of the forward pass."""

    def __init__(self, tensor: paddle.Tensor) -> None:
        self._tensor = tensor
        self._version = tensor.inplace_version

    def check(self) -> None:
        """Raises RuntimeError if the tensor was changed later, because the gradient would be wrong."""
        if self._tensor.inplace_version != self._version:
            raise RuntimeError(
                "a tensor that the backward pass needs was modified by an inplace operation"
                " after the forward pass"
            )


class _Memory:
    """Gives numpy access to the memory of a contiguous float32 tensor.

    numpy keeps this object, and so the tensor, alive as long as the array.
    """

    def __init__(self, tensor: paddle.Tensor) -> None:
        self._tensor = tensor
        data = tensor.data_ptr(), False
        self.__array_interface__ = {
            "data": data,
            "shape": tuple(tensor.shape),
            "typestr": np.dtype(np.float32).str,
            "version": 3,
        }


def view(tensor: paddle.Tensor) -> Array:
    """Returns a numpy array that shares the memory of a contiguous tensor.

    DLPack would give a read-only array with numpy 1. A tensor that is not contiguous is copied first.
    """
    return np.asarray(_Memory(tensor.detach().contiguous()))
