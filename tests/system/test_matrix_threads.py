"""Threads of numpy's and scipy's matrix products."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from ppxcls.system.matrix_threads import one_matrix_thread


def thread_counts() -> list[int]:
    """Returns the number of threads of each library of matrix products."""
    threadpoolctl = pytest.importorskip("threadpoolctl")
    return [
        library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"
    ]


def test_one_thread_in_a_block_and_as_many_as_before_after_it() -> None:
    assert np.isfinite(np.ones((2, 2)) @ np.ones((2, 2))).all()
    before = thread_counts()
    with one_matrix_thread():
        assert set(thread_counts()) <= {1}
    assert thread_counts() == before
    with one_matrix_thread(is_needed=False):
        assert thread_counts() == before


def test_without_the_package_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    with one_matrix_thread():
        assert (np.ones((3, 2)) @ np.ones((2, 1)) == 2).all()
