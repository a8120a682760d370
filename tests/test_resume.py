"""Runs that are killed or stopped and started again by the same command.

They are compared with an uninterrupted run.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import ppxcls
from ppxcls.checkpoints.files import read_state
from tests.conftest import ROOT, SMALL_NETWORK, run_tool, small_config

STEPS = {
    "Global.epochs": 3,
    "Global.save_interval_steps": 2,
    "Global.save_interval": 2,
    "Global.checkpoints": "auto",
}
# Keys of a log line that depend on the clock.
TIMES = {"batch_cost", "reader_cost", "ips", "ips_total", "eta"}
# Runs that are stopped from outside need steps and checkpoints that take a while. All others have a small network.
ARCH = {"name": "SmallNetwork", "class_num": 3}


def start(file: Path, output: Path) -> subprocess.Popen[str]:
    """Starts a run. The command line is the same for the first start and for every restart."""
    command = [sys.executable, "tools/train.py", "-c", str(file), "-o", f"Global.output_dir={output}"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(file: Path, output: Path) -> str:
    process = start(file, output)
    stdout, stderr = process.communicate(timeout=250)
    assert process.returncode == 0, stderr
    return stdout


def rows(output: Path, network: str) -> list[dict[str, Any]]:
    text = (output / network / "metrics.jsonl").read_text()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in text.splitlines()]


def _is_younger(file: Path, since: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return file.stat().st_mtime_ns > since
    return False


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 200
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)


def assert_same_run(one: Path, two: Path, epochs: int = 3, network: str = "Xception41") -> None:
    folders = one / network, two / network
    for extension in (".pdparams", ".pdopt", *([".pdema"] if (folders[0] / "latest.pdema").exists() else [])):
        first, second = (read_state(folder / f"latest{extension}") for folder in folders)
        arrays = [[v for v in state.values() if isinstance(v, np.ndarray)] for state in (first, second)]
        assert len(arrays[0]) > (100 if network == "Xception41" else 5)
        # Compared in order, because the optimizer's keys are parameter names, which depend on other objects
        # in the process.
        assert all(np.array_equal(a, b) for a, b in zip(*arrays, strict=True))
    progress = [json.loads((folder / "latest.json").read_text())["progress"] for folder in folders]
    for values in progress:
        del values["started"]
    assert progress[0] == progress[1]
    assert progress[0]["best"]["metric"] == "top1"
    assert rows(one, network) == rows(two, network)
    places = [(row["epoch"], row["iter"]) for row in rows(two, network) if row["kind"] == "train"]
    assert places == [(epoch, i) for epoch in range(1, epochs + 1) for i in range(3)], (
        "none missing, none twice"
    )


@pytest.mark.parametrize("kills", [3, pytest.param(12, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_killed_and_continued_is_the_run_that_was_not(
    kills: int, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    epochs = 3 if kills < 4 else 12
    states = {  # components with a state
        "EMA": {"decay": 0.9},
        "DataLoader.Train.sampler": {"name": "RASampler", "batch_size": 4, "num_repeats": 2},
        "Optimizer.lr": {"name": "ReduceOnPlateau", "learning_rate": 0.02, "patience": 0},
    }
    file = write_config(**{**STEPS, **states, "Global.epochs": epochs, "Global.save_interval_steps": 1})
    finish(file, tmp_path / "whole")
    output, rng, writing = tmp_path / "killed", random.Random(kills), 0
    folder = output / "Xception41"

    def being_written(since: int) -> bool:
        return any(_is_younger(f, since) for f in folder.glob("*.new"))

    for kill in range(kills):
        since = time.time_ns()
        process = start(file, output)
        if kill % 3 != 2:  # later in the run, after this process has written a checkpoint
            wait_for(process, partial(_is_younger, folder / "latest.json", since))
        if kill % 3 == 0:
            wait_for(process, partial(being_written, time.time_ns()))
        else:
            wait_for(process, partial(_is_younger, folder / "metrics.jsonl", since))
            time.sleep(rng.uniform(0, 0.7))
        writing += any(folder.glob("*.new"))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it had come to its end before"
    assert writing
    print(f"survived {kills} kills, {writing} of them while a checkpoint was being written")
    assert "Resumed" in finish(file, output)
    assert (output / "Xception41/latest.pdema").exists()
    assert_same_run(tmp_path / "whole", output, epochs)
    assert not list(folder.glob("*.new"))


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGUSR1", marks=pytest.mark.slow)])
def test_a_signal_saves_and_stops(name: str, write_config: Callable[..., Path], tmp_path: Path) -> None:
    file = write_config(**{**STEPS, "Global.save_interval_steps": None})
    finish(file, tmp_path / "whole")
    output = tmp_path / "stopped"
    process = start(file, output)
    wait_for(process, (output / "Xception41/metrics.jsonl").exists)
    process.send_signal(getattr(signal, name))
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 75
    assert stderr.startswith(f"stopped by {name} and saved at epoch 1, batch ")
    assert len(stderr.splitlines()) == 1
    finish(file, output)
    assert_same_run(tmp_path / "whole", output)


def test_stopped_in_an_evaluation_it_is_evaluated_after_the_restart(
    small: Callable[..., Path], tmp_path: Path
) -> None:
    file = small(**{**STEPS, "Global.save_interval_steps": None})
    whole = ppxcls.build_trainer(ppxcls.load_config(file, [f"Global.output_dir={tmp_path}/whole"]))
    whole.fit()
    overrides = [f"Global.output_dir={tmp_path}/stopped"]
    trainer = ppxcls.build_trainer(ppxcls.load_config(file, overrides))
    evaluation = trainer.evaluation
    assert evaluation is not None
    batches = evaluation.loader.epoch

    def told_to_stop() -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return batches()

    evaluation.loader.epoch = told_to_stop
    with pytest.raises(ppxcls.Preempted, match="stopped by SIGTERM and saved at epoch 1, batch 3, step 3"):
        trainer.fit()
    ppxcls.build_trainer(ppxcls.load_config(file, overrides)).fit()
    assert_same_run(tmp_path / "whole", tmp_path / "stopped", network="SmallNetwork")


def test_minutes_between_checkpoints(small: Callable[..., Path], tmp_path: Path) -> None:
    file = small(**{"Global.save_interval_minutes": 1e-9, "Global.keep_last": 9})
    ppxcls.build_trainer(ppxcls.load_config(file)).fit()
    names = {f.stem for f in (tmp_path / "output/SmallNetwork").glob("step_*.json")}
    assert names == {"step_1", "step_2", "step_3"}


def damage(file: Path, how: str) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data if how == "flip" else data[: len(data) // 2])


def train(file: Path, *overrides: str) -> Any:
    trainer = ppxcls.build_trainer(ppxcls.load_config(file, list(overrides)))
    trainer.fit()
    return trainer


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run of one epoch. Tests must not change it."""
    folder = tmp_path_factory.mktemp("finished")
    keys = {**STEPS, "Global.epochs": 1, "Global.save_interval": 9, "Global.eval_during_train": False}
    keys |= {"Arch": ARCH, "Global.plugins": [SMALL_NETWORK]}
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(small_config(images, folder / "output", **keys)))
    train(file)
    return folder / "output"


def continued(finished: Path, small: Callable[..., Path], tmp_path: Path) -> Path:
    """Returns a config that resumes a copy of that run."""
    shutil.copytree(finished, tmp_path / "output")
    keys = {**STEPS, "Global.epochs": 1, "Global.save_interval": 9, "Global.eval_during_train": False}
    return small(Arch=ARCH, **keys)


@pytest.mark.parametrize("extension", [".pdparams", ".pdopt", ".json"])
@pytest.mark.parametrize("how", ["flip", "truncate"])
def test_auto_takes_the_next_older_one_where_the_newest_is_damaged(
    extension: str, how: str, finished: Path, small: Callable[..., Path], tmp_path: Path
) -> None:
    file = continued(finished, small, tmp_path)
    folder = tmp_path / "output/SmallNetwork"
    assert {f.stem for f in folder.glob("*.json")} == {"step_2", "step_3", "latest"}
    for name in ("step_3", "latest"):  # two links to the same parts in the original folder
        damage(folder / f"{name}{extension}", how)
    # A manifest has no digest, and with a flipped digit it may still be valid JSON. Use damage that can be
    # detected.
    if extension == ".json" and how == "flip":
        for name in ("step_3", "latest"):
            (folder / f"{name}.json").write_bytes(b"\x00" + (folder / f"{name}.json").read_bytes())
    trainer = ppxcls.build_trainer(ppxcls.load_config(file))
    assert trainer.progress.step == 2
    log = (folder / "train.log").read_text()
    assert "refused: " in log
    assert "trying the next older checkpoint" in log
    for stem in ("step_2", "step_3", "latest"):
        damage(folder / f"{stem}.pdparams", "truncate")
    with pytest.raises(
        ppxcls.CheckpointError, match="no checkpoint in .* is whole, so none can be resumed: .*step_2"
    ):
        ppxcls.build_trainer(ppxcls.load_config(file))


def test_what_is_kept(small: Callable[..., Path], tmp_path: Path) -> None:
    file = small(**{**STEPS, "Global.save_interval_steps": 1})
    train(file, "Global.keep_last=3")
    folder = tmp_path / "output/SmallNetwork"

    def names() -> set[str]:
        return {f.stem for f in folder.glob("*.json")}

    assert names() == {"step_7", "step_8", "step_9", "latest", "best_model", "epoch_2"}
    # Damaged checkpoints don't count: keep_last=2 keeps the only two whole ones and everything newer.
    for name in ("step_8.pdopt", "step_9.pdopt"):
        (folder / name).unlink()
        (folder / name).write_bytes(b"damaged")
    trainer = train(
        file,
        "Global.keep_last=2",
        "Global.epochs=4",
        "Global.save_interval_steps=3",
        f"Global.checkpoints={folder}/latest",
    )
    assert trainer.progress.step == 12
    assert names() == {"step_7", "step_8", "step_9", "step_12", "latest", "best_model", "epoch_2", "epoch_4"}


def test_a_new_run_in_the_folder_of_an_old_one_is_the_newer(
    small: Callable[..., Path], tmp_path: Path
) -> None:
    file = small(**{**STEPS, "Global.eval_during_train": False})
    train(file, "Global.checkpoints=null")
    train(file, "Global.checkpoints=null", "Global.epochs=1", "Global.seed=1")
    trainer = ppxcls.build_trainer(ppxcls.load_config(file, ["Global.epochs=1", "Global.seed=1"]))
    assert trainer.progress.step == 3
    assert {f.stem for f in (tmp_path / "output/SmallNetwork").glob("step_*.json")} == {"step_2", "step_3"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["Arch.class_num=4"], "Arch.class_num: 3 -> 4"),
        (["Arch.freeze_norm=True"], "Arch.freeze_norm: .* -> True"),
        (["Arch.name=Xception41", "Global.checkpoints=LATEST"], "Arch.name: 'SmallNetwork' -> 'Xception41'"),
        (["Optimizer.name=SGD", "Optimizer.momentum=null"], "Optimizer.name: 'Momentum' -> 'SGD'"),
        (["Global.seed=1"], "Global.seed: 0 -> 1"),
        (
            ["DataLoader.Train.sampler.batch_size=2"],
            "samples per step of all 1 processes: 4 x update_freq 1 -> 2 x update_freq 1",
        ),
        (
            ["DataLoader.Train.dataset.cls_label_path=LIST"],
            r"another training list \(12 samples before, 11 now\)",
        ),
    ],
)
def test_a_changed_config_is_refused(
    overrides: list[str],
    message: str,
    finished: Path,
    small: Callable[..., Path],
    tmp_path: Path,
    images: Path,
) -> None:
    file = continued(finished, small, tmp_path)
    other = tmp_path / "other.txt"
    other.write_text("".join((images / "train_list.txt").read_text().splitlines(keepends=True)[:-1]))
    latest = str(tmp_path / "output/SmallNetwork/latest")
    overrides = [
        o.replace("LIST", str(other)).replace("LATEST", latest)
        for o in overrides
        if o != "Optimizer.momentum=null"
    ]
    if "Optimizer.name=SGD" in overrides:
        spec = "{name: SGD, lr: {name: Cosine, learning_rate: 0.02}, regularizer: {name: L2, coeff: 0.0001}}"
        overrides = [f"Optimizer={spec}"]
    with pytest.raises(ppxcls.CheckpointError, match=message):
        ppxcls.build_trainer(ppxcls.load_config(file, overrides))


def test_a_changed_config_that_can_be_meant_is_said(
    finished: Path, small: Callable[..., Path], tmp_path: Path
) -> None:
    file = continued(finished, small, tmp_path)
    log = tmp_path / "output/SmallNetwork/train.log"
    trainer = train(file, "Optimizer.lr.learning_rate=0.01", "Global.epochs=2")
    assert trainer.progress.step == 6
    assert "changed since the checkpoint: Optimizer.lr.learning_rate: 0.02 -> 0.01" in log.read_text()
    assert "changed since the checkpoint: Global.epochs: 1 -> 2" in log.read_text()
    # With allow_changes: batches of half the size, from the same position in the data, at that position's rate.
    batch = "DataLoader.Train.sampler.batch_size=2"
    trainer = ppxcls.build_trainer(
        ppxcls.load_config(file, [batch, "Global.allow_changes=True", "Global.epochs=3"])
    )
    assert (trainer.progress.epoch, trainer.progress.step) == (3, 12)
    assert trainer.learner.rate == trainer.learner.schedule(12)
    assert "changed since the checkpoint: samples per step" in log.read_text()


def test_the_same_samples_per_step_in_other_parts_go_on(small: Callable[..., Path], tmp_path: Path) -> None:
    """Stopped inside an epoch with batches of 4, resumed with 2 x ``update_freq`` 2.

    This is not a change of the run, and the steps are the same.
    """
    file = small(**{"Global.save_interval_steps": 1, "Global.keep_last": 9, "Global.epochs": 2})
    whole = train(file, f"Global.output_dir={tmp_path}/whole", "Global.checkpoints=null")
    parts = ["DataLoader.Train.sampler.batch_size=2", "Global.update_freq=2"]
    start = f"Global.checkpoints={tmp_path}/whole/SmallNetwork/step_2"
    trainer = ppxcls.build_trainer(
        ppxcls.load_config(file, [f"Global.output_dir={tmp_path}/parts", start, *parts])
    )
    assert (trainer.progress.epoch, trainer.progress.batches_done, trainer.progress.step) == (1, 4, 2)
    trainer.fit()
    assert trainer.progress.step == whole.progress.step == 6
    # In the run's own folder, checkpoints up to this position are not treated as later ones, although they
    # count batches of another size.
    folder = tmp_path / "whole/SmallNetwork"
    train(file, f"Global.output_dir={tmp_path}/whole", f"Global.checkpoints={folder}/step_4", *parts)
    assert {f.name for f in (folder / "earlier_1").glob("step_*.json")} == {"step_5.json", "step_6.json"}
    assert {"step_1.json", "step_4.json"} <= {f.name for f in folder.glob("step_*.json")}


@pytest.mark.every_paddle
def test_paddleclas_checkpoint(write_config: Callable[..., Path], tmp_path: Path) -> None:
    """A PaddleClas checkpoint: network state, a list of optimizer states, epoch and metric."""
    import paddle

    file = write_config(**{"Global.epochs": 2, "Global.eval_during_train": False})
    whole = train(file, f"Global.output_dir={tmp_path}/whole")
    first = ppxcls.build_trainer(ppxcls.load_config(file, [f"Global.output_dir={tmp_path}/first"]))
    first.train_one_epoch()
    prefix = str(tmp_path / "theirs/latest")
    for optimizers in ([first.learner.optimizer.state_dict()], first.learner.optimizer.state_dict()):
        paddle.save(first.learner.network.state_dict(), prefix + ".pdparams")
        paddle.save(optimizers, prefix + ".pdopt")
        paddle.save({"metric": 0.5, "epoch": 1}, prefix + ".pdstates")
        second = train(file, f"Global.output_dir={tmp_path}/second", f"Global.checkpoints={prefix}")
        assert second.progress.step == 6
        expected, received = (t.learner.network.state_dict() for t in (whole, second))
        assert all(np.array_equal(expected[key].numpy(), received[key].numpy()) for key in expected)
    for states in ({"epoch": "1"}, {"epoch": -1}, [1], {"metric": 0.5}):
        paddle.save(states, prefix + ".pdstates")
        with pytest.raises(ppxcls.CheckpointError, match="latest.pdstates: expected the epoch that was done"):
            ppxcls.build_trainer(ppxcls.load_config(file, [f"Global.checkpoints={prefix}"]))


def test_resumed_on_two_processes(small: Callable[..., Path], tmp_path: Path) -> None:
    """One process is stopped inside an epoch, and two processes resume.

    They use the same samples, and the losses are equal up to rounding.
    """
    keys = {"Global.eval_during_train": False, "Global.keep_last": 9, "Global.save_interval_steps": 2}
    arch = {**ARCH, "freeze_norm": True}  # otherwise the statistics differ between processes
    file = small(Arch=arch, **{**STEPS, **keys, "DataLoader.Train.sampler.batch_size": 4})
    one = f"Global.output_dir={tmp_path}/one"
    result = run_tool("tools/train.py", "-c", file, "-o", one, is_own_process=True)
    assert result.returncode == 0, result.stderr
    for processes, size in ((2, 2), (1, 4)):
        output = tmp_path / f"again{processes}"
        overrides = [f"Global.output_dir={output}", f"DataLoader.Train.sampler.batch_size={size}"]
        overrides += [f"Global.checkpoints={tmp_path}/one/SmallNetwork/step_4", "Global.print_batch_step=1"]
        arguments = [part for override in overrides for part in ("-o", override)]
        result = run_tool(
            "tools/train.py", "-c", file, *arguments, processes=processes, log_dir=tmp_path / "log"
        )
        assert result.returncode == 0, result.stderr + result.stdout
        expected = [row for row in rows(tmp_path / "one", "SmallNetwork") if row["step"] > 4]
        received = rows(output, "SmallNetwork")
        assert [(r["epoch"], r["iter"], r["step"], r["top1"]) for r in received] == [
            (r["epoch"], r["iter"], r["step"], r["top1"]) for r in expected
        ]
        assert [r["loss"] for r in received] == pytest.approx([r["loss"] for r in expected], rel=1e-4)
