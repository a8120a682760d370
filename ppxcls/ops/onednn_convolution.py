"""Convolutions by the oneDNN library of ``onednn``, which chooses the memory layouts inside."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import paddle

from ppxcls.ops import onednn
from ppxcls.ops.onednn import (
    FLOAT32,
    RESULT_ARGUMENT,
    SOURCE_ARGUMENT,
    WEIGHTS_ARGUMENT,
    Handle,
    Primitive,
    check_status,
    descriptor,
    strides_of,
)

_TRAINING, _DIRECT, _ANY = 64, 1, 1  # dnnl_prop_kind_t, dnnl_alg_kind_t, dnnl_format_tag_t


class _Role(NamedTuple):
    """A tensor of a convolution.

    Attributes:
        argument: number of the tensor's argument.
        query: number that queries the tensor's layout (dnnl_query_t).
        is_result: True if the convolution writes the tensor.
    """

    argument: int
    query: int
    is_result: bool = False


_INPUT, _KERNEL, _OUTPUT = (
    _Role(SOURCE_ARGUMENT, 129),
    _Role(WEIGHTS_ARGUMENT, 131),
    _Role(RESULT_ARGUMENT, 133, is_result=True),
)
_INPUT_GRADIENT, _KERNEL_GRADIENT, _OUTPUT_GRADIENT = (
    _Role(129, 130, is_result=True),
    _Role(161, 132, is_result=True),
    _Role(145, 134),
)
# For each result: the function that describes its computation, the first arguments of this function, and the
# roles of input, kernel and output.
_COMPUTATIONS = {
    "output": ("forward", (_TRAINING, _DIRECT), (_INPUT, _KERNEL, _OUTPUT)),
    "input": ("backward_data", (_DIRECT,), (_INPUT_GRADIENT, _KERNEL, _OUTPUT_GRADIENT)),
    "kernel": ("backward_weights", (_DIRECT,), (_INPUT, _KERNEL_GRADIENT, _OUTPUT_GRADIENT)),
}


class Sides(NamedTuple):
    """Stride and padding of a convolution, each (y, x)."""

    stride: tuple[int, int]
    padding: tuple[int, int]


def convolve_dense(target: str, tensors: Sequence[paddle.Tensor], sides: Sides, kind: int) -> None:
    """Computes a convolution or one of its gradients.

    Args:
        target: tensor to write: "output", or "input" or "kernel" for the gradient with respect to it.
        tensors: input, float32 [N, C, H, W], kernel, float32 [C', C, KH, KW], and output, or their gradients.
        sides: stride and padding.
        kind: type of the factors inside, ``FLOAT32`` or ``BFLOAT16``. Sums are in float32.
    """
    _convolution(target, tuple(tuple(tensor.shape) for tensor in tensors), sides, kind)(tensors)


@functools.lru_cache(maxsize=64)
def _convolution(
    target: str, shapes: tuple[tuple[int, ...], ...], sides: Sides, kind: int
) -> _CompiledConvolution:
    return _CompiledConvolution(target, shapes, sides, kind)


class _CompiledConvolution:
    """A compiled convolution, with a copy for each tensor that needs another layout."""

    def __init__(self, target: str, shapes: Sequence[tuple[int, ...]], sides: Sides, kind: int) -> None:
        name, first_arguments, self._roles = _COMPUTATIONS[target]
        library, description = onednn.load_library(), Handle()
        pair = ctypes.c_int64 * 2
        geometry = pair(*sides.stride), pair(0, 0), pair(*sides.padding), pair(*sides.padding)
        requested_layouts = [
            _any_layout_descriptor(shape, FLOAT32 if r.is_result else kind)
            for shape, r in zip(shapes, self._roles, strict=True)
        ]
        bias_and_output = (Handle(), requested_layouts[2]) if target != "input" else (requested_layouts[2],)
        hint = () if target == "output" else (Handle(),)
        create = getattr(library, f"dnnl_convolution_{name}_primitive_desc_create")
        check_status(
            create(
                ctypes.byref(description),
                library.engine,
                *first_arguments,
                *requested_layouts[:2],
                *bias_and_output,
                *geometry,
                *hint,
                Handle(),
            )
        )
        for requested_layout in requested_layouts:
            library.dnnl_memory_desc_destroy(requested_layout)
        layouts = [_query_descriptor(description, role.query) for role in self._roles]
        self._bytes = [library.dnnl_memory_desc_get_size(layout) for layout in layouts]
        self._copies = [
            _copy(shape, layout, is_result=r.is_result)
            for shape, layout, r in zip(shapes, layouts, self._roles, strict=True)
        ]
        self._primitive = Primitive(description, layouts, [role.argument for role in self._roles])

    def __call__(self, tensors: Sequence[paddle.Tensor]) -> None:
        buffers = [
            tensor if copy is None else paddle.empty([size], "uint8")
            for tensor, copy, size in zip(tensors, self._copies, self._bytes, strict=True)
        ]
        operands = list(zip(self._roles, self._copies, tensors, buffers, strict=True))
        for role, copy, tensor, buffer in operands:
            if copy is not None and not role.is_result:
                copy(tensor.data_ptr(), buffer.data_ptr())
        self._primitive(*[tensor.data_ptr() for tensor in buffers])
        for role, copy, tensor, buffer in operands:
            if copy is not None and role.is_result:
                copy(buffer.data_ptr(), tensor.data_ptr())


def _any_layout_descriptor(dims: Sequence[int], kind: int) -> Any:
    handle = Handle()
    check_status(
        onednn.load_library().dnnl_memory_desc_create_with_tag(
            ctypes.byref(handle), len(dims), (ctypes.c_int64 * len(dims))(*dims), kind, _ANY
        )
    )
    return handle


def _query_descriptor(description: Any, query: int) -> Any:
    """Returns a copy of a memory descriptor that a primitive's description requires."""
    library, duplicate = onednn.load_library(), Handle()
    source = library.dnnl_primitive_desc_query_md(description, query, 0)
    check_status(library.dnnl_memory_desc_clone(ctypes.byref(duplicate), Handle(source)))
    return duplicate


def _copy(shape: tuple[int, ...], layout: Any, *, is_result: bool) -> Primitive | None:
    """Compiles a copy between contiguous float32 and a layout; None if they are the same."""
    library, layout_copy = onednn.load_library(), Handle()
    float32_layout = descriptor(shape, strides_of(shape), FLOAT32)
    if library.dnnl_memory_desc_equal(float32_layout, layout):
        library.dnnl_memory_desc_destroy(float32_layout)
        return None
    check_status(library.dnnl_memory_desc_clone(ctypes.byref(layout_copy), layout))
    return (
        onednn.reorder(layout_copy, float32_layout)
        if is_result
        else onednn.reorder(float32_layout, layout_copy)
    )
