"""The network of a file of weights, by its keys."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

import ppxcls
from ppxcls.models.weights_network import weights_network
from tests.models.written_files import write_torch

# Keys that tell each network, in the names of its publisher.
TELLING_KEYS = {
    "Xception41": ["_entry_flow._conv_2._short.weight", "_middle_flow._conv_7._conv_0.x"],
    "Xception65": ["_entry_flow._conv_2._short.weight", "_middle_flow._conv_15._conv_0.x"],
    "Xception71": ["_entry_flow._conv_4._short.weight", "_middle_flow._conv_15._conv_0.x"],
    "Xception41_deeplab": ["xception_41/entry_flow/block1._conv1._conv1.weight"],
    "Xception65_deeplab": ["xception_65/entry_flow/block1._conv1._conv1.weight"],
    "xception41": ["blocks.12.stack.conv1.bn_dw.weight"],
    "xception65": ["blocks.20.stack.conv1.bn_dw.weight", "blocks.3.stack.conv1.bn_dw.weight"],
    "xception71": ["blocks.22.stack.conv1.bn_dw.weight"],
    "xception41p": ["blocks.12.stack.conv2.norm.weight"],
    "xception65p": ["blocks.20.stack.conv2.norm.weight"],
    "legacy_xception": ["block12.rep.1.pointwise.weight"],
}


@pytest.mark.parametrize("name", TELLING_KEYS)
@pytest.mark.parametrize("prefix", ["", "module.backbone."])
def test_keys_tell_the_network(name: str, prefix: str, tmp_path: Path) -> None:
    arrays = {f"{prefix}{key}": np.zeros(1, np.float32) for key in TELLING_KEYS[name]}
    write_torch(tmp_path / "model.bin", {"state_dict": arrays})
    assert weights_network(tmp_path / "model.bin") == name
    save_file = pytest.importorskip("safetensors.numpy").save_file
    save_file(arrays, tmp_path / "model.safetensors")
    assert weights_network(tmp_path / "model.safetensors") == name


@pytest.mark.parametrize(
    "name", ["Xception41", "Xception65", "Xception71", "Xception41_deeplab", "xception71", "xception65p"]
)
def test_a_networks_own_keys_tell_it(name: str, tmp_path: Path) -> None:
    keys = ppxcls.build_model(name, class_num=2).state_dict().keys()
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps({key: np.zeros(1) for key in keys}, 4))
    assert weights_network(tmp_path / "w") == name


def write_twin(file: Path) -> None:
    keys = ["block12.rep.1.pointwise.weight", "bn1._mean"]
    file.write_bytes(pickle.dumps({key: np.zeros(1) for key in keys}, 4))


def test_a_name_decides_between_two_networks_with_the_same_keys(tmp_path: Path) -> None:
    for name in ("Xception", "legacy_xception"):
        write_twin(tmp_path / f"{name}-tuned.pdparams")
        assert weights_network(tmp_path / f"{name}-tuned.pdparams") == name
    write_twin(tmp_path / "Xception41.pdparams")  # a name that the keys contradict
    with pytest.raises(
        ppxcls.CheckpointError, match="it fits Xception and legacy_xception, .* name the network"
    ):
        weights_network(tmp_path / "Xception41.pdparams")


def test_files_that_tell_nothing(tmp_path: Path) -> None:
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps({"a": np.zeros(1)}, 4))
    with pytest.raises(ppxcls.CheckpointError, match="its keys are of no network; name the network"):
        weights_network(tmp_path / "w.pdparams")
    with pytest.raises(ppxcls.CheckpointError, match="no such file"):
        weights_network(tmp_path / "legacy_xception.pth")


def test_the_config_of_the_run_decides_first(tmp_path: Path) -> None:
    write_twin(tmp_path / "w.pdparams")
    manifest = {
        "format": 1,
        "config": yaml.safe_dump({"Arch": {"name": "Xception"}}),
        "progress": {},
        "parts": {".pdparams": {"size": 1, "sha256": "0" * 64}},
    }
    (tmp_path / "w.json").write_text(json.dumps(manifest))
    assert weights_network(tmp_path / "w") == "Xception"


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_a_missing_file_is_noticed_before_anything_is_written(
    verb: str, small: Callable[..., Path], tmp_path: Path
) -> None:
    config = ppxcls.load_config(small(), [f"Global.pretrained_model={tmp_path}/none.pth"])
    with pytest.raises(ppxcls.CheckpointError, match="none.pth: no such file of weights"):
        ppxcls.build_trainer(config) if verb == "train" else ppxcls.evaluate(config)
    assert not config.run_folder.exists()


def test_fit_notices_a_missing_file_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(ppxcls.DataError, match="none.pth: no such file of weights"):
        ppxcls.fit(tmp_path / "photos", str(tmp_path / "none.pth"), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
