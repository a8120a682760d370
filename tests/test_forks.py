"""Commands of the tests in forks: as in a fresh process, and with another server after a fault."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import paddle
import pytest

from tests import forks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are used on Linux only")

# What a command can see of its process. The folder of its imports is not yet in the cache of importlib.
STATE = """
import json, os, signal, sys, threading, warnings

for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(errors="backslashreplace")
print(json.dumps({
    "arguments": sys.argv,
    "path": sys.path,
    "main": sorted(name for name in vars(sys.modules["__main__"]) if not name.startswith("__")),
    "folder": os.getcwd(),
    "variables": {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
    "descriptors": [number for number in range(64) if os.path.exists(f"/proc/self/fd/{number}")],
    "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "handlers": [str(signal.getsignal(number)).split(" at ")[0] for number in sorted(signal.valid_signals())],
    "umask": os.umask(0),
    "filters": [str(row) for row in warnings.filters],
    "threads": [threading.active_count(), len(os.listdir("/proc/self/task"))],
    "flags": str(sys.flags),
    "streams": [(s.encoding, s.errors, s.isatty(), s.seekable()) for s in (sys.stdin, sys.stdout, sys.stderr)],
    "cores": sorted(os.sched_getaffinity(0)),
}))
"""


@pytest.fixture(autouse=True)
def servers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Servers of this module's tests, which import one package of Python."""
    monkeypatch.setattr(forks, "OBJECTS", ("json:dumps",))
    monkeypatch.setattr(forks, "_uses", {})
    monkeypatch.setattr(forks, "_servers", {})
    yield forks._servers
    forks.close()


def run(
    code: str, folder: Path, seconds: float = 60, **variables: str
) -> subprocess.CompletedProcess[str] | None:
    (folder / "program.py").write_text(code)
    environment = {**os.environ, **variables}
    return forks.run([str(folder / "program.py")], folder, environment, seconds)


def forked(code: str, folder: Path, seconds: float = 60, **variables: str) -> str:
    """Returns the output of a command in a fork."""
    result = run(code, folder, seconds, **variables) or run(code, folder, seconds, **variables)
    assert result is not None
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_a_fork_is_like_a_fresh_process(tmp_path: Path) -> None:
    path = os.pathsep.join([str(tmp_path / "mine"), str(tmp_path / "other")])
    received = json.loads(forked(STATE, tmp_path, PYTHONPATH=path))
    command = [sys.executable, str(tmp_path / "program.py")]
    environment = {**os.environ, "PYTHONPATH": path}
    fresh = subprocess.run(
        command,
        capture_output=True,
        check=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    expected = json.loads(fresh.stdout)
    assert received.pop("main") == expected.pop("main")
    assert received == expected
    assert str(tmp_path / "other") in received["path"]


def test_variables_that_imports_set_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "setter.py").write_text("import os\nos.environ['SET_AT_IMPORT'] = '1'\n")
    monkeypatch.setattr(forks, "OBJECTS", ("setter",))
    code = "import os\nprint(os.environ.get('SET_AT_IMPORT'))"
    assert forked(code, tmp_path, PYTHONPATH=str(tmp_path)) == "1\n"


def test_forks_have_other_random_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "OBJECTS", ("numpy.random", "random"))
    code = "import random, numpy as np\nprint(np.random.randint(1 << 62), random.random())"
    first, second = (forked(code, tmp_path).split() for _ in range(2))
    assert first[0] != second[0]
    assert first[1] != second[1]


@pytest.mark.parametrize(
    "code",
    [
        "import time\ntime.sleep(60)",
        "import os, subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(6)'])",
        "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    ],
    ids=["too long", "a process is left behind", "the server is killed"],
)
def test_after_a_fault_the_next_command_runs(code: str, tmp_path: Path, servers: dict[Any, Any]) -> None:
    forked("", tmp_path)
    with pytest.raises((OSError, ValueError)):
        run(code, tmp_path, seconds=1)
    assert not servers
    assert forked("print(1)", tmp_path) == "1\n"


def test_a_fork_that_is_stuck_shows_its_stacks_and_runs_as_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, servers: dict[Any, Any]
) -> None:
    forked("", tmp_path)
    monkeypatch.setattr(forks, "_STUCK_SECONDS", 0.5)
    code = "import threading\nprint('begun', flush=True)\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()"
    with pytest.warns(UserWarning, match=r"begun(.|\n)*program.py") as caught:
        assert run(code, tmp_path) is None
    assert len(caught) == 1
    assert not servers


def test_a_fork_that_works_is_not_stuck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forked("", tmp_path)
    monkeypatch.setattr(forks, "_STUCK_SECONDS", 1.5)
    code = "import time\nend = time.monotonic() + 5\nwhile time.monotonic() < end: pass"
    assert forked(code, tmp_path) == ""


def test_a_server_that_ended_between_commands_is_replaced(tmp_path: Path, servers: dict[Any, Any]) -> None:
    forked("", tmp_path)
    (server,) = servers.values()
    os.kill(server._process.pid, signal.SIGKILL)
    server._process.wait()
    with pytest.raises((OSError, ValueError)):
        run("print(1)", tmp_path)
    assert forked("print(1)", tmp_path) == "1\n"


@pytest.mark.parametrize(("name", "value"), [("is_compiled_with_cuda", True), ("is_compiled_with_xpu", True)])
def test_no_fork_with_a_device(
    name: str, value: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forked("", tmp_path)
    assert run("", tmp_path, CUSTOM_DEVICE_ROOT="anywhere") is None
    monkeypatch.setattr(paddle, name, lambda: value)
    assert run("", tmp_path) is None
    monkeypatch.setattr(paddle, name, lambda: False)
    monkeypatch.setattr(paddle.device, "get_all_custom_device_type", lambda: ["npu"])
    assert run("", tmp_path) is None
