"""Checks the environment variables that this package and its libraries read.

A library may end the process, print a traceback or hang if it does not understand a value, and its message
does not name the variable. So the values are checked before a library reads them. This module imports none.
"""

from __future__ import annotations

import functools
import os
import re
import string
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass

from ppxcls.system.atomic_files import read_regular, reason_of
from ppxcls.system.errors import UserError
from ppxcls.system.paths import bounded

MAX_PROCESSES = 100_000
_MAX_THREADS = max(1024, 4 * (os.cpu_count() or 1))
_MAX_STACK_BYTES = 4 << 30  # systems for other programs set such sizes
_MAX_SHOWN_VALUE = 120  # characters of a value in a message
_NUMBA_SWITCH = "NUMBA_DISABLE_JIT"
_NUMBA_FILE = ".numba_config.yaml"  # numba reads it from the current folder
_MAX_NUMBA_FILE_BYTES = 1 << 16
_SIZE_UNITS = {"": 1 << 10, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}  # OpenMP's; without one, KiB


class VariableError(UserError):
    """An environment variable has a value that its reader does not understand."""


@dataclass(frozen=True)
class Expectation:
    """What a variable may be.

    Attributes:
        text: description for the message.
        is_valid: function of a value that returns True if its reader understands it.
    """

    text: str
    is_valid: Callable[[str], bool]


def _number(low: int, high: int) -> Expectation:
    def is_valid(value: str) -> bool:
        return re.fullmatch(r"-?[0-9]{1,20}", value) is not None and low <= int(value) <= high

    return Expectation(f"a whole number from {low} to {high}", is_valid)


def _pattern(text: str, pattern: str) -> Expectation:
    return Expectation(text, lambda value: re.fullmatch(pattern, value) is not None)


def _is_thread_count(value: str) -> bool:
    counts = value.split(",")  # one for each level of nested regions
    return all(re.fullmatch(r" *[0-9]{1,9} *", count) and 0 < int(count) <= _MAX_THREADS for count in counts)


def _is_stack_size(value: str) -> bool:
    match = re.fullmatch(r" *([0-9]{1,12}) *([BKMG]?)B? *", value.upper())
    return match is not None and int(match[1]) * _SIZE_UNITS[match[2]] <= _MAX_STACK_BYTES


def _is_real(value: str) -> bool:
    try:
        return abs(float(value)) < 1e9
    except ValueError:
        return False


def _is_bar_format(value: str) -> bool:
    try:
        names = [field for _, field, _, _ in string.Formatter().parse(value) if field is not None]
    except ValueError:
        return False
    return all(re.fullmatch(r"[a-z_]+", name) for name in names)


_THREADS = Expectation(f"a whole number from 1 to {_MAX_THREADS}", _is_thread_count)
_STACK = Expectation("a size up to 4 GiB, such as 4M", _is_stack_size)
_ANY_SIZE = _pattern("a whole number, below 10^18", r"[0-9]{1,18}([KkMm][Bb])?")
_SWITCH = _pattern("1 or 0, or true or false", r"1|0|[Tt]rue|TRUE|[Ff]alse|FALSE")
_INTEGER = _number(-(2**31), 2**31 - 1)
_REAL = Expectation("a number", _is_real)
_PORT = _number(0, 65535)
_PLACE = r"[A-Za-z0-9._-]+:[0-9]{1,5}|\[[0-9A-Fa-f:]+\]:[0-9]{1,5}"

_OPENCV_SIZES = [
    "IO_MAX_IMAGE_HEIGHT",
    "IO_MAX_IMAGE_WIDTH",
    "IO_MAX_IMAGE_PARAMS",
    "IMGCODECS_AVIF_MAX_FILE_SIZE",
    "IMGCODECS_WEBP_MAX_FILE_SIZE",
    "KMEANS_PARALLEL_GRANULARITY",
    "OPENCL_ALIGNMENT_MEM_USE_HOST_PTR",
    "THREAD_POOL_ACTIVE_WAIT_MAIN",
    "THREAD_POOL_ACTIVE_WAIT_PAUSE_LIMIT",
    "THREAD_POOL_ACTIVE_WAIT_THREADS_LIMIT",
    "THREAD_POOL_ACTIVE_WAIT_WORKER",
    "TRACE_DEPTH_OPENCV",
    "TRACE_MAX_CHILDREN",
    "TRACE_MAX_CHILDREN_OPENCV",
]
_OPENCV_SWITCHES = [
    "BUFFER_AREA_ALWAYS_SAFE",
    "DUMP_CONFIG",
    "DUMP_ERRORS",
    "ENABLE_MEMALIGN",
    "GAUSSIANBLUR_CHECK_BITEXACT_KERNELS",
    "LOG_TIMESTAMP",
    "LOG_TIMESTAMP_NS",
    "OPENCL_CACHE_CLEANUP",
    "OPENCL_CACHE_ENABLE",
    "OPENCL_CACHE_LOCK_ENABLE",
    "OPENCL_CACHE_WRITE",
    "OPENCL_DISABLE_BUFFER_RECT_OPERATIONS",
    "OPENCL_ENABLE_MEM_USE_HOST_PTR",
    "OPENCL_VALIDATE_BINARY_PROGRAMS",
    "SKIP_CPU_BASELINE_CHECK",
    "TRACE",
    "TRACE_ITT_ENABLE",
    "TRACE_ITT_PARENT",
    "TRACE_ITT_SET_THREAD_NAME",
    "TRACE_SYNC_OPENCL",
    "VIDEOCAPTURE_DEBUG",
    "VIDEOIO_DEBUG",
    "VIDEOWRITER_DEBUG",
]
# Variables that numba reads as whole numbers. It shows a traceback for another value. Those that are not in
# this table are texts, or belong to other packages.
_NUMBA_INTEGERS = """
    ALWAYS_WARN_UNINIT_VAR BOUNDSCHECK CUDA_ARRAY_INTERFACE_SYNC CUDA_DEBUGINFO
    CUDA_ENABLE_MINOR_VERSION_COMPATIBILITY CUDA_LOG_API_ARGS CUDA_LOG_SIZE CUDA_LOW_OCCUPANCY_WARNINGS
    CUDA_MAX_PENDING_DEALLOCS_COUNT CUDA_PER_THREAD_DEFAULT_STREAM CUDA_USE_NVIDIA_BINDING
    CUDA_VERBOSE_JIT_LOG CUDA_WARN_ON_IMPLICIT_COPY DEBUG DEBUGINFO DEBUG_ARRAY_OPT
    DEBUG_ARRAY_OPT_RUNTIME DEBUG_ARRAY_OPT_STATS DEBUG_CACHE DEBUG_FRONTEND DEBUG_INLINE_CLOSURE
    DEBUG_JIT DEBUG_NRT DEBUG_NRT_STACK_LIMIT DEBUG_TYPEINFER DEVELOPER_MODE DIFF_IR DISABLE_CUDA
    DISABLE_INTEL_SVML DISABLE_JIT DISABLE_PERFORMANCE_WARNINGS DISABLE_TYPEINFER_FAIL_CACHE
    DUMP_ANNOTATION DUMP_ASSEMBLY DUMP_BYTECODE DUMP_CFG DUMP_FUNC_OPT DUMP_IR DUMP_LLVM DUMP_OPTIMIZED
    DUMP_SSA ENABLE_AVX ENABLE_CUDASIM ENABLE_PROFILING ENABLE_SYS_MONITORING EXTEND_VARIABLE_LIFETIMES
    FULL_TRACEBACKS FUNCTION_CACHE_SIZE HIGHLIGHT_DUMPS JIT_COVERAGE LLVM_PASS_TIMINGS
    LLVM_REFPRUNE_PASS LOOP_VECTORIZE NRT_STATS PARALLEL_DIAGNOSTICS PARFOR_MAX_TUPLE_SIZE SHOW_HELP
    SLP_VECTORIZE TRACE USE_LLVMLITE_MEMORY_MANAGER
""".split()  # noqa: SIM905
_TQDM_REALS = "MININTERVAL MAXINTERVAL MINITERS NCOLS NROWS SMOOTHING TOTAL INITIAL POSITION DELAY".split()  # noqa: SIM905

_TABLE = {
    "OPENCV_IO_MAX_IMAGE_PIXELS": _number(1, 1 << 40),
    "OPENCV_FOR_THREADS_NUM": _number(0, _MAX_THREADS),
    "OPENCV_IPP": _pattern(
        "sse42, avx2, avx512, ne or disabled", r"sse42|avx2|avx512|avx512_skx|ne|disabled"
    ),
    **{f"OPENCV_{name}": _ANY_SIZE for name in _OPENCV_SIZES},
    **{f"OPENCV_{name}": _SWITCH for name in _OPENCV_SWITCHES},
    "OMP_NUM_THREADS": _THREADS,
    **{f"{name}_NUM_THREADS": _THREADS for name in ("MKL", "OPENBLAS", "GOTO", "BLIS", "NUMBA")},
    "OMP_THREAD_LIMIT": _number(1, 2**31 - 1),
    **{f"{name}_STACKSIZE": _STACK for name in ("OMP", "KMP", "GOMP")},
    "KMP_BLOCKTIME": _pattern("milliseconds, or infinite", r"(?i)[0-9]{1,9} *(s|ms|us)?|infinite|inf"),
    "NUMBA_OPT": _pattern("0, 1, 2, 3 or max", r"[0-3]|max"),
    "NUMBA_CPU_FEATURES": _pattern("a list such as +avx2,-avx512f", r"([-+][A-Za-z0-9_.-]+(,(?=.)|$))*"),
    "NUMBA_FORCE_CUDA_CC": _pattern("two numbers such as 8.0", r"[0-9]+\.[0-9]+"),
    "NUMBA_CUDA_DEFAULT_PTX_CC": _pattern("two numbers such as 8.0", r"[0-9]+\.[0-9]+"),
    "NUMBA_CUDA_MAX_PENDING_DEALLOCS_RATIO": _REAL,
    **{f"NUMBA_{name}": _INTEGER for name in _NUMBA_INTEGERS},
    **{f"TQDM_{name}": _REAL for name in _TQDM_REALS},
    "TQDM_BAR_FORMAT": Expectation("a format of names such as {bar}", _is_bar_format),
    "PADDLE_TRAINERS_NUM": _number(1, MAX_PROCESSES),
    "PADDLE_TRAINER_ID": _number(0, MAX_PROCESSES - 1),
    **{f"PADDLE_{name}": _number(1, MAX_PROCESSES) for name in ("LOCAL_SIZE", "GLOBAL_SIZE")},
    "PADDLE_NNODES": _pattern("a whole number, or two as in 2:4", r"[1-9][0-9]{0,5}(:[1-9][0-9]{0,5})?"),
    **{f"PADDLE_{name}": _number(0, MAX_PROCESSES) for name in ("LOCAL_RANK", "GLOBAL_RANK", "RANK_IN_NODE")},
    "PADDLE_TRAINER_ENDPOINTS": _pattern("a list of host:port", rf"({_PLACE})(,({_PLACE}))*"),
    "PADDLE_CURRENT_ENDPOINT": _pattern("host:port", _PLACE),
    "PADDLE_MASTER": _pattern("host:port", rf"(https?://|etcd://)?({_PLACE})"),
    "FLAGS_allocator_strategy": _pattern(
        "auto_growth, naive_best_fit or thread_local", r"auto_growth|naive_best_fit|thread_local"
    ),
    **{f"FLAGS_selected_{kind}s": _pattern("a list of numbers", r"[0-9,]*") for kind in ("gpu", "xpu")},
    "PPXCLS_OFFLINE": _SWITCH,
    "SOURCE_DATE_EPOCH": _number(0, 253_402_300_799),  # the last second of the year 9999
}
_JOB_VARIABLES = ("PADDLE_TRAINER_ID", "PADDLE_CURRENT_ENDPOINT", "PADDLE_TRAINER_ENDPOINTS")


def prepare(environment: MutableMapping[str, str]) -> str | None:
    """Removes empty variables, which some libraries do not understand, and checks the others.

    Returns:
        An error message about the first invalid variable; None if all are valid.
    """
    for name in [name for name, value in environment.items() if not value.strip()]:
        if name in _TABLE or name.startswith("NUMBA_"):
            del environment[name]
    return next(_problems(environment), None)


def require_valid() -> None:
    """Checks the variables of this process.

    Raises:
        VariableError: a variable is invalid.
    """
    if (problem := prepare(os.environ)) is not None:
        raise VariableError(problem)
    if is_numba_off(os.environ):
        _warn_of_numba()


def is_numba_off(environment: Mapping[str, str]) -> bool:
    """True if the user wants numba to compile nothing. In plain Python, a step would take hours."""
    return environment.get(_NUMBA_SWITCH, "0").strip() not in ("", "0")


@functools.cache
def _warn_of_numba() -> None:
    from ppxcls.system.logs import warn_once

    warn_once(f"environment variable {_NUMBA_SWITCH} is set, so this package works as without numba: slowly")


def _problems(environment: Mapping[str, str]) -> Iterator[str]:
    for name, value in environment.items():
        expectation = _TABLE.get(name)
        if expectation is not None and not expectation.is_valid(value):
            yield _message(f"environment variable {name}", expectation, value)
    yield from _numba_file_problems()
    home = environment.get("HOME", "")
    if os.path.exists(home) and not os.path.isdir(home):
        yield f"environment variable HOME: expected a folder, received a file: {_shown(home)}"


def _message(name: str, expectation: Expectation, value: str) -> str:
    return f"{name}: expected {expectation.text}, received {_shown(value)}"


def _shown(value: str) -> str:
    return bounded(repr(value), _MAX_SHOWN_VALUE)


def job_problem(environment: Mapping[str, str]) -> str | None:
    """Returns what is wrong with the variables of a job with several processes; None if nothing is.

    A launcher sets them. So this is not checked before a launcher runs, which replaces them.

    Args:
        environment: valid variables.
    """
    count = int(environment.get("PADDLE_TRAINERS_NUM", 1))
    rank = int(environment.get("PADDLE_TRAINER_ID", 0))
    if count == 1:
        return None
    prefix = f"environment variable PADDLE_TRAINERS_NUM is {count}"
    for name in _JOB_VARIABLES:
        if name not in environment:
            return f"{prefix}, and {name} is not set: expected all variables of a launcher, or none"
    if rank >= count:
        return f"{prefix}: expected PADDLE_TRAINER_ID below it, received {rank}"
    places = environment["PADDLE_TRAINER_ENDPOINTS"].split(",")
    if len(places) != count:
        return f"{prefix}: expected as many PADDLE_TRAINER_ENDPOINTS, received {len(places)}"
    # Paddle reads both or none. Kubernetes sets MASTER_PORT alone, to an address, for a service "master".
    port = environment.get("MASTER_PORT", "")
    if port and environment.get("MASTER_ADDR") and not _PORT.is_valid(port):
        return _message("environment variable MASTER_PORT", _PORT, port)
    return None


def _numba_file_problems() -> Iterator[str]:
    """Yields what is wrong with numba's file of settings in the current folder, which may be a stranger's."""
    if not os.path.lexists(_NUMBA_FILE):
        return
    import yaml

    try:
        settings = yaml.safe_load(read_regular(_NUMBA_FILE, _MAX_NUMBA_FILE_BYTES))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(reason_of(error).split())
        yield f"{_NUMBA_FILE}, which numba reads, can't be read: {bounded(reason, _MAX_SHOWN_VALUE)}"
        return
    if settings is None:
        return
    if not isinstance(settings, dict):
        yield f"{_NUMBA_FILE}, which numba reads: expected a mapping"
        return
    for key, value in settings.items():
        text = str(int(value)) if isinstance(value, bool) else str(value)
        expectation = _TABLE.get(f"NUMBA_{str(key).upper()}")
        if expectation is not None and not expectation.is_valid(text):
            yield _message(f"{_NUMBA_FILE}, which numba reads: {_shown(str(key))}", expectation, text)
