"""Matrix products and copies by oneDNN, a library in Paddle's CPU builds, called through its C interface.

On the CPU, Paddle multiplies image by image and has no bfloat16 product. The library can multiply whole
batches, also in bfloat16. Interface: oneDNN 3, ``dnnl.h``.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import paddle

FLOAT32, BFLOAT16 = 3, 2  # dnnl_data_type_t
_CPU, _IN_ORDER = 1, 1  # dnnl_engine_kind_t; dnnl_stream_flags_t
SOURCE_ARGUMENT, RESULT_ARGUMENT, WEIGHTS_ARGUMENT = 1, 17, 33  # numbers of a primitive's arguments
_MAJOR_VERSION = 3  # version of oneDNN that has these functions
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}

Handle = ctypes.c_void_p
_LOCK = threading.Lock()  # lets one thread at a time set a primitive's addresses and execute it


class Operand(NamedTuple):
    """A matrix in memory, or several of them.

    Attributes:
        address: address of the first number.
        dims: size of each axis.
        strides: distance along each axis, in numbers.
        kind: type of the numbers, ``FLOAT32`` or ``BFLOAT16``.
    """

    address: int
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    kind: int = FLOAT32

    @property
    def shape(self) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """Sizes, strides and type, for which a primitive is compiled."""
        return self.dims, self.strides, self.kind


class _Argument(ctypes.Structure):
    _fields_ = (("number", ctypes.c_int), ("memory", Handle))


class _Version(ctypes.Structure):
    _fields_ = (("major", ctypes.c_int), ("minor", ctypes.c_int), ("patch", ctypes.c_int))


@functools.cache
def load_library() -> Any:
    """Returns oneDNN of the installed Paddle, with an engine and a stream.

    Returns None if there is no library of the expected version.
    """
    try:
        (file,) = (Path(paddle.__file__).parent / "libs").glob("libdnnl.so*")
        library: Any = ctypes.CDLL(str(file))
        library.dnnl_version.restype = ctypes.POINTER(_Version)
        if library.dnnl_version().contents.major != _MAJOR_VERSION:
            return None
        library.dnnl_memory_desc_get_size.restype = ctypes.c_size_t  # the default, int, is too short
        library.dnnl_primitive_desc_query_md.restype = Handle
        engine, stream = Handle(), Handle()
        check_status(library.dnnl_engine_create(ctypes.byref(engine), _CPU, ctypes.c_size_t(0)))
        check_status(library.dnnl_stream_create(ctypes.byref(stream), engine, _IN_ORDER))
    except (OSError, ValueError, AttributeError, RuntimeError):
        return None
    library.engine = engine
    library.stream = stream
    return library


def is_available() -> bool:
    """True if the library can be used."""
    return load_library() is not None


@functools.cache
def has_bfloat16() -> bool:
    """True if the library and the processor (AVX512-BF16 or AMX) can multiply bfloat16."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    if not is_available() or not _BFLOAT16_FLAGS & set(flags):
        return False
    factors, result = paddle.zeros([2, 2], "int16"), paddle.empty([2, 2], "float32")
    try:  # ONEDNN_MAX_CPU_ISA may forbid it
        factor = Operand(factors.data_ptr(), (2, 2), (2, 1), BFLOAT16)
        multiply(factor, factor, Operand(result.data_ptr(), (2, 2), (2, 1)))
    except RuntimeError:
        return False
    return True


def strides_of(dims: Sequence[int]) -> tuple[int, ...]:
    """Strides of contiguous memory, in numbers."""
    strides = [1]
    for size in reversed(dims[1:]):
        strides.insert(0, strides[0] * size)
    return tuple(strides)


def multiply(a: Operand, b: Operand, out: Operand) -> None:
    """Computes ``out = a b``.

    If there are three dimensions, the first one counts the products. Size 1 there uses the same matrix in all
    products.
    """
    _product(a.shape, b.shape, out.shape)(a.address, b.address, out.address)


def copy(source: Operand, target: Operand) -> None:
    """Copies numbers between layouts and types. Both operands have the same dimensions."""
    _reorder(source.shape, target.shape)(source.address, target.address)


@functools.lru_cache(maxsize=512)
def _product(a: Any, b: Any, out: Any) -> Primitive:
    shapes = [descriptor(*shape) for shape in (a, b, out)]
    library, description = load_library(), Handle()
    check_status(
        library.dnnl_matmul_primitive_desc_create(
            ctypes.byref(description), library.engine, shapes[0], shapes[1], Handle(), shapes[2], Handle()
        )
    )
    return Primitive(description, shapes, (SOURCE_ARGUMENT, WEIGHTS_ARGUMENT, RESULT_ARGUMENT))


@functools.lru_cache(maxsize=512)
def _reorder(source: Any, target: Any) -> Primitive:
    return reorder(descriptor(*source), descriptor(*target))


def reorder(source: Any, target: Any) -> Primitive:
    """Compiles a copy between the layouts and types of two descriptors.

    The copy destroys the descriptors when it is deleted.
    """
    library, description = load_library(), Handle()
    check_status(
        library.dnnl_reorder_primitive_desc_create(
            ctypes.byref(description), source, library.engine, target, library.engine, Handle()
        )
    )
    return Primitive(description, (source, target), (SOURCE_ARGUMENT, RESULT_ARGUMENT))


def descriptor(dims: tuple[int, ...], strides: tuple[int, ...], kind: int) -> Any:
    """Memory descriptor with these sizes, strides and type.

    The stride of an axis of size 1 has no meaning, but a product reads other memory if it is less than a row.
    """
    strides = tuple(
        max(stride, dims[i + 1] * strides[i + 1]) if dims[i] == 1 and i + 1 < len(dims) else stride
        for i, stride in enumerate(strides)
    )
    array_type, handle = ctypes.c_int64 * len(dims), Handle()
    check_status(
        load_library().dnnl_memory_desc_create_with_strides(
            ctypes.byref(handle), len(dims), array_type(*dims), kind, array_type(*strides)
        )
    )
    return handle


class Primitive:
    """A compiled operation, its memory objects, and their descriptors."""

    def __init__(self, description: Any, descriptors: Sequence[Any], numbers: Sequence[int]) -> None:
        self._library = library = load_library()
        self._descriptors = descriptors
        self._primitive = Handle()
        self._memories = []
        check_status(library.dnnl_primitive_create(ctypes.byref(self._primitive), description))
        check_status(library.dnnl_primitive_desc_destroy(description))
        self._memories = [Handle() for _ in descriptors]
        for memory, layout in zip(self._memories, descriptors, strict=True):
            check_status(library.dnnl_memory_create(ctypes.byref(memory), layout, library.engine, Handle(0)))
        self._arguments = (_Argument * len(numbers))(
            *[_Argument(n, m) for n, m in zip(numbers, self._memories, strict=True)]
        )

    def __call__(self, *addresses: int) -> None:
        library = self._library
        with _LOCK:
            for memory, address in zip(self._memories, addresses, strict=True):
                check_status(library.dnnl_memory_set_data_handle(memory, Handle(address)))
            check_status(
                library.dnnl_primitive_execute(
                    self._primitive, library.stream, len(self._arguments), self._arguments
                )
            )
            check_status(library.dnnl_stream_wait(library.stream))

    def __del__(self) -> None:
        if sys.is_finalizing():  # the library may be unloaded already
            return
        library = self._library
        library.dnnl_primitive_destroy(self._primitive)
        for memory in self._memories:
            library.dnnl_memory_destroy(memory)
        for layout in self._descriptors:
            library.dnnl_memory_desc_destroy(layout)


def check_status(status: int) -> None:
    """Raises RuntimeError if the status of a call is not 0."""
    if status:
        raise RuntimeError(f"a oneDNN call failed with status {status}")
