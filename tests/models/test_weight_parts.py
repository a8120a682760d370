"""Files with more than one set of weights, and keys with prefixes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paddle import nn

import ppxcls
from ppxcls.system.logs import set_up_logging
from tests.conftest import ROOT


def network() -> nn.Layer:
    return nn.Sequential(nn.Conv2D(3, 2, 1), nn.BatchNorm2D(2), nn.Flatten(), nn.Linear(2, 2))


def state(number: float) -> dict[str, np.ndarray]:
    """Weights that all have one value."""
    return {key: np.full(tensor.shape, number, np.float32) for key, tensor in network().state_dict().items()}


def loaded_number(content: dict[str, Any], tmp_path: Path) -> float:
    file = tmp_path / "w.pdparams"
    file.write_bytes(pickle.dumps(content, 4))
    model = network()
    ppxcls.load_weights(model, file)
    numbers = {float(number) for tensor in model.state_dict().values() for number in tensor.numpy().flat}
    assert len(numbers) == 1
    return numbers.pop()


@pytest.mark.parametrize("name", ["timm_checkpoint.pth.tar", "timm_checkpoint_of_old_torch.pth.tar"])
def test_a_checkpoint_of_timm_gives_the_average_and_says_so(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_logging()
    model = network()
    file = ROOT / "tests/fixtures" / name
    ppxcls.load_weights(model, file)
    weights = model.state_dict()
    assert np.array_equal(weights["0.weight"].numpy().ravel(), 100 + np.arange(6, dtype=np.float32) / 8)
    assert np.array_equal(weights["1._mean"].numpy(), [101.5, 101.625])
    assert np.array_equal(weights["1._variance"].numpy(), [101.75, 101.875])
    # torch has [out, in], Paddle has [in, out]
    assert np.array_equal(weights["3.weight"].numpy(), [[102, 102.25], [102.125, 102.375]])
    (line,) = capsys.readouterr().out.splitlines()
    text = (
        "state_dict_ema (averaged weights) is used; the file also has epoch, arch, state_dict (9 tensors), "
    )
    assert f"WARNING: {file}: {text}optimizer, version, args, amp_scaler, metric" in line


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"state_dict": state(1), "state_dict_ema": state(2)}, 2),
        ({"state_dict": state(1), "state_dict_ema": None, "epoch": 3}, 1),
        ({"model": state(1), "model_ema": state(2), "optimizer": {"a": np.zeros(2)}}, 2),
        ({"model": state(1), "ema_state_dict": state(2)}, 2),
        ({"model": state(1), "optimizer": state(3), "lr_scheduler": {"last": 3}}, 1),
        ({"model_state_dict": state(1), "epoch": 3}, 1),
        ({"epoch": 3, "my_network": state(1)}, 1),
        ({"state_dict": {"model": state(1), "loss": 0.5}}, 1),
        ({"ema": {"state_dict": state(2), "decay": 0.9}, "model": state(1)}, 2),
        ({f"module.{key}": value for key, value in state(1).items()}, 1),
        ({f"_orig_mod.module.{key}": value for key, value in state(1).items()}, 1),
        ({"state_dict": {f"model.{key}": value for key, value in state(1).items()} | {"loss.weight": np.ones(2)}}, 1),
        ({f"model.{key}": v for key, v in state(1).items()} | {f"model_ema.{key}": v for key, v in state(2).items()}, 2),
        ({"model": state(1), "ema_state": {"shadow": state(2), "decay": 0.9}}, 2),
        ({"model": state(1), "swa_model": {f"module.{key}": v for key, v in state(2).items()}}, 2),
        ({"model": state(1), "averaged_model": state(2)}, 2),
        ({"net": state(1), "EMA": state(2)}, 2),
        ({"State_Dict": state(1), "modelEMA": {"of": {"weights": state(2)}}}, 2),
        ({"model": state(1), "Optimizer": {"state": {0: {"exp_avg": np.zeros(2)}}}}, 1),
        ({f"net.{key}": v for key, v in state(1).items()} | {f"EMA.{key}": v for key, v in state(2).items()}, 2),
        ({f"backbone.{key}" if "3." not in key else key.replace("3.", "classifier."): v
          for key, v in state(1).items()}, 1),
        ({f"model.backbone.{key}" if "3." not in key else key.replace("3.", "model.classifier."): v
          for key, v in state(1).items()}, 1),
        ({f"module.backbone.{key}" if "3." not in key else key.replace("3.", "module.head.fc."): v
          for key, v in state(1).items()} | {"fc.weight": np.ones((9, 9))}, 1),
        ({f"{part}.{key}": value for part in ("net", "model") for key, value in state(1).items()}, 1),
        ({"model_ema": {f"module.{key}": v for key, v in state(2).items()} | {"n_averaged": np.int64(3)}}, 2),
    ],
)  # fmt: skip
def test_the_part_that_is_taken(content: dict[str, Any], expected: float, tmp_path: Path) -> None:
    assert loaded_number(content, tmp_path) == expected


def test_an_unknown_part_with_weights_one_level_deeper_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_logging()
    assert loaded_number({"model": state(1), "polyak": {"copy": state(2)}}, tmp_path) == 1
    assert "WARNING" in (line := capsys.readouterr().out)
    assert line.endswith("model (weights) is used; the file also has polyak\n")


def test_each_part_that_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging()
    keys = {f"net.{key}": value for key, value in state(2).items()}
    content = {"model": state(1), "model_ema": {**keys, "n_averaged": np.int64(3)}, "epoch": 7}
    assert loaded_number(content, tmp_path) == 2
    first, second = capsys.readouterr().out.splitlines()
    reason = "model_ema (averaged weights) is used; the file also has model (8 tensors), epoch"
    assert first.endswith(f"WARNING: {tmp_path}/w.pdparams: {reason}")
    reason = "the 8 tensors of net.* are used; the file also has n_averaged"
    assert second.endswith(f"WARNING: {tmp_path}/w.pdparams: {reason}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"student": state(1), "teacher": state(2)}, r"expected one set of weights, received student \(8 tens"),
        (
            {f"{part}.{key}": v for n, part in enumerate(("student", "teacher")) for key, v in state(n).items()},
            r"expected one set of weights, received student.\*, teacher.\*; save one of them alone",
        ),
        ({"epoch": 3, "optimizer": {"lr": 0.1}}, "expected arrays by state key, received a dictionary of epoch, o"),
        ({}, "expected arrays by state key, received an empty dictionary"),
    ],
)  # fmt: skip
def test_files_without_one_set_of_weights(content: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ppxcls.CheckpointError, match=f"w.pdparams: {message}"):
        loaded_number(content, tmp_path)


def test_weights_of_another_network_keep_their_keys_in_the_message(tmp_path: Path) -> None:
    content = {f"block1.{key}": value for key, value in list(state(1).items())[:2]} | {"x": np.ones(2)}
    with pytest.raises(ppxcls.CheckpointError, match="0.weight is not in the file; .* and 3 more"):
        loaded_number(content, tmp_path)
