"""``ppxcls average``: means of checkpoints, new statistics of batch norms, and the greedy choice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import nn

import ppxcls
from ppxcls.build import averaging
from ppxcls.checkpoints.averaging import StateSum
from ppxcls.checkpoints.files import read_manifest, read_part, read_state
from ppxcls.cli import parser_for
from ppxcls.cli.average import run_average
from ppxcls.models.norm_statistics import batch_norms, estimate_statistics
from ppxcls.train.evaluation import Evaluation
from tests.conftest import SMALL_NETWORK, run_tool, small_config

NORM = ("norm._mean", "norm._variance")


def test_sums_are_exact_and_types_stay() -> None:
    """In float32, the small numbers would be lost beside the large one."""
    rows = [np.array([1e8], np.float32), np.array([1.0], np.float32), np.array([-1e8], np.float32)]
    states = [{"w": row, "h": row[:0].astype(np.float16), "steps": np.array(i)} for i, row in enumerate(rows)]
    total = StateSum.of(states[0])
    for state in states[1:]:
        total = total.plus(state, Path("epoch"))
    mean = total.mean()
    assert mean["w"] == np.float32(1 / 3)
    assert (mean["w"].dtype, mean["h"].dtype) == (np.float32, np.float16)
    assert mean["steps"] == 2
    with pytest.raises(ppxcls.CheckpointError, match="epoch_2: expected the keys, shapes and types"):
        total.plus({**states[0], "w": np.zeros(2, np.float32)}, Path("epoch_2"))


def test_statistics_are_those_of_all_batches() -> None:
    """By numpy: batches of equal weight have together the statistics of all numbers."""
    paddle.seed(0)
    network = nn.Sequential(nn.BatchNorm2D(3), nn.Dropout(0.5), nn.Conv2D(3, 2, 1), nn.BatchNorm2D(2))
    rng = np.random.default_rng(0)
    batches = [rng.normal(i, 1 + i, (4, 3, 5, 6)).astype(np.float32) for i in range(3)]
    norms = list(batch_norms(network).values())
    momenta = [norm._momentum for norm in norms]
    assert estimate_statistics(network, map(paddle.to_tensor, batches), norms) == 3
    values = np.concatenate(batches).astype(np.float64)
    assert norms[0]._mean.numpy() == pytest.approx(values.mean((0, 2, 3)), rel=1e-5)
    assert norms[0]._variance.numpy() == pytest.approx(values.var((0, 2, 3)), rel=1e-5)
    # The second one sees batches that are normalised by their own statistics, and no dropout.
    weight, bias = (tensor.numpy().astype(np.float64) for tensor in network[2].parameters())
    means, moments = [], []
    for batch in batches:
        x = batch.astype(np.float64)
        x = (x - x.mean((0, 2, 3), keepdims=True)) / np.sqrt(x.var((0, 2, 3), keepdims=True) + 1e-5)
        y = np.einsum("nchw,oc->nohw", x, weight[:, :, 0, 0]) + bias[:, None, None]
        means.append(y.mean((0, 2, 3)))
        moments.append((y**2).mean((0, 2, 3)))
    mean = np.mean(means, 0)
    assert norms[1]._mean.numpy() == pytest.approx(mean, abs=1e-5)
    assert norms[1]._variance.numpy() == pytest.approx(np.mean(moments, 0) - mean**2, rel=1e-4)
    assert [norm._momentum for norm in norms] == momenta
    assert not any(layer.training for layer in network.sublayers(include_self=True))
    assert estimate_statistics(network, [], norms) == 0
    assert norms[0]._mean.numpy() == pytest.approx(values.mean((0, 2, 3)), rel=1e-5), (
        "no batch changes nothing"
    )


def trained(file: Path, tmp_path: Path) -> Path:
    ppxcls.build_trainer(ppxcls.load_config(file)).fit()
    return tmp_path / "output/SmallNetwork"


def states_of(run: Path, epochs: list[int], part: str = ".pdparams") -> list[dict[str, Any]]:
    prefixes = [run / f"epoch_{epoch}" for epoch in epochs]
    return [read_part(prefix, read_manifest(prefix), part) for prefix in prefixes]


@pytest.mark.parametrize(
    ("keys", "part", "overrides"),
    [
        ({}, ".pdparams", []),
        ({"EMA": {"use_ema": True, "decay": 0.5}}, ".pdema", []),
        ({"EMA": {"use_ema": True, "decay": 0.5}}, ".pdparams", ["EMA=null"]),
        ({"Global.weights_format": "safetensors"}, ".pdparams", []),
    ],
    ids=["weights", "EMA", "weights beside EMA", "safetensors"],
)
def test_the_mean_of_the_last_checkpoints(
    keys: dict[str, Any], part: str, overrides: list[str], small: Callable[..., Path], tmp_path: Path
) -> None:
    if "Global.weights_format" in keys:
        pytest.importorskip("safetensors")
    run = trained(small(**{"Global.epochs": 3, **keys}), tmp_path)
    before = {file.name: file.read_bytes() for file in run.glob("best_model.*")}
    result = ppxcls.average(run, last=2, overrides=overrides)
    assert result.path == run / "averaged"
    assert result.names == ["epoch_2", "epoch_3"]
    suffix = ".safetensors" if "Global.weights_format" in keys else ".pdparams"
    state = read_state(run / f"averaged{suffix}")
    first, second = states_of(run, [2, 3], part)
    for key in first.keys() - {*NORM, "StructuredToParameterName@@"}:
        expected = ((first[key].astype(np.float64) + second[key]) / 2).astype(first[key].dtype)
        assert np.array_equal(state[key], expected), key
    assert not np.array_equal(state["norm._mean"], ((first["norm._mean"] + second["norm._mean"]) / 2))
    manifest = read_manifest(run / "averaged")
    assert manifest["averaged_from"] == ["epoch_2", "epoch_3"]
    assert manifest["norm_batches"] == 3
    assert manifest["class_names"] == read_manifest(run / "best_model")["class_names"]
    # The usual key takes it, and the figures are those of its manifest.
    config = ppxcls.load_config(run, [f"Global.pretrained_model={run}/averaged"])
    results = ppxcls.evaluate(config)
    assert results == result.results
    assert results["top1"] == manifest["progress"]["best"]["value"]
    predictor = ppxcls.load(config)
    assert f"{run}/averaged (epoch 3, top1 " in predictor.description
    assert ", mean of 2 checkpoints)" in predictor.description
    assert len(predictor.predict([np.zeros((80, 80, 3), np.uint8)])) == 1
    assert {file.name: file.read_bytes() for file in run.glob("best_model.*")} == before
    assert ppxcls.average(run, last=2, overrides=overrides).results == results, "the same again"


def test_frozen_statistics_and_no_batches(small: Callable[..., Path], tmp_path: Path) -> None:
    run = trained(small(**{"Global.epochs": 2}), tmp_path)
    ppxcls.average(run, epochs=[1, 2], batches=0)
    first, second = states_of(run, [1, 2])
    state = read_state(run / "averaged.pdparams")
    for key in NORM:
        assert np.array_equal(state[key], ((first[key].astype(np.float64) + second[key]) / 2).astype("f4"))
    weights = f"Global.pretrained_model={run}/best_model"
    changes = [weights, "Arch.freeze_norm=True", f"Global.output_dir={tmp_path}/frozen", "Global.epochs=2"]
    ppxcls.build_trainer(ppxcls.load_config(tmp_path / "config.yaml", changes)).fit()
    frozen = tmp_path / "frozen/SmallNetwork"
    ppxcls.average(frozen, last=2)
    (newest,) = states_of(frozen, [2])
    state = read_state(frozen / "averaged.pdparams")
    assert all(np.array_equal(state[key], newest[key]) for key in NORM)
    assert read_manifest(frozen / "averaged")["norm_batches"] == 0


@pytest.mark.parametrize(
    ("singles", "means", "names"),
    [
        # In the order 3, 2, 1: the mean with 2 is as good, that with 1 too is worse.
        ({1: 0.5, 2: 0.6, 3: 0.7}, [0.7, 0.6], ["epoch_2", "epoch_3"]),
        ({1: 0.5, 2: 0.6, 3: 0.7}, [0.6, 0.8], ["epoch_1", "epoch_3"]),
        ({1: 0.7, 2: 0.7, 3: 0.1}, [0.6, 0.6], ["epoch_2"]),
    ],
)
def test_the_greedy_choice(
    singles: dict[int, float],
    means: list[float],
    names: list[str],
    small: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = trained(small(**{"Global.epochs": 3}), tmp_path)
    answers = iter([*singles.values(), *means])
    original = averaging._Averaging._evaluated

    def evaluated(self: Any, *arguments: Any) -> dict[str, float]:
        return {**original(self, *arguments), "top1": next(answers)}

    monkeypatch.setattr(averaging._Averaging, "_evaluated", evaluated)
    result = ppxcls.average(run, greedy=True)
    assert result.names == names
    assert next(answers, None) is None, "no other evaluation"
    epochs = [int(name.removeprefix("epoch_")) for name in names]
    expected = np.mean([state["conv.weight"].astype(np.float64) for state in states_of(run, epochs)], 0)
    state = read_state(run / "averaged.pdparams")
    assert np.array_equal(state["conv.weight"], expected.astype(np.float32))
    if len(names) == 1:
        (single,) = states_of(run, epochs)
        assert all(np.array_equal(state[key], single[key]) for key in NORM), "a single one stays as it is"


def test_a_greedy_choice_without_a_finite_figure(run_of_four: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    close = averaging._Averaging.close
    monkeypatch.setattr(averaging._Averaging, "close", lambda self: [closed.append(True), close(self)])
    monkeypatch.setattr(
        averaging._Averaging, "_evaluated", lambda *_: {"top1": float("nan"), "num_samples": 7}
    )
    with pytest.raises(ppxcls.DataError, match="expected a checkpoint whose top1 is finite, received none"):
        ppxcls.average(run_of_four, greedy=True)
    assert closed == [True], "loaders end after an error, too"
    assert not (run_of_four / "averaged.pdparams").exists()


def test_a_mean_is_evaluated_in_the_type_of_its_training(
    run_of_four: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device with half precision, O2 casts the network of an evaluation, and not that of the batch norms."""
    run = shutil.copytree(run_of_four, tmp_path / "SmallNetwork")
    cast, evaluated = [], []
    monkeypatch.setattr(
        averaging, "set_evaluation_precision", lambda settings, network: cast.append(network) or network
    )
    call = Evaluation.__call__
    monkeypatch.setattr(
        Evaluation,
        "__call__",
        lambda self, network, *rest: evaluated.append(network) or call(self, network, *rest),
    )
    estimated = []
    estimate = averaging.estimate_statistics
    monkeypatch.setattr(
        averaging,
        "estimate_statistics",
        lambda network, *rest: estimated.append(network) or estimate(network, *rest),
    )
    ppxcls.average(run, last=2)
    assert evaluated == cast
    assert estimated[0] is not cast[0]


def test_a_later_training_moves_it_aside(small: Callable[..., Path], tmp_path: Path) -> None:
    run = trained(small(**{"Global.epochs": 2}), tmp_path)
    ppxcls.average(run, last=2)
    ppxcls.build_trainer(ppxcls.load_config(run, ["Global.checkpoints=auto", "Global.epochs=3"])).fit()
    assert (run / "averaged.pdparams").exists(), "a resumed run leaves it"
    ppxcls.build_trainer(ppxcls.load_config(run)).fit()
    assert (run / "earlier_1/averaged.pdparams").exists()
    assert not (run / "averaged.pdparams").exists()


@pytest.fixture(scope="module")
def run_of_four(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A run of four epochs with checkpoints of two."""
    folder = tmp_path_factory.mktemp("four")
    keys = {"Global.epochs": 4, "Global.save_interval": 2, "Global.plugins": [SMALL_NETWORK]}
    config = small_config(images, folder, **keys, Arch={"name": "SmallNetwork"})
    ppxcls.build_trainer(ppxcls.load_config(config)).fit()
    return folder / "SmallNetwork"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "expected one of --last, --epochs and --greedy"),
        ({"last": 2, "greedy": True}, "expected one of --last, --epochs and --greedy"),
        ({"last": 1}, "--last: expected at least 2 checkpoints, received 1"),
        ({"epochs": [4]}, "--epochs: expected at least 2 checkpoints, received 1"),
        (
            {"last": 4},
            r"expected 4 checkpoints of epochs, received 2 \(epoch_2, epoch_4\); the run keeps one",
        ),
        ({"epochs": [2, 3]}, r"\(epoch_2, epoch_4\), no epoch_3; the run keeps one in 2 epochs"),
        ({"greedy": True, "batches": -1}, "--batches: expected at least 0, received -1"),
    ],
)
def test_what_can_not_be_averaged(arguments: dict[str, Any], message: str, run_of_four: Path) -> None:
    with pytest.raises(ppxcls.DataError, match=message):
        ppxcls.average(run_of_four, **arguments)


def test_no_checkpoints_of_epochs(small: Callable[..., Path], tmp_path: Path) -> None:
    run = trained(small(**{"Global.save_interval": 100}), tmp_path)
    with pytest.raises(ppxcls.DataError, match="expected 2 checkpoints of epochs, received none; the run"):
        ppxcls.average(run, last=2)


@pytest.mark.parametrize("words", [[], ["--last", "2", "--greedy"], ["--epochs", "2,x"], ["--epochs", ""]])
def test_a_wrong_command_line(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["ppxcls average", "run", *words])
    with pytest.raises(SystemExit) as stop:
        run_average(parser_for("average"))
    assert stop.value.code == 2


def test_the_command(run_of_four: Path) -> None:
    result = run_tool("average", run_of_four, "--epochs", "4,2")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    figures = read_manifest(run_of_four / "averaged")["progress"]["best"]
    best = read_manifest(run_of_four / "best_model")["progress"]["best"]
    assert lines[-2] == (
        f"mean of epoch_2, epoch_4: top1 {figures['value']:.5f} (best_model: {best['value']:.5f})"
    )
    assert lines[-1].endswith(
        f"ppxcls eval -c {run_of_four} -o Global.pretrained_model={run_of_four}/averaged"
    )
