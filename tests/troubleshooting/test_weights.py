"""Rows of the section "Weights and checkpoints" of ``docs/troubleshooting.md``."""

from __future__ import annotations

import builtins
import errno
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

import ppxcls
from ppxcls.checkpoints import files
from ppxcls.system import temporary_files
from tests.conftest import ROOT, run_tool
from tests.models.written_files import write_torch
from tests.troubleshooting.desk import Desk, case


@case("does not fit the model")
def test_other_network(desk: Desk) -> None:
    weights = desk.folder / "w.pdparams"
    paddle.save(ppxcls.build_model("Xception41", class_num=3).state_dict(), str(weights))
    message = desk.fails("eval", "-c", desk.config(), "-o", f"Global.pretrained_model={weights}")
    assert "does not fit the model" in message
    assert "Xception41" in desk.works("list").split()
    desk.works(
        "eval",
        "-c",
        desk.config(Arch={"name": "Xception41", "class_num": 3}),
        "-o",
        f"Global.pretrained_model={weights}",
    )


@case("the classifier starts with fresh weights, because its size differs")
def test_fresh_classifier(desk: Desk) -> None:
    desk.works("train", "-c", desk.config())
    elsewhere = f"Global.output_dir={desk.folder}/finetuned"
    weights = f"Global.pretrained_model={desk.run}/latest"
    words = ("train", "-c", desk.config(), "-o", elsewhere, "-o", weights)
    text = desk.works(*words, "-o", "Arch.class_num=4")
    assert "the classifier starts with fresh weights, because its size differs" in text
    assert "the classifier starts" not in desk.works(*words)


def write_trunk(desk: Desk) -> str:
    """Writes the weights of an untrained network without its classifier. Returns the YAML, which names them."""
    yaml_file = write_weights(desk, lambda _, value: value)
    file = desk.folder / "w.pdparams"
    state = pickle.loads(file.read_bytes())
    trunk = {key: value for key, value in state.items() if value.ndim != 2 and not key.startswith("fc.")}
    assert 0 < len(trunk) < len(state)
    file.write_bytes(pickle.dumps(trunk, 4))
    return yaml_file


@case("the file has no classifier")
def test_no_classifier(desk: Desk) -> None:
    text = desk.works("train", "-c", write_trunk(desk))
    assert "the classifier starts with fresh weights, because the file has no classifier" in text


@case("the file has further layers, which are left out")
def test_further_layers(desk: Desk) -> None:
    yaml_file = write_weights(desk, lambda _, value: value)
    file = desk.folder / "w.pdparams"
    state = pickle.loads(file.read_bytes())
    file.write_bytes(pickle.dumps(state | {"aux_head.weight": np.ones((2, 2), np.float32)}, 4))
    text = desk.works("train", "-c", yaml_file)
    assert "WARNING: the file has further layers, which are left out: aux_head.weight [2, 2]" in text
    assert "the classifier starts" not in text


@case("save its state_dict() instead")
def test_whole_pickled_model(desk: Desk) -> None:
    yaml_file = write_weights(desk, lambda _, value: value)
    state = pickle.loads((desk.folder / "w.pdparams").read_bytes())
    file = desk.folder / "model.pth"
    words = ("train", "-c", yaml_file, "-o", f"Global.pretrained_model={file}")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02cnetwork.models\nModel\n)\x81}b.")
    message = desk.fails(*words)
    assert "received an object of network.models.Model; save its state_dict() instead" in message
    write_torch(file, {key: value for key, value in state.items() if isinstance(value, np.ndarray)})
    desk.works(*words)


@case("has no classifier, so it can only start a training")
def test_trunk_alone(desk: Desk) -> None:
    yaml_file = write_trunk(desk)
    message = desk.fails("eval", "-c", yaml_file)
    assert "has no classifier, so it can only start a training" in message
    desk.works("train", "-c", yaml_file)
    desk.works("eval", "-c", desk.run)


def write_weights(desk: Desk, change: Callable[[str, np.ndarray], np.ndarray]) -> str:
    """Writes the weights of an untrained network. Returns the YAML, which names them."""
    file = desk.folder / "w.pdparams"
    yaml_file = desk.config(**{"Global.pretrained_model": str(file)})
    ppxcls.load_config(yaml_file)
    state = ppxcls.build_model("SmallNetwork").state_dict()
    file.write_bytes(pickle.dumps({key: change(key, value.numpy()) for key, value in state.items()}, 4))
    return yaml_file


@case("are … in the file, … in the model")
def test_integers_for_weights(desk: Desk) -> None:
    message = desk.fails("eval", "-c", write_weights(desk, lambda _, value: (value * 100).astype(np.int8)))
    assert "8 of 8 tensors are int8 in the file, float32 in the model: conv.weight, " in message
    desk.works("eval", "-c", write_weights(desk, lambda _, value: value))


@case("have values that are not finite")
def test_weights_not_finite(desk: Desk) -> None:
    for change in (
        lambda _, value: np.full_like(value, np.nan),
        lambda _, value: np.full(value.shape, 1e39),  # infinite in float32
    ):
        message = desk.fails("eval", "-c", write_weights(desk, change))
        assert "8 of 8 tensors have values that are not finite" in message
    desk.works("eval", "-c", write_weights(desk, lambda _, value: value))  # an earlier checkpoint


@case("the network's output has numbers that are not finite")
def test_output_not_finite(desk: Desk) -> None:
    testclient = pytest.importorskip("starlette.testclient")
    pytest.importorskip("httpx")
    from ppxcls.serving.app import build_app

    reason = "the network's output has numbers that are not finite (NaN or infinity)"
    huge_values = {"fc.weight": 3e38, "norm.bias": 30.0}  # finite, but their products overflow
    file = write_weights(
        desk, lambda key, value: np.full_like(value, huge_values[key]) if key in huge_values else value
    )
    image = desk.data / "val/0000.png"
    result = desk.command("infer", "-c", file, image)
    assert result.code == 1
    assert f"{image}: {reason}" in result.errors
    for verb in ("eval", "export"):
        assert reason in desk.fails(verb, "-c", file)
    assert not (desk.folder / "inference").exists()
    assert not list(desk.folder.rglob("eval*.json"))
    with testclient.TestClient(build_app(ppxcls.load(ppxcls.load_config(file)))) as client:
        answer = client.post("/predict", content=image.read_bytes())
    assert (answer.status_code, answer.json()) == (500, {"error": reason})
    desk.works("infer", "-c", write_weights(desk, lambda _, value: value), image)


@case("are converted from")
def test_half_precision(desk: Desk) -> None:
    file = write_weights(desk, lambda _, value: value.astype(np.float16))
    assert "8 of 8 tensors are converted from float16 to float32" in desk.works("eval", "-c", file)
    model = ppxcls.build_model("SmallNetwork")
    ppxcls.load_weights(model, desk.folder / "w.pdparams")
    state = pickle.loads((desk.folder / "w.pdparams").read_bytes())
    for key, tensor in model.state_dict().items():
        assert np.array_equal(tensor.numpy(), state[key].astype(np.float32))


@case("refused, not a file of weights")
def test_refused_pickle(desk: Desk) -> None:
    ppxcls.load_config(desk.config())
    state = {key: value.numpy() for key, value in ppxcls.build_model("SmallNetwork").state_dict().items()}
    weights = desk.folder / "w.pdparams"
    weights.write_bytes(pickle.dumps({**state, "folder": Path("x")}, protocol=2))
    assert "refused, not a file of weights" in desk.fails(
        "train", "-c", desk.config(), "-o", f"Global.pretrained_model={weights}"
    )
    numpy_format = pytest.importorskip("safetensors.numpy")
    numpy_format.save_file(state, str(weights.with_suffix(".safetensors")))
    desk.works(
        "train", "-c", desk.config(), "-o", f"Global.pretrained_model={weights.with_suffix('.safetensors')}"
    )


@case("refused: …; trying the next older checkpoint")
def test_damaged_checkpoint(desk: Desk) -> None:
    file = desk.config(**{"Global.epochs": 2})
    desk.works("train", "-c", file)
    newest = desk.run / "latest.pdparams"
    newest.write_bytes(newest.read_bytes()[:-9])
    text = desk.works(
        "train",
        "-c",
        file,
        "-o",
        "Global.checkpoints=auto",
        "-o",
        "Global.epochs=3",
        "-o",
        "Global.allow_changes=True",
    )
    assert re.search(r"refused: .*latest.*; trying the next older checkpoint", text)
    assert "[Train][Epoch 3/3]" in text


@case("the checkpoint can't be resumed because of changes")
def test_changed_run(desk: Desk) -> None:
    desk.works("train", "-c", desk.config())
    words = ("train", "-c", desk.config(), "-o", "Global.checkpoints=auto", "-o", "Global.epochs=2")
    message = desk.fails(*words, "-o", "Global.seed=5")
    assert "the checkpoint can't be resumed because of changes: " in message
    desk.works(*words, "-o", "Global.seed=5", "-o", "Global.allow_changes=True")
    desk.works(*words, "-o", "Global.epochs=3", "-o", "Global.allow_changes=True", "-o", "Global.seed=0")


@case("another run writes there")
def test_second_run(desk: Desk) -> None:
    trainer = ppxcls.build_trainer(ppxcls.load_config(desk.config()))
    result = run_tool("train", "-c", desk.config())
    assert result.returncode == 1
    assert "another run writes there" in result.stderr
    if fuser := shutil.which("fuser"):
        found = subprocess.run(
            [fuser, str(desk.run / "run.lock")], check=False, capture_output=True, text=True
        )
        assert str(os.getpid()) in found.stdout.split()
    trainer.fit()
    desk.works("train", "-c", desk.config())


@case('the system says "No space left on device"')
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_no_space(desk: Desk) -> None:
    report = desk.folder / "report.json"
    words = ("check", "-c", desk.config(), "--json", report)
    desk.works(*words)
    content = report.read_bytes()

    def full(file: Any, mode: str, **keys: Any) -> Any:
        return builtins.open("/dev/full" if "w" in mode else file, mode, **keys)

    with desk.monkeypatch.context() as patch:
        patch.setattr(temporary_files, "open", full, raising=False)
        message = desk.fails(*words)
    assert message.endswith(f"No space left on device: '{report}'")
    assert report.read_bytes() == content
    assert not list(desk.folder.glob("*report.json?*"))
    desk.works(*words)
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [sys.executable, "-m", "ppxcls", "list"],
            check=False,
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=ROOT,
        )
    assert result.returncode == 1
    assert result.stderr.decode().strip().endswith("No space left on device: standard output")


@case("can't save the checkpoint")
def test_full_disk(desk: Desk) -> None:
    file = desk.config(**{"Global.epochs": 2, "Global.eval_during_train": False})
    desk.works("train", "-c", file, "-o", "Global.epochs=1")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with desk.monkeypatch.context() as patch:
        patch.setattr(files, "_write_new", full)
        message = desk.fails("train", "-c", file, "-o", "Global.checkpoints=auto")
    assert "can't save the checkpoint: No space left on device: " in message
    assert "[Train][Epoch 2/2]" in desk.works("train", "-c", file, "-o", "Global.checkpoints=auto")
