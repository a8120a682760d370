"""Rows of the section "Before anything is built" of ``docs/troubleshooting.md``."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import paddle

import ppxcls
from ppxcls.system import devices
from tests.conftest import ROOT, SMALL_NETWORK, run_tool
from tests.troubleshooting.desk import Desk, case


@case("an unknown key, with did you mean")
def test_unknown_key(desk: Desk) -> None:
    file = desk.config()
    message = desk.fails("train", "-c", file, "-o", "Global.epoch=1", code=2)
    assert "unknown key 'epoch' (did you mean 'epochs'?)" in message
    desk.works("check", "-c", file, "-o", "Global.epochs=1")
    message = desk.fails("check", "-c", file, "-o", "AMP.use_pure_fp16=True", code=2)
    assert message.endswith("instead: AMP.level: O2")
    desk.works("check", "-c", file, "-o", "AMP.level=O2")


@case("expected …, received …, with a line of the YAML")
def test_wrong_value(desk: Desk) -> None:
    file = Path(desk.config())
    text = file.read_text()
    file.write_text(text.replace("resize_short: 75", "resize_short: many"))
    message = desk.fails("eval", "-c", file, code=2)
    found = re.search(r"config.yaml:(\d+): (\S+): expected (.*), received 'many'", message)
    assert found
    assert "resize_short: many" in file.read_text().splitlines()[int(found[1]) - 1]
    reference = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
    assert f"| `resize_short` | {found[3]}" in reference
    file.write_text(text)
    desk.works("check", "-c", file)


@case("the plugin … can't be imported, expected the name of a Python module")
def test_plugin(desk: Desk) -> None:
    file = desk.config(**{"Global.plugins": [SMALL_NETWORK, "mine_of_this_page.py"]})
    message = desk.fails("check", "-c", file, code=2)
    assert "expected the name of a Python module or the path of a .py file" in message
    (desk.folder / "mine_of_this_page.py").write_text("import no_such_module_at_all\n")
    assert "No module named 'no_such_module_at_all'" in desk.fails("check", "--trust", "-c", file, code=2)
    (desk.folder / "mine_of_this_page.py").write_text("import ppxcls\n")
    desk.monkeypatch.chdir("/")  # relative to the YAML, not to the current folder
    assert "code has changed, and has not run: " in desk.fails("check", "-c", file, code=2)
    desk.works("check", "-c", file, "--trust")
    desk.works("check", "-c", file)


@case("code that came with the config has not run")
def test_untrusted_plugin(desk: Desk) -> None:
    (desk.folder / "somebody_s_parts.py").write_text("import ppxcls\n")
    file = desk.config(**{"Global.plugins": [SMALL_NETWORK, "somebody_s_parts.py"]})
    message = desk.fails("check", "-c", file, code=2)
    assert f"has not run: {desk.folder}/somebody_s_parts.py. If you know this code, add --trust" in message
    desk.works("check", "-c", file, "--trust")
    desk.works("check", "-c", file)


@case("to run on …: -o Global.device=")
def test_no_such_device(desk: Desk) -> None:
    file = desk.config(**{"Global.device": "npu"})
    message = desk.fails("train", "-c", file, code=2)
    advice = re.search(r"to run on (\w+): -o (Global.device=\w+)$", message)
    assert advice
    desk.works("train", "-c", file, "-o", advice[2])


@case("this Paddle has no kernels for")
def test_no_kernels(desk: Desk) -> None:
    desk.monkeypatch.setattr(paddle.device.cuda, "get_device_name", lambda number: "a new card")
    desk.monkeypatch.setattr(paddle.device.cuda, "get_device_capability", lambda number: (12, 1))
    message = devices.missing_kernels_message("gpu:0")
    assert message.startswith("this Paddle has no kernels for a new card (12.1); install a build for CUDA 12")
    assert "## NVIDIA: builds and cards" in (ROOT / "docs/installation.md").read_text(encoding="utf-8")


@case("expected 'NCHW' with Global.deterministic")
def test_deterministic_layout(desk: Desk) -> None:
    network = {"name": "SmallNetwork", "data_format": "NHWC"}
    file = desk.config(Arch=network, **{"Global.deterministic": True, "Global.device": "gpu"})
    message = desk.fails("train", "-c", file, code=2)
    assert "Arch.data_format: expected 'NCHW' with Global.deterministic, received 'NHWC'" in message
    desk.works("train", "-c", file, "-o", "Arch.data_format=NCHW", "-o", "Global.device=cpu")


@case("Paddle transposes the input of each batch norm")
def test_layout_warning(desk: Desk) -> None:
    from ppxcls.build.start import start_job

    desk.monkeypatch.setattr("ppxcls.system.distributed.start", lambda device, **keys: None)
    desk.monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
    config = ppxcls.load_config(desk.config(Arch={"name": "SmallNetwork", "data_format": "NHWC"}))
    start_job(config)
    log = (config.run_folder / "train.log").read_text()
    script = re.search(r"measure it against NCHW with (\S+\.py)", log)
    assert script
    assert (ROOT / script[1]).is_file()
    assert "## On your GPUs" in (ROOT / "docs/measurements.md").read_text(encoding="utf-8")


def fresh_process(desk: Desk, module: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in a process of its own, which first imports a module named ``sitecustomize``."""
    folder = desk.folder / "site"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(module)
    return run_tool(*words, env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"})


@case("ppxcls needs PaddlePaddle, which is not installed")
def test_no_paddle(desk: Desk) -> None:
    hidden = "import importlib.util as u\nreal = u.find_spec\n"
    hidden += "u.find_spec = lambda name, *a: None if name == 'paddle' else real(name, *a)\n"
    result = fresh_process(desk, hidden, "list")
    assert result.returncode == 1
    assert result.stderr.startswith("ppxcls needs PaddlePaddle, which is not installed")
    assert result.stderr.count("\n") == 1
    assert run_tool("list").returncode == 0


@case("PaddlePaddle is installed and can't be imported")
def test_broken_paddle(desk: Desk) -> None:
    module = desk.folder / "site/paddle/__init__.py"
    module.parent.mkdir(parents=True)
    module.write_text("raise ImportError('libcuda.so.1: cannot open shared object file')\n")
    result = fresh_process(desk, "", "list")
    assert result.returncode == 1
    reason = "ImportError: libcuda.so.1: cannot open shared object file"
    assert result.stderr == f"PaddlePaddle is installed and can't be imported: {reason}\n"
    assert reason in fresh_process(desk, "", "doctor").stdout


@case("contradicts Global.device")
def test_switch(desk: Desk) -> None:
    file = desk.config(**{"Global.use_gpu": True})
    message = desk.fails("check", "-c", file, code=2)
    assert "Global.use_gpu: true contradicts Global.device, 'cpu'; remove one of them" in message
    desk.works("train", "-c", desk.config())


@case("gives images with")
def test_channels(desk: Desk) -> None:
    file = desk.config(Arch={"name": "Xception41", "class_num": 3, "in_channels": 1})
    assert "Arch.in_channels: expected 3, because" in desk.fails("check", "-c", file, code=2)
    desk.works("check", "-c", desk.config(Arch={"name": "Xception41", "class_num": 3}))
