"""Two processes on the CPU under Paddle's launcher, as a user starts them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppxcls.checkpoints.files import read_state
from tests.conftest import ROOT, run_tool

# What tools/train.py does, with batch norm in eval mode: its statistics are those of a process's own batch.
FROZEN_BATCH_NORM = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import ppxcls
from ppxcls import cli

def main():
    arguments = cli.parse_arguments("")
    trainer = ppxcls.build_trainer(ppxcls.load_config(arguments.config, arguments.override))
    trainer.learner.model.train = trainer.learner.model.eval
    trainer.fit()

if __name__ == "__main__":
    cli.run(main)
"""


def train_lines(output: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (output / "Xception41/metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "train"]


@pytest.mark.every_paddle
@pytest.mark.parametrize("update_freq", [1, 2])
def test_two_processes_give_the_losses_of_one_with_twice_the_batch(
    update_freq: int, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    """12 samples in global batches of 8: the second batch is a short one, and with update_freq both make one step."""
    script = tmp_path / "train.py"
    script.write_text(FROZEN_BATCH_NORM)
    epochs = {"Global.epochs": 2, "Global.update_freq": update_freq, "Global.eval_during_train": False}
    for processes, size in ((1, 8), (2, 4)):
        file = write_config(**{**epochs, "DataLoader.Train.sampler.batch_size": size})
        output = f"Global.output_dir={tmp_path}/{processes}"
        result = run_tool(script, "-c", file, "-o", output, processes=processes, log_dir=tmp_path / "log")
        assert result.returncode == 0, result.stderr + result.stdout
    one, two = train_lines(tmp_path / "1"), train_lines(tmp_path / "2")
    assert len(one) == len(two) == 4
    assert [row["step"] for row in one] == [row["step"] for row in two]
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-4)
    assert [row["top1"] for row in two] == [row["top1"] for row in one]
    states = [read_state(tmp_path / f"{n}/Xception41/latest.pdparams") for n in (1, 2)]
    key = "_entry_flow._conv1._conv.weight"
    assert np.allclose(states[0][key], states[1][key], atol=1e-4)
    assert not list((tmp_path / "2").rglob("*.new"))


@pytest.mark.every_paddle
def test_two_processes_evaluate_to_the_last_count(write_config: Callable[..., Path], tmp_path: Path) -> None:
    """7 samples in batches of 4 do not divide by 2; with batches of 3 the second process has none of the last global batch."""
    file = write_config()
    assert run_tool("tools/train.py", "-c", file).returncode == 0
    best = f"Global.pretrained_model={tmp_path}/output/Xception41/best_model"
    results = []
    for processes, size in ((1, 4), (2, 4), (2, 3)):
        sampler = f"DataLoader.Eval.sampler.batch_size={size}"
        result = run_tool("tools/eval.py", "-c", file, "-o", best, "-o", sampler, processes=processes, log_dir=tmp_path / "log")
        assert result.returncode == 0, result.stderr + result.stdout
        assert "[Eval][Avg]top1: " in result.stdout + (tmp_path / "output/Xception41/train.log").read_text()
        results.append(json.loads((tmp_path / "output/Xception41/eval.json").read_text()))
    assert [r["num_samples"] for r in results] == [7, 7, 7]
    assert len({(r["top1"], r["top2"]) for r in results}) == 1
    assert [r["loss"] for r in results] == pytest.approx([results[0]["loss"]] * 3, rel=1e-5)


def test_an_error_on_every_rank_ends_the_job_with_its_message(write_config: Callable[..., Path], tmp_path: Path) -> None:
    file = write_config()
    result = run_tool("tools/train.py", "-c", file, "-o", "Arch.class_num=2", processes=2, log_dir=tmp_path / "log")
    assert result.returncode != 0
    logs = "".join(f.read_text() for f in (tmp_path / "log").glob("workerlog.*"))
    assert "the label 2 is outside class_num = 2" in logs
    assert "Traceback" not in logs
