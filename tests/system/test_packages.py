"""Optional packages that are missing or broken."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import paddle
import pytest

import ppxcls
from ppxcls.system.packages import import_problem
from tests.conftest import ROOT, run_tool

BROKEN = "raise AttributeError(\"module 'numpy' has no attribute 'bool8'\\nsecond line\")\n"
REASON = "which is installed and can't be imported: AttributeError: module 'numpy' has no attribute 'bool8' second line"


def test_the_reason_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_package_of_a_test.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    assert (
        import_problem("broken_package_of_a_test", "pip install x") == f"broken_package_of_a_test, {REASON}"
    )
    assert import_problem("no_such_package", "pip install x") == "no_such_package: pip install x"
    assert import_problem("no_such_package.part", "pip install x") == "no_such_package: pip install x"
    assert import_problem("json.decoder", "pip install x") is None


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_an_export_with_a_broken_package(
    package: str, small: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    config = small(**{"Global.pretrained_model": f"{tmp_path}/w.pdparams"})
    paddle.save(ppxcls.build_model("SmallNetwork").state_dict(), f"{tmp_path}/w.pdparams")
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / f"{package}.py").write_text(BROKEN)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}/path{os.pathsep}{ROOT}")
    target = f"Global.save_inference_dir={tmp_path}/exported"
    result = run_tool("export", "-c", config, "--format", "onnx", "-o", target)
    assert result.returncode == 1
    assert f"needs {package}, {REASON}" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
