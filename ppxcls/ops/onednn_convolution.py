"""Convolutions by the oneDNN library of ``onednn``, with whatever layouts it prefers inside."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import paddle

from ppxcls.ops import onednn
from ppxcls.ops.onednn import (
    FLOAT32,
    RESULT,
    SOURCE,
    WEIGHTS,
    Handle,
    Primitive,
    check,
    descriptor,
    strides_of,
)

_TRAINING, _DIRECT, _ANY = 64, 1, 1  # dnnl_prop_kind_t, dnnl_alg_kind_t, dnnl_format_tag_t


class _Role(NamedTuple):
    """A tensor of a convolution: its number as an argument, and the number to ask for its layout (dnnl_query_t)."""

    argument: int
    query: int
    is_result: bool = False


_INPUT, _KERNEL, _OUTPUT = _Role(SOURCE, 129), _Role(WEIGHTS, 131), _Role(RESULT, 133, True)
_OF_INPUT, _OF_KERNEL, _OF_OUTPUT = _Role(129, 130, True), _Role(161, 132, True), _Role(145, 134)
# By what is computed: the function that describes it, what it takes first, and the roles of input, kernel and
# output.
_KINDS = {
    "output": ("forward", (_TRAINING, _DIRECT), (_INPUT, _KERNEL, _OUTPUT)),
    "input": ("backward_data", (_DIRECT,), (_OF_INPUT, _KERNEL, _OF_OUTPUT)),
    "kernel": ("backward_weights", (_DIRECT,), (_INPUT, _OF_KERNEL, _OF_OUTPUT)),
}


class Sides(NamedTuple):
    """Of a convolution, each (y, x)."""

    stride: tuple[int, int]
    padding: tuple[int, int]


def convolve(what: str, tensors: Sequence[paddle.Tensor], sides: Sides, kind: int) -> None:
    """Compute a convolution or one of its gradients.

    Args:
        what: "output", or "input" or "kernel" for the gradient with respect to it; this tensor is written.
        tensors: the input, float32 [N, C, H, W], the kernel, float32 [C', C, KH, KW], and the output, or
            their gradients.
        sides: stride and padding.
        kind: type of the factors inside, ``FLOAT32`` or ``BFLOAT16``; sums are in float32.
    """
    _convolution(what, tuple(tuple(tensor.shape) for tensor in tensors), sides, kind)(tensors)


@functools.lru_cache(maxsize=64)
def _convolution(
    what: str, shapes: tuple[tuple[int, ...], ...], sides: Sides, kind: int
) -> _CompiledConvolution:
    return _CompiledConvolution(what, shapes, sides, kind)


class _CompiledConvolution:
    """A compiled convolution, with a copy for each tensor that is to have another layout."""

    def __init__(self, what: str, shapes: Sequence[tuple[int, ...]], sides: Sides, kind: int) -> None:
        name, first, self._roles = _KINDS[what]
        library, made = onednn.load(), Handle()
        pair = ctypes.c_int64 * 2
        numbers = pair(*sides.stride), pair(0, 0), pair(*sides.padding), pair(*sides.padding)
        wanted = [
            _of_any_layout(shape, FLOAT32 if r.is_result else kind)
            for shape, r in zip(shapes, self._roles, strict=True)
        ]
        bias_and_output = (Handle(), wanted[2]) if what != "input" else (wanted[2],)
        hint = () if what == "output" else (Handle(),)
        create = getattr(library, f"dnnl_convolution_{name}_primitive_desc_create")
        check(
            create(
                ctypes.byref(made),
                library.engine,
                *first,
                *wanted[:2],
                *bias_and_output,
                *numbers,
                *hint,
                Handle(),
            )
        )
        for given in wanted:
            library.dnnl_memory_desc_destroy(given)
        layouts = [_queried(made, role.query) for role in self._roles]
        self._bytes = [library.dnnl_memory_desc_get_size(layout) for layout in layouts]
        self._copies = [
            _copy(shape, layout, r.is_result)
            for shape, layout, r in zip(shapes, layouts, self._roles, strict=True)
        ]
        self._run = Primitive(made, layouts, [role.argument for role in self._roles])

    def __call__(self, tensors: Sequence[paddle.Tensor]) -> None:
        own = [
            tensor if copy is None else paddle.empty([size], "uint8")
            for tensor, copy, size in zip(tensors, self._copies, self._bytes, strict=True)
        ]
        pairs = list(zip(self._roles, self._copies, tensors, own, strict=True))
        for role, copy, tensor, inside in pairs:
            if copy is not None and not role.is_result:
                copy(tensor.data_ptr(), inside.data_ptr())
        self._run(*[tensor.data_ptr() for tensor in own])
        for role, copy, tensor, inside in pairs:
            if copy is not None and role.is_result:
                copy(inside.data_ptr(), tensor.data_ptr())


def _of_any_layout(dims: Sequence[int], kind: int) -> Any:
    made = Handle()
    check(
        onednn.load().dnnl_memory_desc_create_with_tag(
            ctypes.byref(made), len(dims), (ctypes.c_int64 * len(dims))(*dims), kind, _ANY
        )
    )
    return made


def _queried(description: Any, query: int) -> Any:
    """A copy of the descriptor that a primitive's description wants."""
    library, made = onednn.load(), Handle()
    wanted = library.dnnl_primitive_desc_query_md(description, query, 0)
    check(library.dnnl_memory_desc_clone(ctypes.byref(made), Handle(wanted)))
    return made


def _copy(shape: tuple[int, ...], layout: Any, is_result: bool) -> Primitive | None:
    """Between contiguous float32 and a layout; None if they are the same."""
    library, own = onednn.load(), Handle()
    plain = descriptor(shape, strides_of(shape), FLOAT32)
    if library.dnnl_memory_desc_equal(plain, layout):
        library.dnnl_memory_desc_destroy(plain)
        return None
    check(library.dnnl_memory_desc_clone(ctypes.byref(own), layout))
    return onednn.reorder(own, plain) if is_result else onednn.reorder(plain, own)
