"""The training loop: PaddleClas's losses, exact resuming, accumulation, and errors that stop a run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

import ppxcls
from ppxcls.train.losses import build_loss
from ppxcls.train.optimizers import build_optimizer
from tests.conftest import SHARED, needs_shared

RUNS = json.loads((SHARED / "parity/training.json").read_text()) if SHARED.is_dir() else {"runs": []}


def training_weights(state: dict[str, list[int]], seed: int) -> dict[str, np.ndarray]:
    from tests.models.test_models import formula_weights

    weights = formula_weights(state, seed)
    for key, value in weights.items():
        if value.ndim == 1:
            weights[key] = np.full_like(value, key.endswith(("weight", "_variance")))
    return weights


@pytest.mark.every_paddle
@needs_shared
@pytest.mark.parametrize("run", RUNS["runs"], ids=lambda r: f"epsilon-{r['epsilon']}")
def test_parity_with_paddleclas_training(run: dict[str, Any]) -> None:
    facts = RUNS
    model = ppxcls.build_model(run["arch"], class_num=facts["class_num"])
    state = {key: list(value.shape) for key, value in model.state_dict().items()}
    model.set_state_dict({k: paddle.to_tensor(v) for k, v in training_weights(state, facts["seed"]).items()})
    lr_at = ppxcls.build_lr_schedule(run["lr"], run["epochs"], steps_per_epoch=run["steps_per_epoch"])
    spec = {
        "name": "Momentum",
        "momentum": 0.9,
        "lr": run["lr"],
        "regularizer": {"name": "L2", "coeff": run["l2"]},
    }
    optimizer, scheduler = build_optimizer(spec, dict(model.named_parameters()), lr_at=lr_at)
    loss_fn = build_loss([{"CELoss": {"epsilon": run["epsilon"]}}])
    model.train()
    losses = []
    for step in range(facts["steps"]):
        rng = np.random.default_rng([facts["seed"], 1000 + step % 2])
        shape = (facts["batch"], 3, facts["image_size"], facts["image_size"])
        images = rng.normal(0, 1, shape).astype(np.float32)
        labels = rng.integers(0, facts["class_num"], (facts["batch"], 1))[:, 0]
        loss = loss_fn(model(paddle.to_tensor(images)), paddle.to_tensor(labels))["loss"]
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        scheduler.step()
        losses.append(float(loss))
    assert losses == pytest.approx(run["losses"], rel=5e-3)
    final = {k: v.numpy().astype(np.float64) for k, v in model.state_dict().items()}
    running = {k: v for k, v in final.items() if k.endswith(("_mean", "_variance"))}

    def norm(values: Any) -> float:
        return float(np.sqrt(sum((v**2).sum() for v in values)))

    assert norm(v for k, v in final.items() if k not in running) == pytest.approx(
        run["weight_norm"], rel=1e-8
    )
    # Measured relative difference: 0.7e-5 with two threads, 5.6e-5 with one.
    assert norm(running.values()) == pytest.approx(run["running_norm"], rel=1e-4)


def train(config_file: Path, *overrides: str) -> Any:
    trainer = ppxcls.build_trainer(ppxcls.load_config(config_file, list(overrides)))
    trainer.fit()
    return trainer


def weights(trainer: Any) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in trainer.learner.network.state_dict().items()}


def lines(output: Path, kind: str) -> list[dict[str, Any]]:
    rows = (json.loads(line) for line in (output / "SmallNetwork/metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["kind"] == kind]


@pytest.mark.parametrize(
    "arch", [pytest.param("Xception41", marks=pytest.mark.every_paddle), "Xception41_deeplab"]
)
def test_resuming_after_an_epoch_is_exact(
    arch: str, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    """Deeplab's dropout also draws random numbers."""
    file = write_config()
    overrides = (f"Arch.name={arch}", "Global.epochs=2", "Global.eval_during_train=False")
    whole = train(file, *overrides, f"Global.output_dir={tmp_path}/whole")
    # Both parts use the schedule of two epochs, so the first run is stopped after one epoch.
    first = ppxcls.build_trainer(ppxcls.load_config(file, [*overrides, f"Global.output_dir={tmp_path}/part"]))
    first.train_one_epoch()
    first.learner.start_epoch(2)
    first.save(["latest"])
    first.run.folder.wait()
    second = train(
        file,
        *overrides,
        f"Global.output_dir={tmp_path}/part",
        f"Global.checkpoints={tmp_path}/part/{arch}/latest",
    )
    expected = weights(whole)
    received = weights(second)
    assert all(np.array_equal(expected[key], received[key]) for key in expected)
    states = [t.learner.optimizer.state_dict() for t in (whole, second)]
    momenta = [
        sorted(
            (k.split("_velocity")[0].split(".")[-1], v.numpy().sum()) for k, v in s.items() if "velocity" in k
        )
        for s in states
    ]
    assert momenta[0] == momenta[1]
    assert whole.progress == second.progress


def test_the_order_of_the_samples_and_the_rate_go_on(small: Callable[..., Path], tmp_path: Path) -> None:
    file = small()
    train(file, "Global.epochs=2", f"Global.output_dir={tmp_path}/a")
    one, two = lines(tmp_path / "a", "train")[:3], lines(tmp_path / "a", "train")[3:]
    assert [row["iter"] for row in one] == [row["iter"] for row in two] == [0, 1, 2]
    assert [row["step"] for row in one + two] == [1, 2, 3, 4, 5, 6]
    assert one[0]["loss"] != two[0]["loss"]
    lr_at = ppxcls.build_lr_schedule({"name": "Cosine", "learning_rate": 0.02}, epochs=2, steps_per_epoch=3)
    assert [row["lr"] for row in one + two] == [lr_at(step) for step in range(6)]


def test_accumulated_gradients_are_those_of_the_whole_batch(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    """Compares one batch of 12 samples with micro-batches of 5, 5 and 2.

    Batch norm is in eval mode.
    """
    grads = []
    for size, freq in ((12, 1), (5, 3)):
        file = write_config(**{"DataLoader.Train.sampler.batch_size": size, "Global.update_freq": freq})
        trainer = ppxcls.build_trainer(ppxcls.load_config(file, [f"Global.output_dir={tmp_path}/{size}"]))
        trainer.learner.model.train = trainer.learner.model.eval  # type: ignore[method-assign]
        caught: dict[str, np.ndarray] = {}

        def catch(trainer: Any = trainer, caught: dict[str, np.ndarray] = caught) -> None:
            caught.update(
                {
                    k: p.grad.numpy()
                    for k, p in trainer.learner.network.named_parameters()
                    if p.grad is not None
                }
            )

        trainer.learner.optimizer.step = catch
        trainer.train_one_epoch()
        assert trainer.progress.step == 1
        grads.append(caught)
    assert grads[0].keys() == grads[1].keys()
    for key, value in grads[0].items():
        assert np.abs(value - grads[1][key]).max() <= 1e-4 * max(np.abs(value).max(), 1e-3), key


def test_evaluation_during_and_after_training_agree(small: Callable[..., Path], tmp_path: Path) -> None:
    file = small()
    trainer = train(file, "Global.epochs=2")
    output = tmp_path / "output"
    during = lines(output, "eval")
    assert [row["epoch"] for row in during] == [1, 2]
    assert {row["num_samples"] for row in during} == {7}
    after = ppxcls.evaluate(
        ppxcls.load_config(file, [f"Global.pretrained_model={output}/SmallNetwork/epoch_2"])
    )
    assert after == {key: during[1][key] for key in after}
    best = ppxcls.evaluate(
        ppxcls.load_config(file, [f"Global.pretrained_model={output}/SmallNetwork/best_model"])
    )
    assert best["top1"] == max(row["top1"] for row in during) == trainer.progress.best["value"]
    assert list(best) == ["top1", "top2", "CELoss", "loss", "num_samples"]
    assert ppxcls.evaluate(ppxcls.load_config(file)) == best  # the default is the run's best_model
    kept = ppxcls.load_config(output / "SmallNetwork/config.yaml")
    assert kept.Global.epochs == 2, "evaluating leaves the training run's config alone"


def test_evaluation_counts_every_sample_once_for_any_batch_size(
    small: Callable[..., Path], tmp_path: Path
) -> None:
    file = small()
    train(file)
    weights_file = tmp_path / "output/SmallNetwork/latest"
    results = [
        ppxcls.evaluate(
            ppxcls.load_config(
                file, [f"Global.pretrained_model={weights_file}", f"DataLoader.Eval.sampler.batch_size={n}"]
            )
        )
        for n in (1, 3, 7, 50)
    ]
    assert {r["num_samples"] for r in results} == {7}
    assert len({(r["top1"], r["top2"]) for r in results}) == 1
    assert [r["loss"] for r in results] == pytest.approx([results[0]["loss"]] * 4, rel=1e-5)


def test_mixup_trains_and_skips_the_training_metrics(small: Callable[..., Path], tmp_path: Path) -> None:
    train(small(**{"DataLoader.Train.dataset.batch_transform_ops": [{"MixupOperator": {"alpha": 0.2}}]}))
    rows = lines(tmp_path / "output", "train")
    assert len(rows) == 3
    assert "top1" not in rows[0]
    assert np.isfinite(rows[-1]["loss"])


def test_loss_that_is_not_finite_stops_the_run(write_config: Callable[..., Path], tmp_path: Path) -> None:
    file = write_config(
        **{"Optimizer.lr": {"name": "ConstLR", "learning_rate": 1e30}, "Global.print_batch_step": 2}
    )
    trainer = ppxcls.build_trainer(ppxcls.load_config(file))
    with pytest.raises(
        ppxcls.TrainingError,
        match=r"not finite: epoch 1, iteration [12], lr 1e\+30, rank 0: .*loss nan.*last files",
    ) as e:
        trainer.fit()
    assert str(e.value).count(".png") == 4
    assert not (tmp_path / "output/Xception41/latest.json").exists()


def test_what_is_left_in_the_output_folder(small: Callable[..., Path], tmp_path: Path) -> None:
    file = small(**{"Global.use_visualdl": True})
    train(file)
    train(file)
    folder = tmp_path / "output/SmallNetwork"
    names = {f.name for f in folder.iterdir()}
    expected = {
        f"{n}.{e}"
        for n in ("step_3", "latest", "best_model", "epoch_1")
        for e in ("pdparams", "pdopt", "json")
    }
    expected = expected - {"best_model.pdopt"} | {
        "config.yaml",
        "metrics.jsonl",
        "starts.jsonl",
        "vdl",
        "predictions.csv",
        "first_batch.png",
    }
    assert names == expected | {"run.lock", "train.log", "earlier_1"}
    assert len(lines(tmp_path / "output", "train")) == 3  # the first run's lines are in earlier_1
    assert {f.name for f in (folder / "earlier_1").iterdir()} == expected
    assert ppxcls.load_config(folder / "config.yaml").Global.epochs == 1
    log = (folder / "train.log").read_text()
    assert "[Train][Epoch 1/1][Iter: 0/3]lr(Cosine): 0.0" in log
    for word in (
        "top1: ",
        "CELoss: ",
        "loss: ",
        "batch_cost: ",
        "reader_cost: ",
        "ips: ",
        " samples/s/card, ",
        " in all, ",
        "eta: ",
    ):
        assert word in log
    row = lines(tmp_path / "output", "train")[0]
    assert {
        "epoch",
        "iter",
        "step",
        "lr",
        "top1",
        "top2",
        "CELoss",
        "loss",
        "batch_cost",
        "reader_cost",
        "ips",
        "ips_total",
    } <= set(row)
    from visualdl import LogReader

    reader = LogReader(file_path=str(next((folder / "vdl").iterdir())))
    assert {"train_loss", "train_lr", "train_ips", "train_top1", "eval_top1", "eval_loss"} <= set(
        reader.get_tags()["scalar"]
    )


@pytest.mark.every_paddle
def test_fine_tuning_to_another_number_of_classes(write_config: Callable[..., Path], tmp_path: Path) -> None:
    model = ppxcls.build_model("Xception41", class_num=5)
    paddle.save(model.state_dict(), str(tmp_path / "five.pdparams"))
    file = write_config(**{"Global.pretrained_model": str(tmp_path / "five")})
    trainer = ppxcls.build_trainer(ppxcls.load_config(file))
    key = "_middle_flow._conv_3._conv_0._pointwise_conv._conv.weight"
    assert np.array_equal(trainer.learner.network.state_dict()[key].numpy(), model.state_dict()[key].numpy())
    log = (tmp_path / "output/Xception41/train.log").read_text()
    assert (
        "the classifier starts with fresh weights, because "
        "its size differs: _exit_flow._out.weight is [2048, 5]" in log
    )
    with pytest.raises(ppxcls.CheckpointError, match="does not fit the model"):
        ppxcls.evaluate(ppxcls.load_config(file))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["Optimizer=null"], "Optimizer: the section is missing"),
        (["DataLoader.Train=null"], "DataLoader.Train: the section is missing"),
        (["Loss.Train=[]"], "Loss.Train: expected at least one loss"),
        (["DataLoader.Eval.sampler.drop_last=True"], "drop_last: expected false"),
        (
            ["DataLoader.Train.sampler.batch_size=64", "DataLoader.Train.sampler.drop_last=True"],
            "drop_last drops all 12",
        ),
        (["Optimizer.lr.warmup_epoch=3"], "Optimizer.lr.warmup_epoch: expected a number at most 1"),
        (
            ["Arch.freeze=['.']"],
            "Arch.freeze: expected patterns that leave something to train; every parameter is frozen",
        ),
        (["Arch.freeze=[_mean]"], "Arch.freeze.0: pattern '_mean' matches no parameter"),
        (
            ["DataLoader.Eval.dataset.transform_ops=[{ResizeImage: {size: 71}}]"],
            "expected DecodeImage as the first of transform_ops",
        ),
        (["DataLoader.Train.dataset.transform_ops=[]"], "expected DecodeImage as the first of transform_ops"),
        (
            ["Optimizer.lr={name: Cosine, learning_rate: 0.1, eta_min: 0.2}"],
            "expected eta_min of at most learning_rate, 0.1, received 0.2",
        ),
        (["Arch.freeze=[nothing]"], "Arch.freeze.0: pattern 'nothing' matches no parameter"),
        (
            ["Optimizer.no_weight_decay_name=bnn"],
            "Optimizer.no_weight_decay_name: no parameter's state key contains 'bnn'",
        ),
        (
            ["Arch.freeze=['^(?!_exit_flow._out)']", "Optimizer.layer_decay=0.5"],
            "Optimizer.layer_decay: expected null: only one layer is trained",
        ),
        (
            ["Arch.freeze=['^_entry_flow']", "Optimizer.groups=[{params: _entry_flow}]"],
            "Optimizer.groups.0.params: pattern '_entry_flow' matches frozen parameters only",
        ),
    ],
)
def test_refused_when_built(overrides: list[str], message: str, write_config: Callable[..., Path]) -> None:
    with pytest.raises(ppxcls.ConfigError, match=message):
        ppxcls.build_trainer(ppxcls.load_config(write_config(), overrides))


class RecordingScaler:
    """A loss scaler with scale 128 that behaves like ``paddle.amp.GradScaler`` on devices with float16.

    Paddle turns its own scaler off on the CPU.
    """

    def __init__(self) -> None:
        self.state: dict[str, Any] = {
            "scale": np.array([128.0], np.float32),
            "incr_count": 3,
            "use_dynamic_loss_scaling": True,
        }
        self.calls: list[str] = []

    def scale(self, loss: paddle.Tensor) -> paddle.Tensor:
        self.calls.append("scale")
        return loss * 128.0

    def step(self, optimizer: Any) -> None:
        self.calls.append("step")
        with paddle.no_grad():
            for parameter in optimizer._parameter_list:
                if parameter.grad is not None:
                    parameter.grad.scale_(1 / 128)
        optimizer.step()

    def update(self) -> None:
        self.calls.append("update")

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


def test_loss_scaling_is_used_and_kept(small: Callable[..., Path], tmp_path: Path) -> None:
    file = small()
    plain = ppxcls.build_trainer(ppxcls.load_config(file, [f"Global.output_dir={tmp_path}/plain"]))
    scaled = ppxcls.build_trainer(ppxcls.load_config(file, [f"Global.output_dir={tmp_path}/scaled"]))
    scaled.learner.precision.scaler = scaler = RecordingScaler()
    for trainer in (plain, scaled):
        trainer.train_one_epoch()
    scaled.save(["latest"])
    scaled.run.folder.wait()
    assert scaler.calls == ["scale", "step", "update"] * 3
    first, second = weights(plain), weights(scaled)
    assert all(np.allclose(first[key], second[key], rtol=1e-3, atol=1e-4) for key in first)
    again = ppxcls.build_trainer(ppxcls.load_config(file))
    again.learner.precision.scaler = RecordingScaler()
    again.resume(tmp_path / "scaled/SmallNetwork/latest")
    assert again.learner.precision.scaler.state == {
        "scale": [128.0],
        "incr_count": 3,
        "use_dynamic_loss_scaling": True,
    }


@pytest.mark.parametrize("level", ["O1", "O2"])
def test_amp_on_a_cpu_is_float32_and_says_so(
    level: str, small: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """``tests/accelerator`` trains with AMP on a device."""
    amp = {"scale_loss": 128.0, "use_dynamic_loss_scaling": True, "level": level, "use_fp16_test": True}
    trainer = train(small(AMP=amp))
    assert trainer.learner.precision.autocast is contextlib.nullcontext
    assert "AMP has no effect here, everything is computed in float32" in capsys.readouterr().out
    assert trainer.progress.step == 3
    during = lines(trainer.output_dir.parent, "eval")[0]
    after = ppxcls.evaluate(
        ppxcls.load_config(small(AMP=amp), [f"Global.pretrained_model={trainer.output_dir}/latest"])
    )
    assert after == {key: during[key] for key in after}
    assert ppxcls.load_config(small(AMP={"level": "O1"})).AMP.use_amp


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("Xception41", marks=pytest.mark.every_paddle),
        pytest.param("xception41p", marks=pytest.mark.slow),
    ],
)
def test_a_static_graph_gives_the_same_losses(
    name: str, write_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with averaged weights and a later evaluation. The weights have the same keys.

    Both runs use Paddle's operators, because small batches amplify the rounding differences of the CPU
    operators.
    """
    monkeypatch.setattr("ppxcls.ops.cpu.are_plain", lambda *_: False)
    file = write_config(**{"Arch.name": name, "EMA": {"decay": 0.5}, "Optimizer.lr.learning_rate": 1e-3})
    losses = {}
    for static in (False, True):
        trainer = train(file, f"Global.to_static={static}", f"Global.output_dir={tmp_path}/{static}")
        rows = [json.loads(line) for line in (trainer.output_dir / "metrics.jsonl").read_text().splitlines()]
        losses[static] = [row["loss"] for row in rows]
        latest = f"Global.pretrained_model={trainer.output_dir}/latest"
        assert ppxcls.evaluate(ppxcls.load_config(trainer.output_dir, [latest]))["loss"] == pytest.approx(
            losses[static][-1], rel=1e-6
        )
        assert set(trainer.learner.network.state_dict()) == set(
            ppxcls.build_model(name, class_num=3).state_dict()
        )
    assert len(losses[True]) == 4
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)


@pytest.mark.parametrize(("rule", "expected"), [("linear", 0.02 * 8 / 32), ("sqrt", 0.02 * 0.5)])
def test_the_rate_follows_the_samples_per_step(
    rule: str, expected: float, write_config: Callable[..., Path]
) -> None:
    keys = [
        f"Global.scale_lr={rule}",
        "Global.base_batch_size=32",
        "Global.update_freq=2",
        "Arch.name=SmallNetwork",
    ]
    config = ppxcls.load_config(write_config(**{"Global.plugins": ["tests/fixtures/small_network.py"]}), keys)
    assert ppxcls.build_trainer(config).learner.rate == pytest.approx(expected)
