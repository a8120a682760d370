"""LossWatch reports invalid losses with their position."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import paddle
import pytest

import ppxcls
from ppxcls.data.sampler import BatchPlan
from ppxcls.train.learner import Learner
from ppxcls.train.loss_watch import LossWatch, StepResult, TrainingError
from ppxcls.train.losses import WeightedSum
from ppxcls.train.optimizers import build_optimizer
from ppxcls.train.precision import Precision
from tests.conftest import run_tool, write_images


def step(loss: float, skipped: bool = False, count: int = 2) -> StepResult:
    plan = BatchPlan(0, np.array([0, 1]), 0, count)
    return StepResult(
        lr=0.1, plan=plan, left_out=0, sums=paddle.to_tensor([loss * count], "float32"), skipped=skipped
    )


class Listing:
    def path(self, index: int) -> str:
        return f"{index}.png"


def make_watch(max_skipped_steps: int = 3) -> tuple[LossWatch, Learner]:
    network, lr = paddle.nn.Linear(2, 2), {"name": "ConstLR", "learning_rate": 0.1}
    schedule = ppxcls.build_lr_schedule(lr, 1, steps_per_epoch=1)
    optimizer, scheduler = build_optimizer(
        {"name": "SGD", "lr": lr}, dict(network.named_parameters()), lr_at=schedule
    )
    precision = Precision(max_skipped_steps=max_skipped_steps)
    learner = Learner(
        network,
        WeightedSum([]),
        optimizer=optimizer,
        scheduler=scheduler,
        schedule=schedule,
        precision=precision,
    )
    return LossWatch(learner, Listing()), learner  # type: ignore[arg-type]


def test_skipped_steps_are_counted_and_too_many_in_a_row_stop_the_run() -> None:
    watch, learner = make_watch()
    learner.progress.step = 7
    for skipped in (True, True, False, True):
        watch.add(step(float("inf") if skipped else 2.0, skipped))
        watch.read()
    assert (learner.progress.skipped, learner.progress.skipped_total) == (1, 3)
    assert learner.totals.reduced().values == {"loss": 2.0}, "a skipped step's loss is in no mean"
    for _ in range(2):
        watch.add(step(1.0, True))
    watch.read()
    watch.add(step(1.0, True))
    with pytest.raises(
        TrainingError,
        match=r"not finite in 4 steps in a row \(AMP.max_skipped_steps = 3\); the last one is step 7",
    ):
        watch.read()


def test_a_loss_that_is_not_finite_in_a_step_that_was_made_stops_the_run() -> None:
    watch, _ = make_watch()
    watch.add(step(1.0))
    watch.add(step(float("nan")))
    with pytest.raises(
        TrainingError, match=r"epoch 1, iteration 0, lr 0.1, rank 0: loss nan; last files read: 0.png, 1.png"
    ):
        watch.read()


def said(losses: list[float], capsys: pytest.CaptureFixture[str]) -> str:
    from ppxcls.system.logs import set_up_logging

    set_up_logging()
    watch, learner = make_watch()
    for loss in losses:
        learner.progress.step += 1
        watch.add(step(loss))
        watch.read()
    return capsys.readouterr().out


def test_divergence_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    out = said([7.0] * 20 + [float(v) for v in np.linspace(7, 40, 30)], capsys)
    assert out.count("the loss diverges: ") == 1
    assert "first 7, lowest 7" in out
    rng = np.random.default_rng(0)
    for losses in (
        np.linspace(7, 2, 60) + rng.normal(0, 0.6, 60),
        rng.exponential(0.1, 60),
        np.full(60, 6.9),
        [0.5] * 30 + [3.0],
    ):
        assert "diverges" not in said([float(v) for v in losses], capsys)


def test_a_gradient_that_is_not_finite_is_found_before_the_loss_shows_it(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    trainer = ppxcls.build_trainer(ppxcls.load_config(write_config()))
    make = trainer.learner.optimizer.step
    last = dict(trainer.learner.network.named_parameters())["_exit_flow._out.bias"]

    def spoiled() -> None:
        last.grad.set_value(paddle.full_like(last.grad, float("inf")))
        make()

    trainer.learner.optimizer.step = spoiled
    with pytest.raises(
        TrainingError,
        match=r"a gradient was not finite, .* after step 1, rank "
        r"0: 1 of 2.. tensors, such as _exit_flow._out.bias",
    ):
        trainer.fit()
    assert not list((tmp_path / "output").rglob("*.pdparams"))


def test_no_checkpoint_is_made_of_weights_that_are_not_finite(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    trainer = ppxcls.build_trainer(ppxcls.load_config(write_config()))
    statistics = trainer.learner.network.state_dict()["_entry_flow._conv1._batch_norm._mean"]
    statistics.set_value(paddle.full_like(statistics, float("nan")))
    with pytest.raises(
        TrainingError, match="step 0: .*_mean has values that are not finite, so no checkpoint is written"
    ):
        trainer.save(["latest"])


@pytest.mark.parametrize("name", ["_cache_found_inf", "_cache_founf_inf"])  # the second is Paddle 2.6's
def test_a_skipped_step_is_seen_under_both_spellings(name: str) -> None:
    for is_skipped in (False, True):
        assert Precision(scaler=SimpleNamespace(**{name: is_skipped})).last_step_skipped() is is_skipped
    assert not Precision().last_step_skipped()


@pytest.mark.parametrize("skips", [2, 5])
def test_amp_that_skips(skips: int, small: Callable[..., Path], tmp_path: Path) -> None:
    """A stub replaces the scaler, which Paddle turns off on the CPU."""
    from tests.train.test_training import RecordingScaler

    class Skipping(RecordingScaler):
        _cache_found_inf: Any = None

        def step(self, optimizer: Any) -> None:
            skip = self.calls.count("step") < skips
            self._cache_found_inf = paddle.to_tensor(skip)
            if skip:
                self.calls.append("step")
            else:
                super().step(optimizer)

    amp = {"scale_loss": 128.0, "use_dynamic_loss_scaling": True, "max_skipped_steps": 3}
    trainer = ppxcls.build_trainer(
        ppxcls.load_config(small(AMP=amp, **{"Global.epochs": 2, "Global.eval_during_train": False}))
    )
    trainer.learner.precision.scaler = Skipping()
    if skips > 3:
        with pytest.raises(TrainingError, match="4 steps in a row"):
            trainer.fit()
        return
    trainer.fit()
    assert (trainer.progress.skipped, trainer.progress.skipped_total) == (0, 2)
    assert "skipped: 2, batch_cost" in (trainer.output_dir / "train.log").read_text()
    rows = [json.loads(line) for line in (trainer.output_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["skipped"] for row in rows] == [1, 2, 2, 2, 2, 2]


def test_21841_classes(write_config: Callable[..., Path], tmp_path: Path) -> None:
    """ImageNet-21k's labels, from the list to the loss, the metric and the files."""
    folder = write_images(tmp_path / "data", 8)
    lines = [
        f"train/{i:04d}.png {label}"
        for i, label in enumerate([0, 32_767, 21_840, 21_839, 256, 255, 1, 21_840])
    ]
    lines[1] = "train/0001.png 20000"
    (folder / "train_list.txt").write_text("\n".join(lines))
    keys = {f"DataLoader.{mode}.dataset.image_root": str(folder) for mode in ("Train", "Eval")}
    keys |= {
        f"DataLoader.{mode}.dataset.cls_label_path": str(folder / "train_list.txt")
        for mode in ("Train", "Eval")
    }
    mixup = {"DataLoader.Train.dataset.batch_transform_ops": [{"MixupOperator": {"alpha": 0.2}}]}
    file = write_config(**keys, **mixup, **{"Arch.class_num": 21_841})
    trainer = ppxcls.build_trainer(ppxcls.load_config(file))
    batches = list(trainer.loader.epoch())
    assert {batch.labels.dtype for batch in batches} == {np.dtype(np.int64)}
    assert sorted(np.concatenate([b.labels for b in batches]).tolist()) == [
        0,
        1,
        255,
        256,
        20_000,
        21_839,
        21_840,
        21_840,
    ]
    trainer.fit()
    assert trainer.learner.network.state_dict()["_exit_flow._out.weight"].shape == [2048, 21_841]
    (folder / "train_list.txt").write_text("train/0000.png 21841\n")
    with pytest.raises(
        ppxcls.DataError, match="the label 21841 is outside class_num = 21841, labels 0 to 21840"
    ):
        ppxcls.build_trainer(ppxcls.load_config(file))


def test_deterministic_says_what_is(small: Callable[..., Path]) -> None:
    result = run_tool(
        "tools/train.py",
        "-c",
        small(),
        "-o",
        "Global.deterministic=True",
        "-o",
        "Global.eval_during_train=False",
    )
    assert result.returncode == 0, result.stderr
    assert (
        "deterministic: on the CPU, results are bit-identical for the same number of threads "
        "(OMP_NUM_THREADS) and processes"
    ) in result.stdout
