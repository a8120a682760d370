"""Runs that end before their last epoch: because they stopped improving, or because their time is over.

They are killed, stopped and started again by the same command, and compared with an uninterrupted run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ppxcls
from ppxcls.checkpoints.files import read_state
from ppxcls.train.trainer import Trainer
from tests.conftest import ROOT, SMALL_NETWORK

SCRIPTED = str(ROOT / "tests/fixtures/scripted_metric.py")
# The fourth evaluation is the second one without an improvement.
VALUES = [0.25, 0.5, 0.375, 0.5, 0.75, 0.75, 0.75, 0.875]
TIMES = {
    "batch_cost",
    "reader_cost",
    "ips",
    "ips_total",
    "eta",
}  # keys of a log line that depend on the clock


@pytest.fixture
def scripted(
    small: Callable[..., Path], tmp_path: Path, plugin_metrics_forgotten: None
) -> Callable[..., list[str]]:
    """Returns a function from the name of an output folder to the arguments of ``load_config``.

    The run has eight epochs of three steps, and ends after two evaluations without an improvement.
    """
    file = small(**{"Global.epochs": 8})

    def arguments(name: str, *overrides: str) -> list[str]:
        lines = tmp_path / name / "SmallNetwork/metrics.jsonl"
        metric = json.dumps([{"Scripted": {"values": VALUES, "lines": str(lines)}}])
        keys = [f"output_dir={tmp_path / name}", "checkpoints=auto", "early_stop.patience=2"]
        keys.append(f"plugins={json.dumps([SMALL_NETWORK, SCRIPTED])}")
        return [str(file), f"Metric.Eval={metric}", *(f"Global.{key}" for key in (*keys, *overrides))]

    return arguments


def build(arguments: list[str]) -> Trainer:
    file, *overrides = arguments
    return ppxcls.build_trainer(ppxcls.load_config(file, overrides))


def train(arguments: list[str]) -> Trainer:
    trainer = build(arguments)
    trainer.fit()
    return trainer


def command(arguments: list[str]) -> list[str]:
    file, *overrides = arguments
    return ["train", "-c", file, *(word for text in overrides for word in ("-o", text))]


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]


def assert_same_run(one: Path, two: Path) -> None:
    for name in ("latest.pdparams", "latest.pdopt", "best_model.pdparams"):
        first, second = (
            [value for value in read_state(folder / name).values() if isinstance(value, np.ndarray)]
            for folder in (one, two)
        )
        assert len(first) >= 6
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True)), name
    first, second = (json.loads((folder / "latest.json").read_text())["progress"] for folder in (one, two))
    assert {**first, "started": ""} == {**second, "started": ""}
    assert rows(one) == rows(two)


def log(folder: Path) -> str:
    return (folder / "train.log").read_text()


def test_it_ends_early_and_starts_no_more(scripted: Callable[..., list[str]], tmp_path: Path) -> None:
    folder = tmp_path / "run/SmallNetwork"
    trainer = train(scripted("run", "latest_interval=3"))
    assert trainer.is_finished
    assert (trainer.progress.epoch, trainer.progress.step) == (5, 12)
    assert trainer.progress.best["epoch"] in (2, 4), "of equal figures, the smaller loss chooses best_model"
    assert trainer.progress.improvement == {"metric": "scripted", "value": 0.5, "epoch": 2}
    reason = "The run stopped early, after epoch 4 of 8: no better scripted in 2 evaluations after epoch 2"
    rate = "The learning rate had not come down to its minimum: Cosine was at "
    assert log(folder).count(reason) == log(folder).count(rate) == 1
    again = train(scripted("run", "latest_interval=3"))
    assert again.progress.step == 12
    assert f"nothing to do: {reason}" in log(folder)
    assert [row["epoch"] for row in rows(folder) if row["kind"] == "eval"] == [1, 2, 3, 4]

    ppxcls.report(folder)
    assert "epochs: 4 of 8, stopped early" in (folder / "README.md").read_text()
    page = (folder / "report.html").read_text()
    assert reason in page
    assert rate in page
    assert "of 4 trained, 8 planned" in page
    assert "not finished" not in page


def test_more_patience_goes_on(scripted: Callable[..., list[str]], tmp_path: Path) -> None:
    whole = train(scripted("whole", "early_stop.patience=3"))
    assert whole.progress.epoch - 1 == 8, "the fifth evaluation is an improvement, and the eighth"
    train(scripted("run"))
    again = train(scripted("run", "early_stop.patience=3"))
    assert again.is_finished
    assert_same_run(tmp_path / "whole/SmallNetwork", tmp_path / "run/SmallNetwork")
    page = ppxcls.report(
        [tmp_path / "whole/SmallNetwork", train(scripted("short")).output_dir], tmp_path / "c.html"
    )
    assert "4 of 8, stopped early" in page.read_text()


def test_another_figure_starts_the_count_anew(scripted: Callable[..., list[str]], tmp_path: Path) -> None:
    train(scripted("short"))
    again = build(scripted("short", "best_metric=loss"))
    assert not again.is_finished
    assert (again.progress.improvement, again.progress.stale_evaluations) == ({}, 0)
    again.run.folder.release()


@pytest.mark.parametrize("place", ["evaluation", "save", "after the save"])
def test_killed_at_the_decision_it_takes_the_same_one(
    place: str, scripted: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(scripted("whole"))
    arguments = scripted("killed")
    if place == "evaluation":
        process = subprocess.run(
            [sys.executable, "-m", "ppxcls", *command(arguments)],
            check=False,
            cwd=ROOT,
            capture_output=True,
            env={**os.environ, "KILLED_AT": "3"},
        )
        assert process.returncode == -signal.SIGKILL
    else:
        trainer = build(arguments)
        save = trainer.save

        def killed_save(names: Any) -> None:
            if trainer.progress.epoch == 5 and place == "save":
                raise KeyboardInterrupt
            save(names)
            if trainer.progress.epoch == 5:
                trainer.run.folder.wait()
                raise KeyboardInterrupt

        monkeypatch.setattr(trainer, "save", killed_save)
        with pytest.raises(KeyboardInterrupt):
            trainer.fit()
    again = build(arguments)
    assert again.progress.epoch == (5 if place == "after the save" else 4)
    again.fit()
    assert_same_run(tmp_path / "whole/SmallNetwork", tmp_path / "killed/SmallNetwork")


def test_starts_of_one_step_are_the_whole_run(scripted: Callable[..., list[str]], tmp_path: Path) -> None:
    """Each start trains until its time is over, which is after the first step."""
    whole = train(scripted("whole", "epochs=2"))
    folder = tmp_path / "parts/SmallNetwork"
    steps = []
    while not steps or steps[-1] < whole.progress.step:
        trainer = train(scripted("parts", "epochs=2", "max_hours=1e-9"))
        steps.append(trainer.progress.step)
        assert trainer.is_finished == (steps[-1] == 6)
        if steps[-1] == 2:
            assert not (folder / "best_model.json").exists(), "an evaluation in an epoch would change the run"
            page = ppxcls.report(folder).read_text()
            assert (
                "The training is not finished: 0 of 2 epochs are done. One start trains for at most 1e-09 h"
                in page
            )
    assert steps == [1, 2, 3, 4, 5, 6]
    assert_same_run(tmp_path / "whole/SmallNetwork", folder)
    ends = [
        line for line in log(folder).splitlines() if "the time of 1e-09 h (Global.max_hours) is over" in line
    ]
    assert len(ends) == 5
    assert ends[0].endswith(
        "saved at epoch 1, batch 1, step 1; there is no best_model yet; resume with -o Global.checkpoints=auto"
    )
    assert ends[2].endswith("saved at epoch 2, batch 0, step 3; resume with -o Global.checkpoints=auto")


def test_two_processes_decide_as_one(scripted: Callable[..., list[str]], tmp_path: Path) -> None:
    """The second rank's figure gets better and better, but the first one's decides.

    Both ends have exit code 0, so nothing is restarted.
    """
    folder = tmp_path / "run/SmallNetwork"
    launcher = [sys.executable, "-m", "ppxcls", "launch", "--nproc_per_node", "2"]
    launcher += ["--log_dir", str(tmp_path / "log")]
    for override, epoch in (("max_hours=1e-9", 1), ("max_hours=null", 5)):
        words = command(scripted("run", "hang_timeout=60.0", override))
        process = subprocess.run(
            [*launcher, *words], check=False, cwd=ROOT, capture_output=True, text=True, timeout=300
        )
        assert process.returncode == 0, process.stdout + process.stderr
        assert "launch: the job ended" not in process.stderr
        progress = json.loads((folder / "latest.json").read_text())["progress"]
        assert progress["epoch"] == epoch
    assert progress["stale_evaluations"] == 2
    assert progress["improvement"] == {"metric": "scripted", "value": 0.5, "epoch": 2}
