"""Kernels are compiled once on a host, and run on all threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ppxcls.system import kernels
from tests.conftest import ROOT

needs_numba = pytest.mark.skipif(not kernels.HAS_NUMBA, reason="numba is not installed")


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_each_part_is_computed_once(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[int, int, int]] = []
    monkeypatch.setattr(kernels, "_USED_KERNELS", _Everything())
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    kernels.run(lambda *numbers: ran.append(numbers), 11, 7)
    assert sorted(ran) == [(7, 11 * part // threads, 11 * (part + 1) // threads) for part in range(threads)]
    ran.clear()
    kernels.run(lambda *numbers: ran.append(numbers), 1, 7)
    assert ran == [(7, 0, 1)]


class _Everything:
    def __contains__(self, _: object) -> bool:
        return True


def test_an_error_of_any_part_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(failing: int, begin: int, end: int) -> None:
        if begin == failing:
            raise ValueError(f"{begin} to {end}")

    monkeypatch.setattr(kernels, "_USED_KERNELS", _Everything())
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    for failing in range(3):
        with pytest.raises(ValueError, match=f"^{failing} to {failing + 1}$"):
            kernels.run(kernel, 3, failing)


@needs_numba
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_after_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent's threads don't exist in a child process, which starts its own."""
    from ppxcls.data.normalize_kernels import normalize

    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    images, table = (
        np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3),
        np.arange(768, dtype=np.float32).reshape(3, 256),
    )
    out = [np.zeros((2, 3, 4, 4), np.float32) for _ in range(3)]
    for result in out[:2]:  # the second call starts threads
        kernels.run(normalize, 8, images, table, result)
    child = os.fork()
    if child == 0:
        kernels.run(normalize, 8, images, table, out[2])
        os._exit(0 if np.array_equal(out[0], out[2]) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@needs_numba
def test_processes_take_turns_at_compiling(tmp_path: Path) -> None:
    """Three processes start with an empty cache.

    One compiles a kernel, and the others load it from the cache.
    """
    code = """
import numpy as np, ppxcls
from ppxcls.data.normalize_kernels import normalize
from ppxcls.system import kernels
images, table, out = np.zeros((2, 4, 4, 3), np.uint8), np.zeros((3, 256), np.float32), np.zeros((2, 3, 4, 4), np.float32)
kernels.run(normalize, 8, images, table, out)
print(sum(normalize.stats.cache_misses.values()), sum(normalize.stats.cache_hits.values()))
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code]
    jobs = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    found = sorted(tuple(map(int, job.communicate(timeout=200)[0].split())) for job in jobs)
    assert found == [(0, 1), (0, 1), (1, 0)]
