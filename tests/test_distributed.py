"""Two processes on the CPU under Paddle's launcher, started as users start them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import ppxcls
from ppxcls.checkpoints.files import read_state
from ppxcls.models.weights import save_weights
from tests.conftest import BLOCK_NETWORK, ROOT, run_tool


def train_lines(output: Path, network: str = "Xception41") -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (output / network / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "train"]


# Steps with two batch norms, with and without ReLU, on this rank's part of seven images. Rank 0 writes the
# results.
STEPS = f"""
import json, sys
sys.path.insert(0, {str(ROOT)!r})
import ppxcls
ppxcls.build_model
import numpy as np, paddle, paddle.distributed as dist
from paddle import nn
from ppxcls.models.common_keys import synchronize_batch_norms
from ppxcls.ops.batch_norm import NormReLU

paddle.set_device("cpu")
if dist.get_world_size() > 1:
    dist.init_parallel_env()
results = []
for is_frozen in (False, True):
    paddle.seed(0)
    network = nn.Sequential(nn.Conv2D(3, 4, 3), NormReLU(4), nn.Conv2D(4, 5, 3), nn.BatchNorm2D(5), nn.Flatten(), nn.Linear(80, 3))
    if is_frozen:  # the first norm's input needs no gradient
        for parameter in network[0].parameters():
            parameter.stop_gradient = True
    synchronize_batch_norms(network)
    images, labels = np.random.default_rng(0).normal(3, 2, (7, 3, 8, 8)).astype("float32"), np.arange(7) % 3
    mine = {{1: [slice(0, 7)], 2: [slice(0, 4), slice(4, 7)]}}[dist.get_world_size()][dist.get_rank()]
    logits = network(paddle.to_tensor(images[mine]))
    loss = nn.functional.cross_entropy(logits, paddle.to_tensor(labels[mine]), reduction="sum") / 7
    loss.backward()
    values = {{"loss": loss}} | {{key: p.grad for key, p in network.named_parameters() if not p.stop_gradient}}
    if dist.get_world_size() > 1:
        for value in values.values():
            dist.all_reduce(value)
    values |= {{key: value for key, value in network.state_dict().items() if key.endswith(("_mean", "_variance"))}}
    results.append({{key: value.numpy().tolist() for key, value in values.items()}})
if dist.get_rank() == 0:
    with open(sys.argv[1], "w") as file:
        json.dump(results, file)
"""


@pytest.mark.every_paddle
def test_synchronised_batch_norms_give_the_gradients_of_the_whole_batch(tmp_path: Path) -> None:
    """Compares parts of 4 and 3 images with all 7 in one process, which uses Paddle's own batch norm.

    One network is trained whole. Of the other one, the first batch norm is frozen.
    """
    script = tmp_path / "steps.py"
    script.write_text(STEPS)
    results = []
    for processes in (1, 2):
        output = tmp_path / f"{processes}.json"
        result = run_tool(script, output, processes=processes, log_dir=tmp_path / "log")
        assert result.returncode == 0, result.stderr
        results.append(json.loads(output.read_text()))
    for whole, parted, gradients in zip(*results, (10, 8), strict=True):
        assert len(whole) == 1 + gradients + 4
        for key, value in whole.items():
            assert np.allclose(parted[key], value, rtol=1e-5, atol=1e-6), key


def test_synchronised_batch_norms_make_the_split_irrelevant(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    """8 samples per step as 1 x 8 and as 2 x 4, and a last batch of 5 as 3 + 2.

    Small batches amplify rounding from step to step: the fourth loss differed by up to 3e-4.
    """
    file = write_config()
    listed = (
        Path(yaml.safe_load(file.read_text())["DataLoader"]["Train"]["dataset"]["cls_label_path"])
        .read_text()
        .splitlines()
    )
    (tmp_path / "list.txt").write_text("\n".join([*listed, listed[0]]) + "\n")
    rows = []
    for processes, size in ((1, 8), (2, 4)):
        keys = {"Arch.use_sync_bn": True, "Global.epochs": 2, "Global.eval_during_train": False}
        keys |= {"DataLoader.Train.sampler.batch_size": size, "Optimizer.lr.learning_rate": 1e-3}
        file = write_config(**keys, **{"DataLoader.Train.dataset.cls_label_path": str(tmp_path / "list.txt")})
        output = f"Global.output_dir={tmp_path}/{processes}"
        result = run_tool(
            "tools/train.py", "-c", file, "-o", output, processes=processes, log_dir=tmp_path / "log"
        )
        assert result.returncode == 0, result.stderr + result.stdout
        rows.append(train_lines(tmp_path / f"{processes}"))
    assert len(rows[0]) == len(rows[1]) == 4
    assert [row["loss"] for row in rows[1]] == pytest.approx([row["loss"] for row in rows[0]], rel=1e-3)
    assert [row["loss"] for row in rows[1]][:2] == pytest.approx(
        [row["loss"] for row in rows[0]][:2], rel=1e-5
    )


@pytest.mark.parametrize("update_freq", [1, pytest.param(2, marks=pytest.mark.every_paddle)])
def test_two_processes_give_the_losses_of_one_with_twice_the_batch(
    update_freq: int, small: Callable[..., Path], tmp_path: Path
) -> None:
    """12 samples in global batches of 8: the second batch is short.

    With update_freq 2, both batches make one step. 63 evaluated images fit the same calibration.
    """
    epochs: dict[str, Any] = {"Global.epochs": 2, "Global.update_freq": update_freq}
    content = yaml.safe_load(small().read_text())  # registers the network
    lines = Path(content["DataLoader"]["Eval"]["dataset"]["cls_label_path"]).read_text().splitlines()
    (tmp_path / "nine_times.txt").write_text("\n".join(lines * 9) + "\n")
    epochs["DataLoader.Eval.dataset.cls_label_path"] = str(tmp_path / "nine_times.txt")
    start = tmp_path / "start.pdparams"
    save_weights(ppxcls.build_model("SmallNetwork", class_num=3), start)
    # Otherwise the statistics differ between processes.
    epochs["Arch"] = {"name": "SmallNetwork", "freeze_norm": True, "pretrained": str(start)}
    for processes, size in ((1, 8), (2, 4)):
        file = small(**{**epochs, "DataLoader.Train.sampler.batch_size": size})
        output = f"Global.output_dir={tmp_path}/{processes}"
        result = run_tool(
            "tools/train.py", "-c", file, "-o", output, processes=processes, log_dir=tmp_path / "log"
        )
        assert result.returncode == 0, result.stderr + result.stdout
    one, two = (train_lines(tmp_path / name, "SmallNetwork") for name in "12")
    assert len(one) == len(two) == 4
    assert [row["step"] for row in one] == [row["step"] for row in two]
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-4)
    assert [row["top1"] for row in two] == [row["top1"] for row in one]
    states = [read_state(tmp_path / f"{n}/SmallNetwork/latest.pdparams") for n in (1, 2)]
    assert np.allclose(states[0]["conv.weight"], states[1]["conv.weight"], atol=1e-4)
    records = [json.loads((tmp_path / f"{n}/SmallNetwork/calibration.json").read_text()) for n in (1, 2)]
    assert records[0]["images_per_class"] == records[1]["images_per_class"]
    assert 0.1 < records[0]["temperature"] < 10, "a temperature on a bound is the same for any logits"
    for key in ("temperature", "energies", "true_scores"):
        assert np.allclose(records[0][key], records[1][key], rtol=1e-3), key
    assert not list((tmp_path / "2").rglob("*.new"))


@pytest.mark.every_paddle
def test_recompute_changes_no_loss_of_two_processes(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    """Drop path is on, so both passes of a block must draw the same random numbers."""
    keys = {"Global.epochs": 2, "Global.eval_during_train": False, "Global.plugins": [BLOCK_NETWORK]}
    arch = {"name": "BlockNetwork", "class_num": 3, "drop_path_rate": 0.5}
    for has_recompute in (False, True):
        file = write_config(**keys, Arch={**arch, "recompute": has_recompute})
        output = f"Global.output_dir={tmp_path}/{has_recompute}"
        result = run_tool("tools/train.py", "-c", file, "-o", output, processes=2, log_dir=tmp_path / "log")
        assert result.returncode == 0, result.stderr + result.stdout
    plain, recomputed = (
        [row["loss"] for row in train_lines(tmp_path / f"{has_recompute}", "BlockNetwork")]
        for has_recompute in (False, True)
    )
    assert len(plain) == 4
    assert recomputed == pytest.approx(plain, rel=1e-4)
    assert plain[2] != pytest.approx(plain[0], rel=1e-2), "the training changes the loss"


@pytest.mark.every_paddle
def test_two_processes_evaluate_to_the_last_count(small: Callable[..., Path], tmp_path: Path) -> None:
    """7 samples in batches of 4 are not divisible by 2 processes.

    With batches of 3 the second process gets no sample of the last global batch.
    """
    file = small()
    assert run_tool("tools/train.py", "-c", file).returncode == 0
    best = f"Global.pretrained_model={tmp_path}/output/SmallNetwork/best_model"
    results = []
    for processes, size in ((1, 4), (2, 4), (2, 3)):
        sampler = f"DataLoader.Eval.sampler.batch_size={size}"
        result = run_tool(
            "tools/eval.py",
            "-c",
            file,
            "-o",
            best,
            "-o",
            sampler,
            processes=processes,
            log_dir=tmp_path / "log",
        )
        assert result.returncode == 0, result.stderr + result.stdout
        assert "[Eval][Avg]top1: " in result.stdout + (tmp_path / "output/SmallNetwork/train.log").read_text()
        results.append(json.loads((tmp_path / "output/SmallNetwork/eval.json").read_text()))
    assert [r["num_samples"] for r in results] == [7, 7, 7]
    assert len({(r["top1"], r["top2"]) for r in results}) == 1
    assert [r["loss"] for r in results] == pytest.approx([results[0]["loss"]] * 3, rel=1e-5)


def test_an_error_on_every_rank_ends_the_job_with_its_message(
    small: Callable[..., Path], tmp_path: Path
) -> None:
    file = small()
    result = run_tool(
        "tools/train.py", "-c", file, "-o", "Arch.class_num=2", processes=2, log_dir=tmp_path / "log"
    )
    assert result.returncode != 0
    logs = "".join(f.read_text() for f in (tmp_path / "log").glob("workerlog.*"))
    assert "the label 2 is outside class_num = 2" in logs
    # If the other rank fails first, the launcher ends this rank, and Paddle prints a "C++ Traceback" in it.
    assert '  File "' not in logs
