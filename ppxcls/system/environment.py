"""Settings that must precede the import of Paddle. This module does not import it at its top."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import io
import os
import re
import sys
import warnings
from pathlib import Path

_INSTALL = (
    "ppxcls needs PaddlePaddle, which is not installed: pip install 'ppxcls[cpu]', "
    "or the build for your GPU or vendor chip that PaddlePaddle's installation guide names"
)
_OLDEST = (2, 6)
CPU_VARIABLES = ("OMP_NUM_THREADS", "KMP_BLOCKTIME", "MKL_DEBUG_CPU_TYPE")  # that ``prepare_cpu`` sets
# glibc's mallopt, malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP_BYTES = 1 << 30


class PaddleError(ImportError):
    """Paddle is missing, can't be imported, or is too old. The message is one line."""


def prepare_cpu() -> None:
    """Set up Paddle's CPU build for speed.

    Builds for other devices and variables that the user has set are left alone.

    - ``OMP_NUM_THREADS``: Paddle multiplies matrices on one thread unless it is set. The ranks of one machine
      share its cores.
    - ``MKL_DEBUG_CPU_TYPE=5`` on AMD: the bundled MKL then uses its AVX2 code, which it reserves for Intel
      otherwise.
    - ``KMP_BLOCKTIME=1``: Intel's OpenMP threads would spin for 200 ms after each operator, on the cores of
      the threads that decode images and that run this package's kernels. With 0, predictions of single images
      took 1.8 times as long.
    - ``mallopt``: without it, glibc returns the memory of every large tensor to the kernel, and each new
      tensor costs page faults.
    """
    if not _is_cpu_build():
        return
    if "paddle" in sys.modules:
        if os.environ.get("OMP_NUM_THREADS") == "1" and usable_cores() > 1:
            warnings.warn(
                "Paddle was imported before ppxcls and runs on one core: import ppxcls first", stacklevel=3
            )
        return
    ranks = int(os.environ.get("PADDLE_LOCAL_SIZE") or launched_world_size())
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // ranks)))
    os.environ.setdefault("KMP_BLOCKTIME", "1")
    if "AuthenticAMD" in _cpu_info():
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
    with contextlib.suppress(OSError, AttributeError):  # the C library is not glibc
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, _KEEP_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)


def launched_rank() -> int:
    """Rank of this process, as the launcher has set it; 0 without a launcher."""
    return int(os.environ.get("PADDLE_TRAINER_ID") or 0)


def launched_world_size() -> int:
    """Number of processes of the job, as the launcher has set it; 1 without a launcher."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM") or 1)


def usable_cores() -> int:
    """Number of cores that this process may use, by its affinity mask and a container's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def import_paddle() -> None:
    """Import Paddle without its messages at every start, about ``OMP_NUM_THREADS`` and ccache.

    Its warning in every training step, that batch norm tracks its statistics, is silenced as well.

    Raises:
        PaddleError: it is missing, can't be imported, or is too old.
    """
    warnings.filterwarnings("ignore", message="When training, we now always track global mean and variance")
    warnings.filterwarnings(
        "ignore", message=".* can only be enabled on CUDAPlace"
    )  # AMP on a CPU: set_precision says it
    warnings.filterwarnings(
        "ignore", message="Tensor do not have 'place' interface"
    )  # of to_static, by Paddle's own code
    if "paddle" in sys.modules:
        return
    if importlib.util.find_spec("paddle") is None:
        raise PaddleError(_INSTALL)
    os.environ.setdefault("GLOG_minloglevel", "1")  # without Paddle's own log lines, which are no warnings
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No ccache found")
            import paddle
    except (
        Exception
    ) as error:  # a library of CUDA or a vendor that is missing, another numpy: any class of error
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise PaddleError(f"PaddlePaddle is installed and can't be imported: {reason}") from error
    finally:
        for line in printed.getvalue().splitlines():
            if "OMP_NUM_THREADS" not in line:
                print(line, file=sys.stderr)
    if paddle_version() < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise PaddleError(f"ppxcls needs PaddlePaddle {oldest} or newer; {paddle.__version__} is installed")


def own_threads() -> int:
    """This process's threads on the CPU: ``OMP_NUM_THREADS``, or else one per core."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdigit() and int(wanted) > 0 else usable_cores()


def restore_threads() -> None:
    """Let Paddle's CPU operators use ``OMP_NUM_THREADS`` threads again.

    A predictor of Paddle Inference leaves them at one.
    """
    from paddle.base import core

    if os.environ.get("OMP_NUM_THREADS"):
        core.set_num_threads(own_threads())


def paddle_version() -> tuple[int, int]:
    """Major and minor version of Paddle. A build from its development branch, 0.0.0, counts as the newest."""
    import paddle

    numbers = [int(digits) for digits in re.findall(r"\d+", paddle.__version__)[:2]]
    return (99, 0) if numbers[:1] == [0] or len(numbers) < 2 else (numbers[0], numbers[1])


def installed_names() -> set[str]:
    """The names of the installed distributions, in lower case with hyphens."""
    return {
        d.metadata["Name"].lower().replace("_", "-")
        for d in importlib.metadata.distributions()
        if d.metadata["Name"]
    }


def paddle_builds(names: set[str]) -> set[str]:
    """Those of the names that are builds of Paddle, such as ``paddlepaddle-gpu``; several lie over each other."""
    return {name for name in names if name.split("-")[0] == "paddlepaddle"}


def _is_cpu_build() -> bool:
    names = installed_names()
    plugins = [
        n for n in names if n.startswith(("paddle-custom", "paddle-iluvatar", "paddle-metax"))
    ]  # beside the CPU build
    return paddle_builds(names) == {"paddlepaddle"} and not plugins


def _cpu_info() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
