"""Rows of the section "Weights and checkpoints" of ``docs/troubleshooting.md``."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import paddle
import pytest

import ppxcls
from ppxcls.checkpoints import files
from tests.conftest import run_tool
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


@case("refused, not a file of weights")
def test_pickle(desk: Desk) -> None:
    import pickle as python_pickle

    ppxcls.load_config(desk.config())
    state = {key: value.numpy() for key, value in ppxcls.build_model("SmallNetwork").state_dict().items()}
    weights = desk.folder / "w.pdparams"
    weights.write_bytes(python_pickle.dumps({**state, "folder": Path("x")}, protocol=2))
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
