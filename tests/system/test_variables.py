"""Environment variables are checked before a library reads them; ``scripts/hostility/variables.py`` tries more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ppxcls.system import variables
from ppxcls.system.variables import VariableError, job_problem, prepare, require_valid
from tests.conftest import ROOT


def test_an_ordinary_environment_is_valid() -> None:
    environment = {
        "OPENCV_IO_MAX_IMAGE_PIXELS": "500000000",
        "OPENCV_VERSION": "4.8",  # of an image of a container; OpenCV does not read it
        "OMP_NUM_THREADS": "8",
        "OMP_STACKSIZE": "16M",
        "KMP_BLOCKTIME": "1",
        "NUMBA_CACHE_DIR": "/tmp/cache",
        "NUMBA_BOUNDSCHECK": "1",
        "NUMBA_OPT": "max",
        "PADDLE_NNODES": "2:4",
        "PADDLE_TRAINER_ENDPOINTS": "host-1.example:6170,10.0.0.2:6170",
        "PADDLE_MASTER": "[::1]:6170",
        "CUDA_VISIBLE_DEVICES": "GPU-8932f937",
        "FLAGS_selected_gpus": "0,1",
        "TQDM_MININTERVAL": "0.5",
        "TQDM_BAR_FORMAT": "{l_bar}{bar:30}| {n_fmt}/{total_fmt}",
        "SOURCE_DATE_EPOCH": "1700000000",
        "HOME": str(ROOT),
    }
    before = dict(environment)
    assert prepare(environment) is None
    assert environment == before


def test_empty_variables_are_removed() -> None:
    environment = {"OPENCV_IO_MAX_IMAGE_PIXELS": "", "OMP_NUM_THREADS": " ", "OTHER": ""}
    assert prepare(environment) is None
    assert environment == {"OTHER": ""}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("OPENCV_IO_MAX_IMAGE_PIXELS", "abc", "a whole number from 1 to 1099511627776"),
        ("OPENCV_ENABLE_MEMALIGN", "abc", "1 or 0, or true or false"),
        ("OMP_NUM_THREADS", "100000", "a whole number from 1 to "),
        ("NUMBA_BOUNDSCHECK", "abc", "a whole number from -2147483648"),
        ("NUMBA_DISABLE_JIT", "abc", "a whole number from -2147483648"),
        ("PADDLE_TRAINER_ID", "5 of 2", "a whole number from 0 to 99999"),
        ("PADDLE_MASTER", "\x1b[2J", "host:port"),
    ],
)
def test_the_message_names_variable_value_and_expectation(name: str, value: str, expected: str) -> None:
    problem = prepare({name: value})
    assert problem is not None
    assert problem.startswith(f"environment variable {name}: expected {expected}")
    assert problem.endswith(f", received {value!r}")


def test_a_long_value_is_shown_in_part() -> None:
    problem = prepare({"OMP_NUM_THREADS": "a" * 1_000_000})
    assert problem is not None
    assert "characters left out" in problem
    assert len(problem) < 300


def test_the_variables_of_a_job() -> None:
    environment = {
        "PADDLE_TRAINERS_NUM": "2",
        "PADDLE_TRAINER_ID": "1",
        "PADDLE_TRAINER_ENDPOINTS": "a:1,b:2",
        "PADDLE_CURRENT_ENDPOINT": "b:2",
    }
    assert job_problem({}) is None
    assert job_problem({"PADDLE_TRAINER_ID": "1"}) is None, "a single process"
    assert job_problem(environment) is None
    assert job_problem({**environment, "PADDLE_TRAINER_ID": "2"}) == (
        "environment variable PADDLE_TRAINERS_NUM is 2: expected PADDLE_TRAINER_ID below it, received 2"
    )
    assert job_problem({**environment, "PADDLE_TRAINERS_NUM": "3"}) == (
        "environment variable PADDLE_TRAINERS_NUM is 3: expected as many PADDLE_TRAINER_ENDPOINTS, received 2"
    )
    for name in ("PADDLE_TRAINER_ID", "PADDLE_TRAINER_ENDPOINTS", "PADDLE_CURRENT_ENDPOINT"):
        problem = job_problem({key: value for key, value in environment.items() if key != name})
        assert problem is not None
        assert f"{name} is not set" in problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("opt: 2\nboundscheck: true\ncache_dir: /tmp\n", None),
        ("", None),
        (
            "opt: word",
            ".numba_config.yaml, which numba reads: 'opt': expected 0, 1, 2, 3 or max, received 'word'",
        ),
        ("- 1", ".numba_config.yaml, which numba reads: expected a mapping"),
        ("a: [", ".numba_config.yaml, which numba reads, can't be read: "),
        ("!!python/object/apply:os.mkdir [ran]", ".numba_config.yaml, which numba reads, can't be read: "),
    ],
)
def test_numbas_file_in_the_current_folder(
    text: str, problem: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".numba_config.yaml").write_text(text)
    result = prepare({})
    assert (result or "").startswith(problem or "")
    assert (result is None) == (problem is None)
    assert not Path("ran").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_for_numbas_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo(".numba_config.yaml")
    assert "it is not a regular file" in str(prepare({}))


def test_a_notebook_gets_an_error_at_the_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "abc")
    with pytest.raises(VariableError, match="OMP_NUM_THREADS: expected a whole number"):
        require_valid()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    require_valid()


def test_every_known_variable_of_numba_has_the_type_that_numba_reads() -> None:
    """numba reads whole numbers, and the texts and few other types of the table."""
    config = pytest.importorskip("numba.core.config")
    source = Path(config.__file__).read_text(encoding="utf-8")
    import re

    types = dict(re.findall(r'_readenv\(\s*"(NUMBA_\w+)",\s*(\w+)', source))
    assert len(types) > 50
    texts = {name for name, kind in types.items() if kind in ("str", "optional_str", "which_gdb")}
    assert {name for name in texts if name in variables._TABLE} <= {"NUMBA_CPU_FEATURES"}
    # Another numba may have more.
    whole_numbers = {name for name, kind in types.items() if kind == "int" and name in variables._TABLE}
    assert len(whole_numbers) > 40
    for name in whole_numbers - {"NUMBA_NUM_THREADS"}:
        assert variables._TABLE[name] is variables._INTEGER, name


def test_variables_that_are_not_for_this_package() -> None:
    environment = {
        "MASTER_PORT": "tcp://10.96.0.1:80",  # Kubernetes, for a service "master"
        "NUMBA_CUDA_NVRTC_EXTRA_SEARCH_PATHS": "/opt/include",
        "NUMBA_ANY_NEW_SETTING": "abc",
        "NUMBA_DISABLE_JIT": "1",
        "OMP_STACKSIZE": "2G",
        "OMP_PROC_BIND": "spread,close",
        "OMP_PLACES": "{0:4},{4:4}",
        "KMP_AFFINITY": "verbose,granularity=fine,compact," + "1," * 2000,
        "KMP_BLOCKTIME": "INFINITE",
        "GOMP_CPU_AFFINITY": "0-3 8-11:2",
        "CUDA_VISIBLE_DEVICES": "MIG-GPU-8932f937/1/0",
        "SLURM_CPUS_PER_TASK": "",
        "SLURM_JOB_NODELIST": "node[01-04]",
        "PMI_RANK": "0",
        "PADDLE_ELASTIC_SERVER": "127.0.0.1:2379",
    }
    before = dict(environment)
    assert prepare(environment) is None
    assert environment == before
    assert job_problem(environment) is None


def test_the_port_of_a_job_is_checked_if_paddle_reads_it() -> None:
    job = {
        "PADDLE_TRAINERS_NUM": "2",
        "PADDLE_TRAINER_ID": "1",
        "PADDLE_TRAINER_ENDPOINTS": "a:1,b:2",
        "PADDLE_CURRENT_ENDPOINT": "b:2",
        "MASTER_PORT": "tcp://10.96.0.1:80",
    }
    assert job_problem(job) is None, "Paddle reads both or none"
    assert job_problem({**job, "MASTER_ADDR": "a"}) == (
        "environment variable MASTER_PORT: expected a whole number from 0 to 65535, received 'tcp://10.96.0.1:80'"
    )
    assert job_problem({**job, "MASTER_ADDR": "a", "MASTER_PORT": "80"}) is None


def test_numba_that_compiles_nothing_is_not_used(tmp_path: Path) -> None:
    code = "import ppxcls; ppxcls.Bound; from ppxcls.system import kernels; print(kernels.HAS_NUMBA)"
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        cwd=tmp_path,
    )
    assert result.stdout == "False\n"
    message = "environment variable NUMBA_DISABLE_JIT is set, so this package works as without numba: slowly"
    assert result.stderr.splitlines() == [message]


def test_the_help_needs_no_docstrings(tmp_path: Path) -> None:
    command = [sys.executable, "-OO", str(ROOT / "ppxcls/__main__.py"), "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "train" in result.stdout
