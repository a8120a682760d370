"""Threads of numpy's and scipy's matrix products."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def one_matrix_thread(*, is_needed: bool = True) -> Iterator[None]:
    """Lets numpy and scipy multiply matrices on one thread in a block, if threadpoolctl is installed.

    OpenBLAS's threads wait for each other busily, for some milliseconds if another process or Paddle's
    threads have a core. So small products took 30 times as long with two threads as with one.

    Args:
        is_needed: False to change nothing.
    """
    limits: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if is_needed:
        with contextlib.suppress(ImportError):
            from threadpoolctl import threadpool_limits

            limits = threadpool_limits(1, "blas")
    with limits:
        yield
