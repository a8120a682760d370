"""Optimizers, EMA, schedules, losses, metrics, samplers and mixing.

They are compared with closed forms and other implementations.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from sklearn import metrics as sklearn_metrics

import ppxcls
from ppxcls.data.sampler import ClassBalancedSampler, ProgressiveSampler, RASampler
from ppxcls.models.common_keys import network_blocks
from ppxcls.models.weights import save_weights
from ppxcls.train.class_metrics import ClassReport
from ppxcls.train.ema import WeightAverage
from ppxcls.train.losses import build_loss
from ppxcls.train.mixing import build_batch_transforms
from ppxcls.train.optimizers import build_optimizer, layer_depths

LR = {"name": "ConstLR", "learning_rate": 0.1}


def after_steps(
    spec: dict[str, Any], steps: int = 2, shape: tuple[int, ...] = (2, 3)
) -> dict[str, np.ndarray]:
    """Returns the weights after some steps.

    All weights start at 1, and every gradient is ``0.5 * (step + 1)``.
    """
    model = paddle.nn.Sequential(
        ("body", paddle.nn.Linear(*shape)), ("norm", paddle.nn.BatchNorm1D(shape[1]))
    )
    for p in model.parameters():
        p.set_value(paddle.ones(p.shape))
    optimizer, scheduler = build_optimizer(
        {"lr": LR, **spec}, dict(model.named_parameters()), lr_at=lambda step: 0.1
    )
    for step in range(steps):
        for p in model.parameters():
            if not p.stop_gradient:
                p.grad = paddle.full(p.shape, 0.5 * (step + 1))
        optimizer.step()
        optimizer.clear_grad()
        scheduler.step()
    return {key: p.numpy().reshape(-1)[0] for key, p in model.named_parameters() if not p.stop_gradient}


def test_adamw_against_its_paper() -> None:
    w, m, v = 1.0, 0.0, 0.0
    for t, g in enumerate((0.5, 1.0), 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w = w - 0.1 * 0.05 * w - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    free = after_steps({"name": "AdamW", "weight_decay": 0.05, "one_dim_param_no_weight_decay": True})
    assert free["body.weight"] == pytest.approx(w, rel=1e-5)
    plain = after_steps({"name": "AdamW", "weight_decay": 0.0})
    assert free["body.bias"] == pytest.approx(plain["body.bias"], rel=1e-6)
    named = after_steps({"name": "AdamW", "weight_decay": 0.05, "no_weight_decay_name": "norm bias"})
    assert named["body.weight"] == pytest.approx(w, rel=1e-5)
    assert named["norm.weight"] == pytest.approx(plain["norm.weight"], rel=1e-6)


def test_rmsprop_has_epsilon_inside_the_root() -> None:
    w, s, b = 1.0, 0.0, 0.0
    for g in (0.5, 1.0):
        s = 0.9 * s + 0.1 * g * g
        b = 0.9 * b + 0.1 * g / np.sqrt(s + 1.0)
        w -= b
    spec = {"name": "RMSProp", "rho": 0.9, "momentum": 0.9, "epsilon": 1.0}
    assert after_steps(spec)["body.weight"] == pytest.approx(w, rel=1e-5)


def test_nesterov_momentum() -> None:
    w, v = 1.0, 0.0
    for g in (0.5, 1.0):
        v = 0.9 * v + g
        w -= 0.1 * (g + 0.9 * v)
    assert after_steps({"name": "Momentum", "momentum": 0.9, "use_nesterov": True})[
        "body.weight"
    ] == pytest.approx(w, rel=1e-6)


def test_lamb_makes_a_step_of_the_weights_own_length() -> None:
    """Without weight decay the first update is the sign times the ratio of the norms.

    The result is w - lr * |w| / |sign| * sign.
    """
    spec = {"name": "Lamb", "weight_decay": 0.0, "epsilon": 1e-12}
    assert after_steps(spec, steps=1)["body.weight"] == pytest.approx(1 - 0.1, rel=1e-4)


@pytest.mark.parametrize("name", ["Momentum", "SGD", "Adam", "RMSProp"])
def test_weight_decay_by_parameter(name: str) -> None:
    plain = after_steps({"name": name})
    decayed = after_steps({"name": name, "weight_decay": 0.3, "one_dim_param_no_weight_decay": True})
    assert decayed["body.bias"] == pytest.approx(plain["body.bias"], rel=1e-6)
    assert decayed["norm.weight"] == pytest.approx(plain["norm.weight"], rel=1e-6)
    both = [
        after_steps({"name": name, **way})["body.weight"]
        for way in ({"weight_decay": 0.3}, {"regularizer": {"name": "L2", "coeff": 0.3}})
    ]
    assert both[0] == both[1] == decayed["body.weight"]
    assert both[0] != plain["body.weight"] or name == "Adam"
    own = after_steps({"name": name, "groups": [{"params": "^body", "weight_decay": 0.3}]})
    assert own["body.weight"] == pytest.approx(both[0], rel=1e-6)
    assert own["norm.weight"] == pytest.approx(plain["norm.weight"], rel=1e-6)


def test_groups_and_layer_decay_scale_the_rate() -> None:
    change = {k: 1 - v for k, v in after_steps({"name": "SGD"}).items()}
    groups = [{"params": "weight$", "lr_mult": 0.1}, {"params": "^norm", "lr_mult": 0.0}]
    scaled = {k: 1 - v for k, v in after_steps({"name": "SGD", "groups": groups}).items()}
    assert scaled["body.weight"] == pytest.approx(0.1 * change["body.weight"], rel=1e-4)
    assert scaled["body.bias"] == pytest.approx(change["body.bias"], rel=1e-6)
    assert scaled["norm.bias"] == 0


def test_layer_decay_lowers_the_rates_of_early_layers() -> None:
    layers = [
        paddle.nn.Linear(2, 2),
        paddle.nn.BatchNorm1D(2),
        paddle.nn.Linear(2, 2),
        paddle.nn.Linear(2, 2),
    ]
    parameters = dict(paddle.nn.Sequential(*layers).named_parameters())
    build_optimizer({"name": "SGD", "lr": LR, "layer_decay": 0.5}, parameters, lr_at=lambda step: 0.1)
    rates = {key: p.optimize_attr["learning_rate"] for key, p in parameters.items() if not p.stop_gradient}
    expected = {"0": 0.25, "1": 0.25, "2": 0.5, "3": 1.0}
    assert rates == {key: expected[key[0]] for key in rates}


@pytest.mark.parametrize(
    ("network", "depths"),
    [
        (
            "Xception",
            {"conv1.weight": 0, "bn1.bias": 0, "block1.skipbn.weight": 2, "conv4.pointwise.weight": 15},
        ),
        ("Xception41", {"_entry_flow._conv1._batch_norm.bias": 0, "_exit_flow._out.weight": 16}),
        (
            "Xception41_deeplab",
            {"_conv2._conv.weight": 1, "_exit_flow_1._short._bn.bias": 13, "_fc.bias": 15},
        ),
        ("xception41p", {"stem.0.conv.weight": 0, "blocks.0.shortcut.weight": 1, "head.fc.bias": 14}),
    ],
)
def test_a_block_is_one_layer_of_the_depth(network: str, depths: dict[str, int]) -> None:
    model = ppxcls.build_model(network, class_num=3)
    dimensions = {key: p.ndim for key, p in model.named_parameters() if not p.stop_gradient}
    result = layer_depths(dimensions, list(network_blocks(model)))
    assert {key: result[key] for key in depths} == depths
    assert list(result.values()) == sorted(result.values()), "in the order of the network"
    assert set(result.values()) == set(range(max(result.values()) + 1))


@pytest.mark.parametrize(
    ("key", "expected"),
    [("clip_value", 0.3), ("clip_norm", 0.3 / 6**0.5), ("clip_norm_global", 0.3 / 15**0.5)],
)
def test_clipping(key: str, expected: float) -> None:
    """The gradient is 0.5 everywhere: 6 values in the weight, 15 values in total."""
    change = 1 - after_steps({"name": "SGD", key: 0.3}, steps=1)["body.weight"]
    assert change == pytest.approx(0.1 * expected, rel=1e-4)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"name": "SGD", "clip_norm": 1, "clip_value": 1},
            "expected one way of clipping, received clip_norm and clip_value",
        ),
        (
            {"name": "AdamW", "regularizer": {"name": "L2", "coeff": 0.1}},
            "regularizer: expected weight_decay alone",
        ),
        (
            {"name": "SGD", "groups": [{"params": "nothing"}]},
            "groups.0.params: pattern 'nothing' matches no parameter",
        ),
        ({"name": "SGD", "groups": [{"pattern": "x"}]}, "unknown key 'pattern'"),
        ({"name": "SGD", "layer_decay": 1.5}, "layer_decay: expected a number"),
        (
            {"name": "AdamW", "no_weight_decay_name": "bias nrom"},
            "Optimizer.no_weight_decay_name: no parameter's state key contains 'nrom'",
        ),
    ],
)
def test_optimizer_settings_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ppxcls.ConfigError, match=message):
        after_steps(spec)


@pytest.mark.parametrize("warmup", [False, True])
def test_ema_is_the_weighted_sum(warmup: bool) -> None:
    model = paddle.nn.Linear(1, 1)
    model.weight.set_value(paddle.to_tensor([[5.0]]))
    ema = WeightAverage(model, 0.9, warmup=warmup)
    expected = 5.0
    for step, value in enumerate((1.0, 2.0, 4.0), 1):
        model.weight.set_value(paddle.to_tensor([[value]]))
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step)) if warmup else 0.9
        expected = decay * expected + (1 - decay) * value
    with ema.applied():
        assert model.weight.item() == pytest.approx(expected, rel=1e-6)
    assert model.weight.item() == 4.0


def test_ema_is_evaluated_kept_and_resumed(small: Callable[..., Path], tmp_path: Path) -> None:
    keys = {"EMA": {"decay": 0.5}, "Global.epochs": 2, "Global.save_interval_steps": 2}
    file = small(**keys)

    def train(name: str, *overrides: str) -> Any:
        trainer = ppxcls.build_trainer(
            ppxcls.load_config(file, [f"Global.output_dir={tmp_path}/{name}", *overrides])
        )
        trainer.fit()
        return trainer

    whole = train("whole", "Global.keep_last=9")
    again = train("again", f"Global.checkpoints={tmp_path}/whole/SmallNetwork/step_4")
    states = [trainer.learner.average.state_dict() for trainer in (whole, again)]
    assert all(np.array_equal(states[0][key], states[1][key]) for key in states[0])
    weights = whole.learner.network.state_dict()
    assert not np.array_equal(states[0]["fc.weight"], weights["fc.weight"].numpy())
    rows = [
        json.loads(line) for line in (tmp_path / "whole/SmallNetwork/metrics.jsonl").read_text().splitlines()
    ]
    last = [row for row in rows if row["kind"] == "eval"][-1]
    latest = f"Global.pretrained_model={tmp_path}/whole/SmallNetwork/latest"
    after = ppxcls.evaluate(ppxcls.load_config(file, [latest]))
    assert after == {key: last[key] for key in after}
    plain = ppxcls.evaluate(ppxcls.load_config(file, [latest, "EMA=null"]))
    assert plain["loss"] != after["loss"]


@pytest.mark.parametrize("anneal", ["cos", "linear"])
def test_one_cycle_against_paddle(anneal: str) -> None:
    spec = {
        "name": "OneCycleLR",
        "max_learning_rate": 0.4,
        "divide_factor": 10.0,
        "end_learning_rate": 0.001,
        "anneal_strategy": anneal,
    }
    lr_at = ppxcls.build_lr_schedule(spec, epochs=4, steps_per_epoch=25)
    theirs = paddle.optimizer.lr.OneCycleLR(
        0.4, 100, divide_factor=10.0, end_learning_rate=0.001, phase_pct=0.3, anneal_strategy=anneal
    )
    for step in range(100):
        assert lr_at(step) == pytest.approx(theirs.last_lr, rel=1e-9), step
        if step < 99:
            theirs.step()


def test_plateau_against_paddle() -> None:
    spec = {
        "name": "ReduceOnPlateau",
        "learning_rate": 0.4,
        "mode": "max",
        "factor": 0.5,
        "patience": 2,
        "cooldown": 1,
    }
    lr_at = ppxcls.build_lr_schedule(spec, epochs=99, steps_per_epoch=1)
    theirs = paddle.optimizer.lr.ReduceOnPlateau(0.4, mode="max", factor=0.5, patience=2, cooldown=1)
    for value in [
        0.1,
        0.2,
        0.2,
        0.2,
        0.2,
        0.1,
        0.3,
        0.3,
        0.3,
        0.3,
        0.3,
        0.3,
        0.3,
        0.3,
        0.4,
        0.4,
        0.4,
        0.4,
        0.4,
    ]:
        lr_at.observe(value, larger_is_better=True)
        theirs.step(paddle.to_tensor(value))
        assert lr_at(5) == pytest.approx(theirs.last_lr)


def test_plateau_is_resumed(small: Callable[..., Path], tmp_path: Path) -> None:
    lr = {"name": "ReduceOnPlateau", "learning_rate": 1e-6, "factor": 0.5, "patience": 0}
    file = small(**{"Optimizer.lr": lr, "Global.epochs": 3})
    trainer = ppxcls.build_trainer(ppxcls.load_config(file))
    trainer.fit()
    factor = trainer.progress.plateau["factor"]
    assert factor < 1
    again = ppxcls.build_trainer(ppxcls.load_config(file, ["Global.checkpoints=auto", "Global.epochs=4"]))
    assert again.learner.rate == 1e-6 * factor


def test_warm_up_and_cool_down_with_any() -> None:
    spec = {"name": "Polynomial", "learning_rate": 1.0, "end_lr": 0.2, "warmup_epoch": 1, "cooldown_epoch": 2}
    lr_at = ppxcls.build_lr_schedule(spec, epochs=6, steps_per_epoch=10)
    assert [lr_at(step) for step in (0, 5, 10, 25)] == pytest.approx([0, 0.5, 1.0, 0.6])
    assert [lr_at(step) for step in (40, 45, 59)] == pytest.approx([0.2] * 3)
    paper = ppxcls.build_lr_schedule(
        {"name": "Step", "learning_rate": 0.045, "step_size": 2, "gamma": 0.94}, 10, steps_per_epoch=100
    )
    assert [paper(step) for step in (0, 199, 200, 999)] == pytest.approx(
        [0.045, 0.045, 0.045 * 0.94, 0.045 * 0.94**4]
    )
    with pytest.raises(
        ppxcls.ConfigError, match="cooldown_epoch: expected warm-up and cool-down of at most 3 epochs"
    ):
        ppxcls.build_lr_schedule({**spec, "cooldown_epoch": 3}, epochs=3, steps_per_epoch=10)


RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (5, 4)).astype(np.float32)
LABELS = np.array([0, 1, 2, 3, 1])
SOFT = (0.7 * np.eye(4)[LABELS] + 0.3 * np.eye(4)[::-1][LABELS]).astype(np.float32)


def loss_value(spec: dict[str, Any], labels: np.ndarray) -> float:
    return float(build_loss([spec])(paddle.to_tensor(LOGITS), paddle.to_tensor(labels))["loss"])


def test_losses() -> None:
    p = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))

    def bce(targets: np.ndarray) -> np.ndarray:
        return -(targets * np.log(p) + (1 - targets) * np.log(1 - p))

    assert loss_value({"BCELoss": {}}, SOFT) == pytest.approx(bce(SOFT).mean(), rel=1e-5)
    assert loss_value({"BCELoss": {"epsilon": 0.1}}, SOFT) == pytest.approx(
        bce(0.9 * SOFT + 0.1 / 4).mean(), rel=1e-5
    )
    assert loss_value({"BCELoss": {"target_threshold": 0.2, "sum_classes": True}}, SOFT) == pytest.approx(
        bce(SOFT > 0.2).sum(1).mean(), rel=1e-5
    )
    log_p = LOGITS - np.log(np.exp(LOGITS).sum(1, keepdims=True))
    assert loss_value({"SoftTargetCrossEntropy": {}}, SOFT) == pytest.approx(
        -(SOFT * log_p).sum(1).mean(), rel=1e-5
    )
    own = log_p[np.arange(5), LABELS]
    assert loss_value({"FocalLoss": {"gamma": 2.0}}, LABELS) == pytest.approx(
        -((1 - np.exp(own)) ** 2 * own).mean(), rel=1e-5
    )
    assert loss_value({"FocalLoss": {"gamma": 0.0}}, LABELS) == pytest.approx(
        loss_value({"CELoss": {}}, LABELS), rel=1e-6
    )


def test_bce_needs_soft_labels(write_config: Callable[..., Path]) -> None:
    file = write_config(**{"Loss.Train": [{"BCELoss": {}}]})
    with pytest.raises(ppxcls.ConfigError, match="Loss.Train.0.BCELoss: BCELoss needs soft labels"):
        ppxcls.build_trainer(ppxcls.load_config(file))


def test_class_report_is_scikit_learns(small: Callable[..., Path], tmp_path: Path) -> None:
    logits, labels = RNG.normal(size=(60, 5)).astype(np.float32), RNG.integers(0, 4, 60)
    metric = ClassReport(class_num=5)
    for part in (slice(0, 17), slice(17, 60)):
        assert metric(paddle.to_tensor(logits[part]), paddle.to_tensor(labels[part])) == {}
    results, predicted = metric.results(), logits.argmax(1)
    assert results["balanced_accuracy"] == pytest.approx(
        sklearn_metrics.recall_score(labels, predicted, labels=range(4), average="macro")
    )
    assert results["f1"] == pytest.approx(
        sklearn_metrics.f1_score(labels, predicted, labels=range(4), average="macro")
    )
    assert results["precision"] == pytest.approx(
        sklearn_metrics.precision_score(labels, predicted, labels=range(4), average="macro")
    )
    assert (
        metric.by_class["confusion_matrix"]
        == sklearn_metrics.confusion_matrix(labels, predicted, labels=range(5)).tolist()
    )
    file = small(**{"Metric.Eval": [{"TopkAcc": {"topk": 1}}, {"ClassReport": {}}]})
    trainer = ppxcls.build_trainer(ppxcls.load_config(file))
    trainer.fit()
    row = [json.loads(line) for line in (trainer.output_dir / "metrics.jsonl").read_text().splitlines()][-1]
    assert {"top1", "precision", "recall", "f1", "balanced_accuracy"} <= row.keys()
    with pytest.raises(ppxcls.ConfigError, match="ClassReport is an evaluation metric"):
        ppxcls.build_trainer(ppxcls.load_config(small(**{"Metric.Train": [{"ClassReport": {}}]})))


def test_samplers() -> None:
    repeated = RASampler(batch_size=4, num_samples=12, seed=0, num_repeats=3)
    order = repeated.order(1)
    assert len(order) == 12
    assert np.array_equal(order.reshape(4, 3), np.repeat(order[::3, None], 3, axis=1))
    assert not np.array_equal(order, repeated.order(2))
    labels = np.array([0] * 900 + [1] * 90 + [2] * 10)
    balanced = ClassBalancedSampler(batch_size=10, labels=labels, num_samples=1000, seed=0)
    counts = np.bincount(labels[balanced.order(1)])
    assert counts.min() > 280
    assert np.array_equal(balanced.order(1), balanced.order(1))
    growing = ProgressiveSampler(batch_size=4, epochs=[2, 4], sizes=[96, 128], num_samples=12)
    assert [growing.size_at(epoch) for epoch in range(1, 6)] == [None, 96, 96, 128, 128]
    with pytest.raises(ValueError, match="expected increasing epochs and a size for each"):
        ProgressiveSampler(batch_size=4, epochs=[4, 2], sizes=[96, 128], num_samples=12)


@pytest.mark.parametrize(
    "sampler",
    [
        {"name": "RASampler", "batch_size": 4},
        {"name": "ClassBalancedSampler", "batch_size": 4},
        {"name": "ProgressiveSampler", "batch_size": 4, "epochs": [2], "sizes": [80]},
    ],
)
def test_samplers_train_and_resume(
    sampler: dict[str, Any], small: Callable[..., Path], tmp_path: Path
) -> None:
    keys = {"DataLoader.Train.sampler": sampler, "Global.epochs": 2, "Global.eval_during_train": False}
    file = small(**keys, **{"Global.save_interval_steps": 2, "Global.keep_last": 9})
    results = []
    for name, checkpoint in (("a", "null"), ("b", f"{tmp_path}/a/SmallNetwork/step_4")):
        overrides = [f"Global.output_dir={tmp_path}/{name}", f"Global.checkpoints={checkpoint}"]
        trainer = ppxcls.build_trainer(ppxcls.load_config(file, overrides))
        shapes = [batch.images.shape[1] for epoch in (1, 2) for batch in trainer.loader.epoch(epoch)]
        assert shapes == [71, 71, 71] + [80 if sampler["name"] == "ProgressiveSampler" else 71] * 3
        trainer.fit()
        results.append(trainer.learner.network.state_dict()["fc.weight"].numpy())
    assert np.array_equal(results[0], results[1])


def test_cutmix_pastes_a_rectangle_and_mixes_by_area() -> None:
    images = paddle.to_tensor(
        np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1) * np.ones((4, 3, 20, 24), np.float32)
    )
    labels = paddle.arange(4)
    (cutmix,) = build_batch_transforms([{"CutmixOperator": {"alpha": 1.0}}], 4)
    for seed in range(10):
        mixed, targets = (t.numpy() for t in cutmix(images, labels, np.random.default_rng(seed)))
        for i in range(4):
            share = (mixed[i, 0] == i).mean()
            assert targets[i, i] >= share - 1e-6
            assert targets[i].sum() == pytest.approx(1)
            for other in set(np.unique(mixed[i]).astype(int)) - {i}:
                assert targets[i, other] == pytest.approx((mixed[i, 0] == other).mean(), abs=1e-6)
                rows, columns = np.nonzero(mixed[i, 0] == other)
                assert (
                    mixed[i, :, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] == other
                ).all()


def test_op_sampler_takes_its_shares() -> None:
    spec = {
        "OpSampler": {
            "MixupOperator": {"alpha": 0.8, "prob": 0.5},
            "CutmixOperator": {"alpha": 1.0, "prob": 0.3},
        }
    }
    (sampler,) = build_batch_transforms([spec], 4)
    images, labels = paddle.to_tensor(RNG.normal(size=(4, 3, 8, 8)).astype(np.float32)), paddle.arange(4)
    calls: list[int] = []
    own = list(sampler.operators)
    sampler.operators = [lambda *a, i=i: (calls.append(i), own[i](*a))[1] for i in range(2)]
    for seed in range(600):
        _, targets = sampler(images, labels, np.random.default_rng(seed))
        assert targets.shape == [4, 4]
    assert calls.count(0) / 600 == pytest.approx(0.5, abs=0.06)
    assert calls.count(1) / 600 == pytest.approx(0.3, abs=0.06)
    for shares, message in (
        ({"MixupOperator": {"prob": 1.5}}, "prob: expected a number"),
        ({"MixupOperator": {"prob": 0.8}, "CutmixOperator": {"prob": 0.8}}, "total prob <= 1"),
    ):
        with pytest.raises(ppxcls.ConfigError, match=message):
            build_batch_transforms([{"OpSampler": shares}], 4)


@pytest.mark.parametrize(
    "keys",
    [
        {"Arch.recompute": True, "EMA": {"decay": 0.5}},
        {"Arch.data_format": "NHWC"},
        {"AMP": {"dtype": "bfloat16"}, "Arch.use_sync_bn": True},
    ],
    ids=str,
)
def test_frozen_batch_norms_keep_their_statistics(
    keys: dict[str, Any], write_config: Callable[..., Path], tmp_path: Path
) -> None:
    """They are trained, and a run that was stopped gives the numbers of one that was not."""

    def state_of(trainer: Any) -> dict[str, np.ndarray]:
        return {key: value.numpy().copy() for key, value in trainer.learner.network.state_dict().items()}

    def run(output: str, epochs: int) -> Any:
        overrides = [f"Global.output_dir={tmp_path / output}", f"Global.epochs={epochs}"]
        return ppxcls.build_trainer(ppxcls.load_config(file, overrides))

    rate = {"name": "Step", "learning_rate": 1e-4, "step_size": 30}
    options = {"Arch.freeze_norm": True, "Global.eval_during_train": False, "Optimizer.lr": rate}
    options["Global.checkpoints"] = "auto"
    file = write_config(**options, **keys)
    trainer = run("whole", 2)
    before = state_of(trainer)
    trainer.fit()
    after = state_of(trainer)
    changed = {key for key in after if not np.array_equal(before[key], after[key])}
    statistics = {key for key in after if key.endswith(("_mean", "_variance"))}
    assert len(statistics) == 140
    assert not changed & statistics
    assert {key for key in after if "_batch_norm.weight" in key} <= changed
    log = (tmp_path / "whole/Xception41/train.log").read_text()
    assert log.count("Arch.freeze_norm: the 70 batch norms keep their statistics") == 1
    run("parts", 1).fit()
    resumed = run("parts", 2)
    resumed.fit()
    for key, value in state_of(resumed).items():
        assert np.array_equal(value, after[key]), key


def test_fresh_batch_norms_have_no_statistics_to_keep(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    config = ppxcls.load_config(write_config(**{"Arch.freeze_norm": True}))
    with pytest.raises(ppxcls.ConfigError, match=r"Arch\.freeze_norm: expected false, because .* no weights"):
        ppxcls.build_trainer(config)
    file = tmp_path / "start.pdparams"
    save_weights(ppxcls.build_model("Xception41", class_num=3, freeze_norm=True), file)
    overrides = [f"Global.pretrained_model={file}", "Arch.freeze_norm=true"]
    ppxcls.build_trainer(ppxcls.load_config(write_config(), overrides))


def test_freezing(write_config: Callable[..., Path], tmp_path: Path) -> None:
    file = write_config(
        **{"Arch.freeze": ["^_entry_flow", "^_middle_flow"], "Global.eval_during_train": False}
    )
    trainer = ppxcls.build_trainer(ppxcls.load_config(file))
    before = {key: value.numpy().copy() for key, value in trainer.learner.network.state_dict().items()}
    trainer.fit()
    changed = {
        key
        for key, value in trainer.learner.network.state_dict().items()
        if not np.array_equal(before[key], value.numpy())
    }
    assert changed
    assert all(key.startswith("_exit_flow") for key in changed), "batch norm's statistics neither"
    with pytest.raises(ppxcls.ConfigError, match="Arch.freeze.0: pattern 'nothing' matches no parameter"):
        ppxcls.build_trainer(ppxcls.load_config(file, ["Arch.freeze=[nothing]"]))
