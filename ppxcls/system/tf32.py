"""TensorFloat-32, in which NVIDIA's GPUs from Ampere on compute float32 products.

Its products have 10 bits of mantissa instead of 23. Paddle allows it by default, for cuBLAS and for cuDNN.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import paddle

_LIBRARIES = ("cublas", "cudnn")


def _switches() -> dict[str, bool]:
    """Returns the state of each library's switch. CPU builds of Paddle 2.6 have no switches."""
    core = paddle.base.core
    return {
        library: getattr(core, f"get_{library}_switch")()
        for library in _LIBRARIES
        if hasattr(core, f"get_{library}_switch")
    }


def _set_switches(values: Mapping[str, bool]) -> None:
    for library, is_allowed in values.items():
        getattr(paddle.base.core, f"set_{library}_switch")(is_allowed)


def is_tf32_allowed() -> bool:
    """True if Paddle may use TensorFloat-32 on GPUs that have it."""
    return any(_switches().values())


@contextlib.contextmanager
def tf32_off() -> Iterator[None]:
    """Makes GPUs compute float32 products with 23 bits of mantissa inside the block."""
    values = _switches()
    _set_switches(dict.fromkeys(values, False))
    try:
        yield
    finally:
        _set_switches(values)
