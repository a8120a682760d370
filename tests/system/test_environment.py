"""The settings made before Paddle is imported, observed in a subprocess."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from ppxcls.system import environment
from tests.conftest import ROOT

SHOWN = environment.CPU_VARIABLES


def environment_after_import(before: str = "", **variables: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if k not in SHOWN and not k.startswith("PADDLE_")}
    script = (
        f"{before}\nimport json, os, ppxcls\nprint(json.dumps({{k: os.environ.get(k) for k in {SHOWN!r}}}))"
    )
    command = [sys.executable, "-c", script]
    result = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=ROOT, env={**clean, **variables}
    )
    return dict(json.loads(result.stdout))


CORES = environment.usable_cores()


def fake(cpu: str, build: str) -> str:
    """Returns code that makes ``prepare_cpu`` see another processor and another build of Paddle.

    The code must run before ppxcls is imported.
    """
    return f"""
import importlib.util, sys, types
sys.modules["ppxcls"] = package = types.ModuleType("ppxcls")  # the module's own imports must not prepare anything
package.__path__ = [{str(ROOT / "ppxcls")!r}]
spec = importlib.util.spec_from_file_location("ppxcls.system.environment", {str(ROOT / "ppxcls/system/environment.py")!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module._cpu_info = lambda: {cpu!r}
module._is_cpu_build = lambda: {build == "cpu"}
sys.modules["ppxcls.system.environment"] = module
del sys.modules["ppxcls"]
"""


def test_threads_are_the_cores_shared_by_the_ranks() -> None:
    assert environment_after_import(fake("", "cpu"))["OMP_NUM_THREADS"] == str(CORES)
    assert environment_after_import(fake("", "cpu"), PADDLE_LOCAL_SIZE="2")["OMP_NUM_THREADS"] == str(
        max(1, CORES // 2)
    )
    assert environment_after_import(fake("", "cpu"), PADDLE_LOCAL_SIZE="64")["OMP_NUM_THREADS"] == str(
        max(1, CORES // 64)
    )


def test_mkl_on_amd_only() -> None:
    assert environment_after_import(fake("vendor_id : AuthenticAMD", "cpu"))["MKL_DEBUG_CPU_TYPE"] == "5"
    assert environment_after_import(fake("vendor_id : GenuineIntel", "cpu"))["MKL_DEBUG_CPU_TYPE"] is None


def test_the_users_own_settings_win() -> None:
    own = {"OMP_NUM_THREADS": "1", "KMP_BLOCKTIME": "200", "MKL_DEBUG_CPU_TYPE": "4"}
    assert environment_after_import(fake("AuthenticAMD", "cpu"), **own) == own


def test_builds_for_other_devices_are_left_alone() -> None:
    assert environment_after_import(fake("AuthenticAMD", "gpu")) == dict.fromkeys(SHOWN)


def test_paddle_imported_first_is_said() -> None:
    clean = {k: v for k, v in os.environ.items() if k not in SHOWN}
    command = [sys.executable, "-c", "import paddle, ppxcls"]
    result = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env=clean)
    expected = "Paddle was imported before ppxcls and runs on one core: import ppxcls first" in result.stderr
    assert expected == (CORES > 1)


def test_importing_paddle_is_quiet_but_hides_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", "import ppxcls; ppxcls.load_config"]
    result = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    assert result.stderr == ""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
@pytest.mark.parametrize("is_handled", [False, True])
def test_sigterm_prints_no_stack_of_paddle(is_handled: bool) -> None:
    """SIGTERM ends the process in silence, or calls the handler of the user's program."""
    handler = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(9)); " if is_handled else ""
    code = (
        f"import os, signal, sys; {handler}import ppxcls; ppxcls.build_model; import paddle; paddle.ones([2]); "
        "os.kill(os.getpid(), signal.SIGTERM)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == (9 if is_handled else -signal.SIGTERM)
    assert result.stdout == ""
    assert "FatalError" not in result.stderr
