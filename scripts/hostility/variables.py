"""Hostile environment variables of the package and of its libraries, each in a real process."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from hostility.cases import Case, Outcome, message_problem, refusal_problem, run_command

from ppxcls.system.variables import prepare

PROMISE = "A bad environment variable is one line that names it, or it does no harm"

_LONG = "a" * 100_000
_NUMBERS = {
    "a word": "abc",
    "a negative number": "-1",
    "an exponent": "1e9",
    "a power": "2**40",
    "20 digits": "18446744073709551616",
    "100,000 characters": _LONG,
    "escape codes": "\x1b[2J1",
    "digits of another script": "\u0663",
}
# Variables with numbers, and the values beside those above that are refused.
_BAD_VALUES = {
    "OPENCV_IO_MAX_IMAGE_PIXELS": {**_NUMBERS, "zero": "0", "2 to the power of 60": str(1 << 60)},
    "OPENCV_IO_MAX_IMAGE_WIDTH": {"a word": "abc", "40 digits": "9" * 40},
    "OPENCV_ENABLE_MEMALIGN": {"a word": "abc", "a number": "7"},
    "OPENCV_FOR_THREADS_NUM": {"a word": "abc", "many": "100000"},
    "OPENCV_TRACE": {"a word": "abc"},
    "OPENCV_IMGCODECS_WEBP_MAX_FILE_SIZE": {"a word": "abc"},
    "OPENCV_IPP": {"a word": "abc"},
    "OMP_NUM_THREADS": {**_NUMBERS, "many": "100000", "zero": "0", "a list with zero": "4,0"},
    "OPENBLAS_NUM_THREADS": {"a word": "abc", "many": "100000"},
    "MKL_NUM_THREADS": {"a word": "abc", "many": "100000"},
    "OMP_THREAD_LIMIT": {"zero": "0"},
    "OMP_STACKSIZE": {"a word": "abc", "much": "100000G"},
    "KMP_STACKSIZE": {"a word": "abc", "much": "100000G"},
    "KMP_BLOCKTIME": {"a word": "abc"},
    "NUMBA_NUM_THREADS": {"a word": "abc", "zero": "0", "many": "100000"},
    "NUMBA_OPT": {"a word": "word", "a large number": "9"},
    "NUMBA_DISABLE_JIT": {"a word": "abc"},
    "NUMBA_BOUNDSCHECK": {"a word": "abc"},
    "NUMBA_CPU_FEATURES": {"a word": "nonsense", "a cut list": "+avx2,"},
    "NUMBA_LOOP_VECTORIZE": {"a word": "abc"},
    "TQDM_MININTERVAL": {"a word": "abc"},
    "TQDM_BAR_FORMAT": {"an open brace": "{", "an attribute": "{bar.__class__}"},
    "PADDLE_TRAINERS_NUM": {"a word": "abc", "zero": "0", "a negative number": "-2"},
    "PADDLE_TRAINER_ID": {"a word": "abc", "words": "5 of 2", "a negative number": "-1"},
    "PADDLE_LOCAL_SIZE": {"a word": "abc", "zero": "0"},
    "PADDLE_TRAINER_ENDPOINTS": {"a word": "abc", "no port": "127.0.0.1:", "escape codes": "\x1b[2J:1"},
    "PADDLE_CURRENT_ENDPOINT": {"a word": "abc"},
    "PADDLE_MASTER": {"a word": "abc", "a large port": "a:1234567"},
    "FLAGS_allocator_strategy": {"a word": "nonsense"},
    "FLAGS_selected_gpus": {"a word": "abc"},
    "SOURCE_DATE_EPOCH": {"a word": "abc", "a late year": "9" * 15},
    "HOME": {"a file": "/etc/passwd"},
}
# Variables with values that change nothing.
_HARMLESS: dict[str, Mapping[str, str | None]] = {
    "an empty number of pixels": {"OPENCV_IO_MAX_IMAGE_PIXELS": ""},
    "2 to the power of 40 pixels": {"OPENCV_IO_MAX_IMAGE_PIXELS": str(1 << 40)},
    "an empty number of threads": {"OMP_NUM_THREADS": ""},
    "a list of threads": {"OMP_NUM_THREADS": "2,1"},
    "a processor that numba does not know": {"NUMBA_CPU_NAME": "generic"},
    "empty variables of a launcher": {"PADDLE_TRAINER_ID": "", "PADDLE_TRAINERS_NUM": ""},
    "an unknown backend of pictures": {"MPLBACKEND": "nonsense"},
    "a backend of pictures with windows": {"MPLBACKEND": "TkAgg"},
    "no home": {"HOME": None, "XDG_CACHE_HOME": None},
    "an empty home": {"HOME": ""},
    "no folder for temporary files": {"TMPDIR": "/nowhere"},
    "a relative cache": {"XDG_CACHE_HOME": "here"},
    "a file for the cache": {"XDG_CACHE_HOME": "/etc/passwd"},
    "a file for the settings": {"XDG_CONFIG_HOME": "/etc/passwd"},
    "a width of the terminal in words": {"COLUMNS": "abc", "LINES": "abc"},
    "a plain locale": {"LANG": "C", "LC_ALL": "C"},
    "a locale without UTF-8": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "an unknown locale": {"LC_ALL": "nonsense"},
    "warnings as errors": {"PYTHONWARNINGS": "error"},
    "no docstrings and asserts": {"PYTHONOPTIMIZE": "2"},
    "an unknown time zone": {"TZ": "nonsense/\x1b[2J"},
    "numba that compiles nothing": {"NUMBA_DISABLE_JIT": "1"},
    "a text of another package": {"NUMBA_CUDA_NVRTC_EXTRA_SEARCH_PATHS": "/opt/include"},
    "a service of Kubernetes that is named master": {
        "MASTER_PORT": "tcp://10.96.0.1:80",
        "MASTER_SERVICE_HOST": "10.96.0.1",
    },
    "a large stack": {"OMP_STACKSIZE": "2G"},
    "bound threads": {
        "OMP_PROC_BIND": "spread,close",
        "OMP_PLACES": "{0:1},{1:1}",
        "KMP_AFFINITY": "verbose,granularity=fine,proclist=[0,1],explicit",
        "GOMP_CPU_AFFINITY": "0-1",
    },
    "the names of GPUs": {"CUDA_VISIBLE_DEVICES": "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6,MIG-1/2/3"},
    "a job of SLURM": {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_CPUS_PER_TASK": "", "PMI_RANK": "0"},
    "an elastic launcher": {
        "PADDLE_ELASTIC_SERVER": "127.0.0.1:2379",
        "PADDLE_ELASTIC_NP": "1:4",
        "PADDLE_NNODES": "1:4",
        "PADDLE_PORT": "36767",
    },
    "no colours": {"NO_COLOR": "nonsense"},
    "words for the GPUs": {"CUDA_VISIBLE_DEVICES": "abc"},
    "vendors' devices nowhere": {"CUSTOM_DEVICE_ROOT": "/nowhere"},
    "an unknown flag of Paddle": {"FLAGS_nonsense": "1"},
    "a word for a flag of Paddle": {"FLAGS_check_nan_inf": "abc"},
    "a word for a level of the log": {"GLOG_v": "abc", "GLOG_minloglevel": "abc"},
    "another list of cache classes": {"NUMBA_CACHE_LOCATOR_CLASSES": "evil.Locator"},
    "a marker of a launch that is no file": {"PPXCLS_BEGUN": "/nowhere/\x1b[2J"},
}
_JOBS: dict[str, Mapping[str, str]] = {
    "the number of processes alone": {"PADDLE_TRAINERS_NUM": "2"},
    "a number of processes without a rank": {
        "PADDLE_TRAINERS_NUM": "2",
        "PADDLE_TRAINER_ENDPOINTS": "127.0.0.1:1,127.0.0.1:2",
        "PADDLE_CURRENT_ENDPOINT": "127.0.0.1:1",
    },
    "rank 5 of 2": {
        "PADDLE_TRAINERS_NUM": "2",
        "PADDLE_TRAINER_ID": "5",
        "PADDLE_TRAINER_ENDPOINTS": "127.0.0.1:1,127.0.0.1:2",
        "PADDLE_CURRENT_ENDPOINT": "127.0.0.1:1",
    },
    "fewer places than processes": {
        "PADDLE_TRAINERS_NUM": "3",
        "PADDLE_TRAINER_ID": "0",
        "PADDLE_TRAINER_ENDPOINTS": "127.0.0.1:1,127.0.0.1:2",
        "PADDLE_CURRENT_ENDPOINT": "127.0.0.1:1",
    },
}
_NUMBA_FILES = {
    "no YAML": "a: [",
    "no mapping": "[1, 2]",
    "a bad value": "num_threads: abc",
    "kernels in plain Python": "disable_jit: true",
    "a large file": "#" * 100_000,
    "a list of itself": "&a [*a]",
}
_NOTEBOOK = {"OPENCV_IO_MAX_IMAGE_PIXELS": "abc", "NUMBA_OPT": "word", "OMP_NUM_THREADS": "0"}
_JOIN = "from ppxcls.system.environment import import_paddle; import_paddle()\n" + (
    "from ppxcls.cli import run_command\nfrom ppxcls.system import distributed\n"
    "run_command(lambda: distributed.start('cpu', timeout=5))"
)
_IMAGE = (
    "import ppxcls, sys\nppxcls.load_config\n"
    "transform = lambda: ppxcls.build_transforms([{'DecodeImage': {}}, {'ResizeImage': {'size': 8}}])\n"
    "import base64\nprint(transform()(base64.b64decode(sys.argv[1])).shape)"
)
_PICTURE = """
from ppxcls.cli import run_command
def main():
    import ppxcls
    ppxcls.load_config
    from ppxcls.reports.curves import png, pyplot
    print(len(png(pyplot().figure())) > 100)
run_command(main)
"""
_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"


def cases() -> Iterator[Case]:
    """Returns the cases: each variable with each value."""
    for name, values in _BAD_VALUES.items():
        for description, value in values.items():
            yield Case(f"{name}: {description}", functools.partial(_refused, name, value))
            run = functools.partial(_checked, name, value)
            yield Case(f"the check of {name}: {description}", run, is_quick=True)
    for description, variables in _HARMLESS.items():
        yield Case(f"the networks with {description}", functools.partial(_harmless, variables))
    for description, variables in _JOBS.items():
        yield Case(f"a job with {description}", functools.partial(_job, variables))
    for description, text in _NUMBA_FILES.items():
        yield Case(f"numba's settings in this folder: {description}", functools.partial(_numba_file, text))
    for name, value in _NOTEBOOK.items():
        yield Case(f"a notebook with {name}={value}", functools.partial(_notebook, name, value))
    yield Case("an image with an empty limit of pixels", _image_with_empty_limit)
    yield Case("a picture with an unknown backend in a command", _picture)
    yield Case("the doctor with a bad number of threads", _doctor)


def _refused(name: str, value: str, folder: Path) -> tuple[Outcome, str | None]:
    outcome = run_command(["list"], folder, variables={name: value}, timeout_s=60)
    if outcome.code not in (2, None) and not (name == "HOME" and outcome.code == 1):
        return outcome, f"exit code {outcome.code}: {outcome.errors[-200:]}"
    return outcome, refusal_problem(outcome, name, "expected", "received")


def _checked(name: str, value: str, _: Path) -> tuple[Outcome, str | None]:
    start = time.monotonic()
    problem = prepare({name: value})
    outcome = Outcome(0 if problem is None else 1, "", problem or "", time.monotonic() - start)
    return outcome, refusal_problem(outcome, name, "expected", "received")


def _harmless(variables: Mapping[str, str | None], folder: Path) -> tuple[Outcome, str | None]:
    outcome = run_command(["list"], folder, variables=variables, timeout_s=90)
    return outcome, _success_problem(outcome, "Xception41")


def _success_problem(outcome: Outcome, word: str) -> str | None:
    if outcome.code != 0:
        return f"exit code {outcome.code}: {outcome.errors[-200:]}"
    if word not in outcome.output:
        return f"{word!r} is missing in the output"
    return message_problem(outcome.errors) if outcome.errors.strip() else None


def _job(variables: Mapping[str, str], folder: Path) -> tuple[Outcome, str | None]:
    outcome = run_command([sys.executable, "-c", _JOIN], folder, variables=variables, timeout_s=60)
    return outcome, refusal_problem(outcome, "PADDLE_TRAINERS_NUM", "expected")


def _numba_file(text: str, folder: Path) -> tuple[Outcome, str | None]:
    (folder / ".numba_config.yaml").write_text(text)
    outcome = run_command(["list"], folder, timeout_s=60)
    return outcome, refusal_problem(outcome, ".numba_config.yaml")


def _notebook(name: str, value: str, folder: Path) -> tuple[Outcome, str | None]:
    code = (
        "import ppxcls\ntry:\n    ppxcls.build_transforms\nexcept Exception as error:\n"
        "    print(type(error).__name__, error)"
    )
    outcome = run_command([sys.executable, "-c", code], folder, variables={name: value}, timeout_s=60)
    return outcome, _success_problem(outcome, f"VariableError environment variable {name}: expected")


def _image_with_empty_limit(folder: Path) -> tuple[Outcome, str | None]:
    variables = {"OPENCV_IO_MAX_IMAGE_PIXELS": ""}
    outcome = run_command([sys.executable, "-c", _IMAGE, _PNG], folder, variables=variables, timeout_s=60)
    return outcome, _success_problem(outcome, "(8, 8, 3)")


def _picture(folder: Path) -> tuple[Outcome, str | None]:
    variables = {"MPLBACKEND": "nonsense", "MPLCONFIGDIR": os.fspath(folder)}
    outcome = run_command([sys.executable, "-c", _PICTURE], folder, variables=variables, timeout_s=90)
    return outcome, _success_problem(outcome, "True")


def _doctor(folder: Path) -> tuple[Outcome, str | None]:
    outcome = run_command(["doctor"], folder, variables={"OMP_NUM_THREADS": "100000"}, timeout_s=60)
    return outcome, refusal_problem(outcome, "OMP_NUM_THREADS")
