"""The test device itself: its memory, copies, counts, kernels and collectives."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppxcls.system.file_lock import locked
from tests.accelerator.build import ROOT, environment
from tests.conftest import run_tool

PROGRAMS = Path(__file__).parent / "programs"
NOTHING = {
    "copies_to_device": 0,
    "copies_from_device": 0,
    "queued_copies_to_device": 0,
    "queued_copies_from_device": 0,
    "waits": 0,
    "kernels": 0,
    "collectives": 0,
    "changed_sources": 0,
}
HALF_OPERATORS = [
    "conv2d",
    "depthwise",
    "groups",
    "NHWC",
    "strides",
    "batch_norm",
    "matmul",
    "cross_entropy",
    "max_pool",
    "mean",
]
AMP_RUNS = [
    "O1 float16",
    "O1 bfloat16",
    "O2 float16",
    "O2 bfloat16",
    "O2 float16 multi_tensor",
    "O2 bfloat16 multi_tensor",
    "O2 float16 AdamW",
    "O2 bfloat16 AdamW",
]


def results_of(program: str, *arguments: str, **variables: str) -> Any:
    """Runs a program on the device, and returns what it prints."""
    command = [sys.executable, str(PROGRAMS / f"{program}.py"), *arguments]
    run = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=250,
        env=environment(**variables),
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


def common_results(factory: pytest.TempPathFactory, program: str, *arguments: str, **variables: str) -> Any:
    """Returns a program's results. It runs once, even if several processes run the tests."""
    folder = factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    file = folder / f"{program}.json"
    with locked(folder / f"{program}.lock"):
        if not file.exists():
            file.write_text(json.dumps(results_of(program, *arguments, **variables)))
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def basics(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The results of ``basics.py``."""
    return common_results(tmp_path_factory, "basics", ACCELERATOR_DEVICES="3", ACCELERATOR_MEMORY_MB="512")


@pytest.fixture(scope="module")
def half_precision(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The results of ``half_precision.py``."""
    return common_results(tmp_path_factory, "half_precision")


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The results of ``training.py``."""
    return common_results(tmp_path_factory, "training", "cpu", "float32", "float32 multi_tensor", *AMP_RUNS)


def test_devices_have_numbers(basics: Any) -> None:
    assert basics["devices"] == ["iluvatar_gpu:0", "iluvatar_gpu:1", "iluvatar_gpu:2"]
    assert basics["wrong_device"]


def test_memory_is_poisoned_and_ends(basics: Any) -> None:
    assert basics["empty"] == [0xFB]
    assert basics["freed"] == [0xFB]
    assert "Out of memory error on iluvatar_gpu:0" in basics["out_of_memory"]
    assert basics["after_out_of_memory"] == 3


def test_copies_waits_and_kernels_are_counted(basics: Any) -> None:
    counts = basics["counts"]
    assert counts["to_tensor"]["copies_to_device"] == 1
    assert counts["to_tensor"]["kernels"] == 0
    assert {**counts["operators"], "kernels": 0} == NOTHING
    assert counts["operators"]["kernels"] >= 5
    assert counts["numpy"]["copies_from_device"] == 1
    assert counts["synchronize"] == {**NOTHING, "waits": 1}
    assert counts["value"] == [[9.0] * 4] * 4


def test_buffer_that_is_used_again_too_early_gives_wrong_numbers(basics: Any) -> None:
    assert basics["late_copy"]["counts"] == {**NOTHING, "queued_copies_to_device": 1}
    assert basics["late_copy"]["values"] == [0.0]
    assert basics["awaited_copy"]["values"] == [1.0]


def test_source_that_changes_after_the_kernels_is_counted(basics: Any) -> None:
    assert basics["changed_source"]["changed_sources"] == 1
    assert basics["unchanged_source"]["changed_sources"] == 0
    assert basics["unchanged_source"]["queued_copies_to_device"] == 1


def test_queued_copy_to_the_host_is_late(basics: Any) -> None:
    assert basics["copy_to_host"]["counts"]["queued_copies_from_device"] == 1
    assert basics["copy_to_host"]["values"] == [[0.0], [1.0]]  # before and after a wait


def test_seed_repeats_random_numbers(basics: Any) -> None:
    first, second = basics["random"]
    assert first == second
    assert len(set(first)) > 8


def test_name_decides_about_bfloat16(basics: Any) -> None:
    other_name = results_of("basics", ACCELERATOR_NAME="test_chip", ACCELERATOR_MEMORY_MB="512")
    assert other_name["devices"] == ["test_chip:0", "test_chip:1"]
    assert basics["bfloat16_product"] == "paddle.bfloat16"
    assert other_name["bfloat16_product"] == "paddle.float32"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("operator", HALF_OPERATORS)
def test_half_precision_is_rounded_float32(half_precision: Any, operator: str, dtype: str) -> None:
    result = half_precision[operator][dtype]
    epsilon = {"float16": 2**-11, "bfloat16": 2**-8}[dtype]
    # The gradient of a cross entropy comes from the rounded softmax. All others are exact.
    roundings = 2 if operator == "cross_entropy" else 0
    for distance, size in zip(result["distances"], result["sizes"], strict=True):
        assert distance <= roundings * epsilon * size
    assert f"paddle.{dtype}" in result["types"]
    assert result["places"] == ["Place(iluvatar_gpu:0)"]


def test_batch_norm_keeps_float32_statistics(half_precision: Any) -> None:
    for dtype in "float16", "bfloat16":
        types = half_precision["batch_norm"][dtype]["types"]
        assert types == [f"paddle.{dtype}"] * 2 + ["paddle.float32"] * 3  # scale, bias, running statistics


def test_float32_trains_as_the_cpu_does(training: Any) -> None:
    assert training["plain device"] == training["plain cpu"]
    losses = training["float32"]["losses"]
    # ppxcls has operators of its own for the CPU. Their last bit differs, and a batch norm of 2 images enlarges it.
    assert losses[0] == pytest.approx(training["cpu"]["losses"][0], rel=1e-6)
    assert losses[1] == pytest.approx(training["cpu"]["losses"][1], rel=1e-2)
    assert training["float32 multi_tensor"]["losses"] == losses
    assert len(set(losses)) == len(losses)


@pytest.mark.parametrize("run", AMP_RUNS)
def test_half_precision_trains(training: Any, run: str) -> None:
    losses = training[run]["losses"]
    assert losses[0] == pytest.approx(training["float32"]["losses"][0], rel=0.02)
    assert losses[-1] < losses[0]
    assert losses != training["float32"]["losses"]


@pytest.mark.parametrize("run", ["float32", *AMP_RUNS])
def test_step_has_no_copies(training: Any, run: str) -> None:
    counts = training[run]["counts"]
    # The scaler asks whether a gradient is infinite.
    questions = int("float16" in run.split())
    assert counts["copies_from_device"] == questions
    assert counts["copies_to_device"] == 0
    assert counts["kernels"] > 500


@pytest.mark.parametrize("run", [run for run in AMP_RUNS if run.startswith("O2")])
def test_parameters_are_rounded_master_weights(training: Any, run: str) -> None:
    assert training[run]["masters"] > 50
    assert training[run]["distance"] == 0
    assert f"paddle.{run.split()[1]}" in training[run]["types"]


def test_two_ranks(tmp_path: Path) -> None:
    run = run_tool(PROGRAMS / "ranks.py", tmp_path, processes=2, log_dir=tmp_path / "log", env=environment())
    logs = "\n".join(log.read_text() for log in tmp_path.glob("log/workerlog.*"))
    assert run.returncode == 0, logs[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert [first["device"], second["device"]] == ["iluvatar_gpu:0", "iluvatar_gpu:1"]
    for result in first, second:
        assert result["sums"] == {
            **{dtype: [3.0, 7.5] for dtype in ("float32", "float16", "bfloat16")},
            **{dtype: [3.0, 6.0] for dtype in ("int64", "int32")},
        }
        assert result["max"] == [2.0, -2.0]
        assert result["min"] == [1.0, -4.0]
        assert result["broadcast"] == [1.0]
        assert result["gathered"] == [0, 1]
        assert result["objects"] == [{"rank": 0}, {"rank": 1}]
        assert result["message"] == [7.0]
    assert [first["part"], second["part"]] == [[2.0], [10.0]]
    assert first["weights"] == second["weights"]


def losses_of(log: str) -> list[float]:
    return [float(value) for value in re.findall(r"\[Train\].*Iter.* loss: ([\d.]+)", log)]


@pytest.mark.parametrize("level", ["O0", "O1"])
def test_tool_trains_evaluates_and_resumes(small: Callable[..., Path], level: str) -> None:
    amp = {} if level == "O0" else {"AMP": {"level": level, "use_dynamic_loss_scaling": True}}
    config = small(**{"Global.device": "iluvatar_gpu", **amp})
    run_folder = config.parent / "output/SmallNetwork"
    training = run_tool("tools/train.py", "-c", config, env=environment())
    assert training.returncode == 0, training.stderr[-3000:]
    assert len(losses_of(training.stdout + training.stderr)) == 3
    evaluation = run_tool(
        "tools/eval.py",
        "-c",
        config,
        "-o",
        f"Global.pretrained_model={run_folder}/latest",
        env=environment(),
    )
    assert evaluation.returncode == 0, evaluation.stderr[-3000:]
    resume = run_tool(
        "tools/train.py",
        "-c",
        config,
        "-o",
        "Global.epochs=2",
        "-o",
        f"Global.checkpoints={run_folder}/latest",
        env=environment(),
    )
    assert resume.returncode == 0, resume.stderr[-3000:]
    assert "epoch 2, batch 0, step 3" in resume.stdout + resume.stderr
