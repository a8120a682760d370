"""Makes settings that must precede the import of Paddle. This module does not import it at its top."""

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

from ppxcls.system.errors import UserError

_INSTALL_MESSAGE = (
    "ppxcls needs PaddlePaddle, which is not installed: pip install 'ppxcls[cpu]', "
    "or the build for your GPU or vendor chip that PaddlePaddle's installation guide names"
)
_MIN_PADDLE_VERSION = (2, 6)
CPU_VARIABLES = ("OMP_NUM_THREADS", "KMP_BLOCKTIME", "MKL_DEBUG_CPU_TYPE")  # set by ``prepare_cpu``
# parameters of glibc's mallopt, from malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MALLOC_THRESHOLD_BYTES = 1 << 30


class PaddleError(UserError, ImportError):
    """Paddle is missing, can't be imported, or is too old. The message is one line."""


def prepare_cpu() -> None:
    """Sets up Paddle's CPU build for speed.

    Builds for other devices and variables that the user has set are not changed.

    - ``OMP_NUM_THREADS``: Paddle multiplies matrices on one thread unless it is set. The ranks of one machine
      share its cores.
    - ``MKL_DEBUG_CPU_TYPE=5`` on AMD: the bundled MKL then uses its AVX2 code. Otherwise it uses that on
      Intel only.
    - ``KMP_BLOCKTIME=1``: without it, Intel's OpenMP threads spin for 200 ms after each operator. They then
      block the cores for the threads that decode images and run this package's kernels. With 0, predictions
      of single images took 1.8 times as long.
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
    os.environ.setdefault("OMP_NUM_THREADS", str(cores_per_rank()))
    os.environ.setdefault("KMP_BLOCKTIME", "1")
    if "AuthenticAMD" in _cpu_info():
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
    with contextlib.suppress(OSError, AttributeError):  # the C library is not glibc
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, _MALLOC_THRESHOLD_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _MALLOC_THRESHOLD_BYTES)


def launched_rank() -> int:
    """Returns the rank of this process, as set by the launcher; 0 without a launcher."""
    return int(os.environ.get("PADDLE_TRAINER_ID") or 0)


def launched_world_size() -> int:
    """Returns the number of processes of the job, as set by the launcher; 1 without a launcher."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM") or 1)


def cores_per_rank() -> int:
    """Returns the number of this machine's usable cores for each of the job's processes on it, at least 1."""
    ranks = int(os.environ.get("PADDLE_LOCAL_SIZE") or launched_world_size())
    return max(1, usable_cores() // ranks)


def usable_cores() -> int:
    """Returns the number of cores that this process may use.

    The limits are its affinity mask and a container's CPU quota.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def import_paddle() -> None:
    """Imports Paddle without its messages at every start, about ``OMP_NUM_THREADS`` and ccache.

    Also silences its warning in every training step that batch norm tracks its statistics.

    Raises:
        PaddleError: Paddle is missing, can't be imported, or is too old.
    """
    warnings.filterwarnings("ignore", message="When training, we now always track global mean and variance")
    # caused by Paddle's own code in to_static
    warnings.filterwarnings("ignore", message="Tensor do not have 'place' interface")
    if "paddle" in sys.modules:
        return
    if importlib.util.find_spec("paddle") is None:
        raise PaddleError(_INSTALL_MESSAGE)
    os.environ.setdefault("GLOG_minloglevel", "1")  # hides Paddle's log lines below the level of warnings
    stderr_text = io.StringIO()
    try:
        from ppxcls.system.signals import interrupts_deferred, termination_kept

        # Inside the import of Paddle's library, a Ctrl-C turns into an ImportError.
        with interrupts_deferred(), contextlib.redirect_stderr(stderr_text), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No ccache found")
            with termination_kept():
                import paddle
    except Exception as error:
        # A missing library of CUDA or a vendor, or another numpy, can raise any class of error.
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if isinstance(error, OSError) and error.filename is not None:
            reason += f"; HOME is {os.environ.get('HOME')!r}: expected a folder that can be written to"
        raise PaddleError(f"PaddlePaddle is installed and can't be imported: {reason}") from error
    finally:
        for line in stderr_text.getvalue().splitlines():
            if "OMP_NUM_THREADS" not in line:
                print(line, file=sys.stderr)
    if paddle_version() < _MIN_PADDLE_VERSION:
        min_version = ".".join(map(str, _MIN_PADDLE_VERSION))
        raise PaddleError(
            f"ppxcls needs PaddlePaddle {min_version} or newer; {paddle.__version__} is installed"
        )


def thread_count() -> int:
    """Returns the number of this process's CPU threads: ``OMP_NUM_THREADS``, or else one per core."""
    setting = os.environ.get("OMP_NUM_THREADS", "")
    return int(setting) if setting.isdigit() and int(setting) > 0 else usable_cores()


def restore_threads() -> None:
    """Lets Paddle's CPU operators use ``OMP_NUM_THREADS`` threads again.

    A predictor of Paddle Inference leaves them at one.
    """
    from paddle.base import core

    if os.environ.get("OMP_NUM_THREADS"):
        core.set_num_threads(thread_count())


def paddle_version() -> tuple[int, int]:
    """Returns the major and minor version of Paddle.

    A build of its development branch, 0.0.0, counts as the newest version.
    """
    import paddle

    numbers = [int(digits) for digits in re.findall(r"\d+", paddle.__version__)[:2]]
    return (99, 0) if numbers[:1] == [0] or len(numbers) < 2 else (numbers[0], numbers[1])


def installed_names() -> set[str]:
    """Returns the names of the installed distributions, in lower case with hyphens."""
    return {
        d.metadata["Name"].lower().replace("_", "-")
        for d in importlib.metadata.distributions()
        if d.metadata["Name"]
    }


def paddle_builds(names: set[str]) -> set[str]:
    """Returns the names that are builds of Paddle, such as ``paddlepaddle-gpu``.

    If several are installed, they overwrite one another's files.
    """
    return {name for name in names if name.split("-")[0] == "paddlepaddle"}


def _is_cpu_build() -> bool:
    names = installed_names()
    # Plugins for other devices are installed beside the CPU build.
    plugins = [n for n in names if n.startswith(("paddle-custom", "paddle-iluvatar", "paddle-metax"))]
    return paddle_builds(names) == {"paddlepaddle"} and not plugins


def _cpu_info() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
