"""Training on an accelerator, from the user's side: precisions, resuming, averages, several ranks, the tools."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ppxcls.checkpoints.files import read_state
from tests.accelerator.build import ROOT, environment
from tests.accelerator.programs.trainer import AMP
from tests.conftest import run_tool

NETWORK = str(Path(__file__).parent / "separable_network.py")
DEVICE = "iluvatar_gpu"
BFLOAT16 = {"AMP": {"level": "O1", "dtype": "bfloat16"}}


@pytest.fixture
def config(write_config: Callable[..., Path]) -> Callable[..., Path]:
    """Returns ``write_config`` for a small separable network on the test device."""

    def write(**keys: Any) -> Path:
        arch = {"name": "SeparableNetwork", "class_num": 3}
        return write_config(
            **{"Arch": arch, "Global.plugins": [NETWORK], "Global.device": DEVICE, "Global.epochs": 2, **keys}
        )

    return write


def run_on_device(*arguments: Any, **keys: Any) -> subprocess.CompletedProcess[str]:
    """Runs a tool or a verb on the device, and checks that it succeeds."""
    variables = keys.pop("variables", {})
    result = run_tool(*arguments, env=environment(**variables), **keys)
    logs = "".join(log.read_text() for log in Path(keys.get("log_dir", "/nowhere")).glob("workerlog.*"))
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:] + logs[-4000:]
    return result


def metrics_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


@pytest.mark.parametrize(
    ("mode", "optimizer"),
    [
        *((mode, "Momentum") for mode in AMP),
        *(("O2 bfloat16", name) for name in ("SGD", "AdamW", "RMSProp", "Lamb")),
    ],
)
def test_a_training_resumes_to_the_same_bits_and_averages_true_weights(
    mode: str, optimizer: str, config: Callable[..., Path], tmp_path: Path
) -> None:
    block = {"name": optimizer, "lr": {"name": "Cosine", "learning_rate": 0.02}, "clip_norm_global": 1.0}
    file = config(**{"EMA": {"decay": 0.5}, "Global.save_interval_steps": 1, "Optimizer": block})
    command = [sys.executable, str(ROOT / "tests/accelerator/programs/trainer.py"), str(file)]
    run = subprocess.run(
        [*command, str(tmp_path / "runs"), mode],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=200,
        env=environment(ACCELERATOR_DELAY_US="500"),
    )
    assert run.returncode == 0, run.stderr[-3000:]
    result = json.loads(run.stdout.splitlines()[-1])[mode]
    level, _, dtype = mode.rpartition(" ")
    assert result["types"] == sorted(
        {"paddle.float32", f"paddle.{dtype}"} if level == "O2" else {"paddle.float32"}
    )
    assert result["resumed_at"] == 4
    assert result["steps"] == [6, 6]
    assert result["differences"] == []
    assert {"average", "weight", *(["master"] if level == "O2" else [])} <= set(result["compared"])
    assert len(result["compared"]) >= {"SGD": 3, "Momentum": 3}.get(optimizer, 5)
    assert result["distance_of_copies"] == 0
    assert result["average_error"] < 1e-6
    during, after = result["evaluated"]["during"], result["evaluated"]["after"]
    assert after == {key: during[key] for key in after}
    assert result["losses"][-1] < result["losses"][0]
    questions = int(dtype == "float16")  # the scaler asks whether a gradient is infinite
    for counts in result["counts"]:
        assert counts["copies_to_device"] == 0
        assert counts["copies_from_device"] == questions
        assert counts["queued_copies_to_device"] == 2
        assert counts["waits"] == 2 * questions
        assert counts["changed_sources"] == 0  # no source of a queued copy was used again too early
    assert result["loader_processes"] == 1
    assert 1 <= result["average_kernels"] <= 5, "the average needs a few operators, not some per parameter"


@pytest.mark.parametrize("level", ["O1", "O2"])
def test_gradients_that_overflow_skip_steps_and_lower_the_scale(
    level: str, config: Callable[..., Path], tmp_path: Path
) -> None:
    amp = {"level": level, "scale_loss": 1e38, "use_dynamic_loss_scaling": True}
    file = config(**{"AMP": amp, "Global.epochs": 1})
    run_on_device("tools/train.py", "-c", file)
    folder = tmp_path / "output/SeparableNetwork"
    first = json.loads((folder / "latest.json").read_text())
    assert "1e+38" not in json.dumps(first)
    run_on_device("tools/train.py", "-c", file, "-o", "Global.checkpoints=auto", "-o", "Global.epochs=3")
    scales = [
        json.loads((folder / f"step_{step}.json").read_text())["progress"]["scaler"]["scale"]
        for step in (6, 9)
    ]
    assert 0 < scales[1][0] < scales[0][0] < 1e38


@pytest.mark.parametrize("optimizer", ["Momentum", "SGD", "AdamW"])
def test_runs_continue_in_another_precision_or_on_a_cpu(
    optimizer: str, config: Callable[..., Path], tmp_path: Path
) -> None:
    """From O2 to float32 on the CPU, from float32 to O2, and back to float32 on the device."""
    block = {"name": optimizer, "lr": {"name": "Cosine", "learning_rate": 0.02}}
    file = config(**{"Optimizer": block, "Global.epochs": 1})
    half = "AMP={level: O2, dtype: bfloat16}"
    overrides = [[half], ["AMP=null", "Global.device=cpu"], [half], ["AMP=null"]]
    for epochs, keys in enumerate(overrides, 1):
        words = [*keys, f"Global.epochs={epochs}", "Global.checkpoints=auto", "Global.allow_changes=true"]
        run_on_device("tools/train.py", "-c", file, *(word for text in words for word in ("-o", text)))
    losses = [row["loss"] for row in metrics_of(tmp_path / "output/SeparableNetwork", "train")]
    assert len(losses) == 12
    assert max(losses) < 1.2


def test_tools_on_the_device(config: Callable[..., Path], tmp_path: Path) -> None:
    """Trains, is killed, resumes to the bits of a run without interruption, predicts, and exports."""
    file = config(
        **{
            **BFLOAT16,
            "Global.save_interval_steps": 1,
            "Global.epochs": 3,
            "EMA": {"decay": 0.5},
            "Global.update_freq": 2,
        }
    )
    run_on_device("tools/train.py", "-c", file, "-o", f"Global.output_dir={tmp_path}/whole")
    command = [
        sys.executable,
        "tools/train.py",
        "-c",
        str(file),
        "-o",
        f"Global.output_dir={tmp_path}/killed",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment()
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "Epoch 2" in line or "epoch 2" in line or "[Epoch 2" in line:
                process.kill()
                break
    resumed = run_on_device(
        *("tools/train.py", "-c", file, "-o", f"Global.output_dir={tmp_path}/killed"),
        *("-o", "Global.checkpoints=auto"),
    )
    assert "Resumed" in resumed.stdout
    folders = [tmp_path / name / "SeparableNetwork" for name in ("whole", "killed")]
    for extension in ("pdparams", "pdema"):
        first, second = (read_state(folder / f"latest.{extension}") for folder in folders)
        for key, value in first.items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(value, second[key], err_msg=key)
    best = metrics_of(folders[0], "eval")[-1]
    evaluation = run_on_device(
        "tools/eval.py", "-c", folders[0], "-o", f"Global.pretrained_model={folders[0]}/latest"
    )
    results = json.loads((folders[0] / "eval.json").read_text())
    assert results["top1"] == best["top1"], evaluation.stdout
    image = next(
        Path(yaml.safe_load(file.read_text())["DataLoader"]["Train"]["dataset"]["image_root"]).glob(
            "train/*.png"
        )
    )
    inference = run_on_device("tools/infer.py", "-c", folders[0], "-o", f"Infer.infer_imgs={image}")
    assert image.name in inference.stdout
    export = run_on_device(
        *("tools/export_model.py", "-c", folders[0], "-o", f"Global.save_inference_dir={tmp_path}/inference")
    )
    assert "error" not in export.stderr
    assert list((tmp_path / "inference").rglob("inference.pdiparams"))


def test_bfloat16_that_paddle_refuses_is_said_in_one_line(
    config: Callable[..., Path], tmp_path: Path
) -> None:
    file = config(**{**BFLOAT16, "Global.device": "test_chip", "Global.epochs": 1})
    result = run_on_device("tools/train.py", "-c", file, variables={"ACCELERATOR_NAME": "test_chip"})
    output = result.stdout + result.stderr
    assert "AMP has no effect here, everything is computed in float32: Paddle" in result.stdout
    assert "does not allow bfloat16 on test_chip:0; AMP.dtype=float16 may work" in result.stdout
    assert "UserWarning" not in output
    other = config(
        **{"Global.device": "test_chip", "Global.epochs": 1, "Global.output_dir": str(tmp_path / "other")}
    )
    run_on_device("tools/train.py", "-c", other, variables={"ACCELERATOR_NAME": "test_chip"})
    losses = [
        [row["loss"] for row in metrics_of(folder / "SeparableNetwork", "train")]
        for folder in (tmp_path / "output", tmp_path / "other")
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("amp", "update_freq"),
    [(None, 2), (BFLOAT16["AMP"], 2), ({"level": "O2", "dtype": "bfloat16"}, 1), (AMP["O2 float16"], 2)],
)
def test_two_ranks_train_as_one_does(
    amp: Any, update_freq: int, config: Callable[..., Path], tmp_path: Path
) -> None:
    """With batch norms over all ranks, two ranks compute what one does with batches of twice the size."""
    losses, weights = [], []
    for ranks in (1, 2):
        output = tmp_path / str(ranks)
        keys = {"Global.output_dir": str(output), "Arch.use_sync_bn": True}
        keys["Global.update_freq"] = update_freq
        keys["DataLoader.Train.sampler.batch_size"] = 4 // ranks
        file = config(**{**keys, **({"AMP": amp} if amp else {}), "EMA": {"decay": 0.5}})
        run_on_device("tools/train.py", "-c", file, processes=ranks, log_dir=tmp_path / "log")
        rows = metrics_of(output / "SeparableNetwork", "train")
        losses.append([row["loss"] for row in rows])
        weights.append(read_state(output / "SeparableNetwork/latest.pdema"))
    tolerance = 0.02 if amp else 1e-5
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)
    for key, value in weights[0].items():
        if isinstance(value, np.ndarray):
            np.testing.assert_allclose(weights[1][key], value, rtol=tolerance, atol=tolerance, err_msg=key)


def test_recomputed_blocks_on_two_ranks(write_config: Callable[..., Path], tmp_path: Path) -> None:
    losses = []
    for is_recomputed in (False, True):
        output = tmp_path / str(is_recomputed)
        keys = {"Global.device": DEVICE, "Global.output_dir": str(output), "Arch.recompute": is_recomputed}
        file = write_config(
            **{**keys, "Global.eval_during_train": False, "DataLoader.Train.sampler.batch_size": 3}
        )
        run_on_device("tools/train.py", "-c", file, processes=2, log_dir=tmp_path / "log")
        losses.append([row["loss"] for row in metrics_of(output / "Xception41", "train")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len(losses[0]) == 2


@pytest.mark.parametrize(
    ("device", "message"),
    [
        (f"{DEVICE}:7", f"expected {DEVICE}, or {DEVICE}:0 to {DEVICE}:1, received '{DEVICE}:7'"),
        (f"{DEVICE}:x", f"expected {DEVICE}, or {DEVICE}:0 to {DEVICE}:1, received '{DEVICE}:x'"),
    ],
)
def test_device_numbers(device: str, message: str, config: Callable[..., Path]) -> None:
    result = run_tool("tools/train.py", "-c", config(**{"Global.device": device}), env=environment())
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_numbered_device_under_a_launcher(config: Callable[..., Path], tmp_path: Path) -> None:
    file = config(**{"Global.device": f"{DEVICE}:1", "Global.epochs": 1})
    result = run_on_device("tools/train.py", "-c", file, processes=2, log_dir=tmp_path / "log")
    logs = result.stdout + "".join(log.read_text() for log in (tmp_path / "log").glob("workerlog.*"))
    assert f"the number of Global.device={DEVICE}:1 has no effect: each of the 2 processes uses" in logs


def test_doctor_on_the_device(tmp_path: Path) -> None:
    result = run_tool("doctor", env=environment())
    assert result.returncode == 0, result.stdout
    assert f"{DEVICE}" in result.stdout
    for number in (0, 1):
        assert re.search(rf"{DEVICE}:{number} +[\d.]+ s per step of Xception41", result.stdout)


def test_a_killed_run_leaves_no_loader_process(config: Callable[..., Path]) -> None:
    file = config(**{"Global.epochs": 100})
    command = [sys.executable, "tools/train.py", "-c", str(file)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment()
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "Iter" in line:
                break
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        commands = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in children}
        loaders = [pid for pid, text in commands.items() if "loader_worker" in text]
        os.kill(process.pid, signal.SIGKILL)
    assert loaders
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}/cwd").exists() for pid in loaders):
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}/cwd").exists() for pid in loaders)
