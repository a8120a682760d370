"""Checkpoints are complete or absent, exact, and safe to load."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import nn

import ppxcls
from ppxcls.checkpoints.files import write_checkpoint
from ppxcls.checkpoints.progress import Progress, read_snapshot
from ppxcls.train.learner import Learner
from ppxcls.train.losses import build_loss
from ppxcls.train.optimizers import build_optimizer
from tests.conftest import ROOT


def make(optimizer: str = "Momentum", seed: int = 0, parameters: slice = slice(None)) -> Learner:
    paddle.seed(seed)
    network = nn.Sequential(nn.Conv2D(3, 4, 3), nn.BatchNorm2D(4), nn.Flatten(), nn.Linear(16, 3))
    lr = {"name": "ConstLR", "learning_rate": 0.1}
    schedule = ppxcls.build_lr_schedule(lr, 1, steps_per_epoch=1)
    trained = dict(list(network.named_parameters())[parameters])
    built_optimizer, scheduler = build_optimizer({"name": optimizer, "lr": lr}, trained, lr_at=schedule)
    return Learner(
        network,
        build_loss([{"CELoss": {}}]),
        optimizer=built_optimizer,
        scheduler=scheduler,
        schedule=schedule,
    )


def step(learner: Learner, seed: int) -> None:
    paddle.seed(seed)
    learner.step(paddle.randn([2, 3, 4, 4]), paddle.to_tensor([0, 2]), 1.0, is_update_step=True)


def weights(learner: Learner) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in learner.network.state_dict().items()}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def save(prefix: Path | list[Path], learner: Learner, **progress: Any) -> None:
    for key, value in progress.items():
        setattr(learner.progress, key, value)
    snapshot = learner.state()
    assert snapshot is not None
    write_checkpoint(
        [prefix] if isinstance(prefix, Path) else prefix,
        snapshot.parts,
        manifest=snapshot.manifest({"config": "x"}),
    )


def load(prefix: Path, learner: Learner) -> dict[str, Any]:
    """Loads a checkpoint into a learner and returns the manifest."""
    snapshot, manifest = read_snapshot(prefix)
    learner.load(snapshot)
    return manifest


@pytest.mark.parametrize("optimizer", ["SGD", "Momentum", "Adam", "RMSProp"])
def test_training_goes_on_exactly(optimizer: str, tmp_path: Path) -> None:
    one = make(optimizer)
    step(one, 1)
    save(tmp_path / "latest", one, epoch=3, step=17, best={"metric": "top1", "value": 0.5, "epoch": 2})
    step(one, 2)
    # Build another network first, so that this process's parameters have other names than the saved ones.
    other = make(optimizer, seed=5)
    assert not {p.name for p in other.network.parameters()} & {p.name for p in one.network.parameters()}
    manifest = load(tmp_path / "latest", other)
    assert other.progress == Progress(epoch=3, step=17, best={"metric": "top1", "value": 0.5, "epoch": 2})
    assert manifest["config"] == "x"
    step(other, 2)
    assert same(weights(other), weights(one))


def test_paddle_reads_what_is_written_and_the_other_way_round(tmp_path: Path) -> None:
    one = make()
    save(tmp_path / "latest", one)
    loaded = paddle.load(str(tmp_path / "latest.pdparams"))
    assert same({k: v.numpy() for k, v in loaded.items()}, weights(one))
    other = make(seed=1)
    paddle.save(one.network.state_dict(), str(tmp_path / "theirs.pdparams"))
    for name in ("theirs", "theirs.pdparams"):
        assert ppxcls.load_weights(other.network, tmp_path / name) == []
        assert same(weights(other), weights(one))


def test_several_prefixes_are_independent(tmp_path: Path) -> None:
    one = make()
    save([tmp_path / "latest", tmp_path / "best_model"], one, epoch=2)
    first = weights(one)
    step(one, 1)
    save(tmp_path / "latest", one, epoch=3)
    for name, expected in (("best_model", first), ("latest", weights(one))):
        other = make(seed=9)
        load(tmp_path / name, other)
        assert same(weights(other), expected)
    assert {f.name for f in tmp_path.iterdir()} == {
        f"{name}{extension}"
        for name in ("latest", "best_model")
        for extension in (".json", ".pdparams", ".pdopt")
    }


class _Cut(BaseException):
    """A simulated power failure."""


@pytest.mark.parametrize("call", range(1, 15))
@pytest.mark.parametrize("name", ["replace", "fsync", "link"])
def test_cut_off_anywhere_leaves_a_whole_checkpoint(
    name: str, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The save of a second checkpoint stops at the n-th call of a system function.

    Then a third checkpoint is saved over the remaining files.
    """
    one = make()
    prefixes = [tmp_path / "latest", tmp_path / "best_model"]
    save(prefixes, one, step=1)
    states = {1: weights(one)}
    step(one, 1)
    states[2] = weights(one)
    original, calls = getattr(os, name), iter(range(1, 100))

    def cut(*arguments: Any, **keys: Any) -> Any:
        if next(calls) == call:
            raise _Cut
        return original(*arguments, **keys)

    monkeypatch.setattr(os, name, cut)
    with contextlib.suppress(_Cut):
        save(prefixes, one, step=2)
    monkeypatch.setattr(os, name, original)
    for prefix in prefixes:
        other = make(seed=9)
        load(prefix, other)
        assert same(weights(other), states[other.progress.step])
        assert same(weights(other), _loaded_weights(prefix))
    step(one, 2)
    save(prefixes, one, step=3)
    for prefix in prefixes:
        assert step_of(prefix) == 3
    assert not list(tmp_path.glob("*.new"))


def _loaded_weights(prefix: Path) -> dict[str, np.ndarray]:
    learner = make(seed=11)
    ppxcls.load_weights(learner.network, prefix)
    return weights(learner)


def step_of(prefix: Path) -> int:
    learner = make(seed=9)
    load(prefix, learner)
    return learner.progress.step


def test_full_disk_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    """Uses a real limit of the operating system on file sizes, in a subprocess."""
    script = f"""
import resource, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import ppxcls
ppxcls.load_config
from pathlib import Path
from tests.checkpoints.test_checkpoint import make, step, save
one = make()
save(Path({str(tmp_path / "latest")!r}), one, step=1)
step(one, 1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))
try:
    save(Path({str(tmp_path / "latest")!r}), one, step=2)
except OSError as error:
    print("errno", error.errno)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert f"errno {errno.EFBIG}" in result.stdout
    assert step_of(tmp_path / "latest") == 1
    assert not list(tmp_path.glob("*.new"))


@pytest.mark.parametrize("call", [1, 2, 3])
def test_disk_that_fills_up_at_any_file(call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full at the first part, the second, or the manifest."""
    one = make()
    save(tmp_path / "latest", one, step=1)
    original, calls = os.fsync, iter(range(1, 100))

    def full(descriptor: int) -> None:
        if next(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"can't save the checkpoint: No space left on device: '.*latest'"):
        save(tmp_path / "latest", one, step=2)
    monkeypatch.undo()
    assert step_of(tmp_path / "latest") == 1
    assert not list(tmp_path.glob("*.new"))


@pytest.mark.parametrize("extension", [".pdparams", ".pdopt"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_refused(extension: str, damage: str, tmp_path: Path) -> None:
    save(tmp_path / "latest", make())
    file = tmp_path / f"latest{extension}"
    data = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes(data if damage == "flip" else data[:-1])
    expected = "is missing" if damage == "remove" else "is damaged: its size or SHA-256"
    with pytest.raises(ppxcls.CheckpointError, match=expected):
        load(tmp_path / "latest", make())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "expected a manifest of format 1, received format 2"),
        ({"format": True}, "not a checkpoint's manifest: expected 1 as 'format'"),
        ({"parts": {}}, "not a checkpoint's manifest: expected '.pdparams' in 'parts'"),
        ({"parts": {".sh": {"size": 1, "sha256": "0" * 64}}}, "an unknown extension in 'parts'"),
        ({"parts": {".pdparams": {"size": True, "sha256": "0" * 64}}}, "expected a size and a SHA-256 as"),
        ({"progress": 3}, "expected 'parts' and 'progress' as objects"),
        ({"progress": {"step": -1}}, "expected a whole number from 0 as 'progress.step'"),
        ({"progress": {"best": None}}, "expected a metric, its value and its epoch as 'progress.best'"),
        ({"run": ["a"]}, "expected a text or null as 'run'"),
        ({"class_names": "ab"}, "expected a list of texts or null as 'class_names'"),
    ],
)
def test_manifest_is_checked(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    save(tmp_path / "latest", make())
    file = tmp_path / "latest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ppxcls.CheckpointError, match=message):
        load(tmp_path / "latest", make())
    file.write_text("{")
    with pytest.raises(ppxcls.CheckpointError, match="not a checkpoint's manifest"):
        load(tmp_path / "latest", make())
    with pytest.raises(ppxcls.CheckpointError, match="none.json: no such checkpoint"):
        load(tmp_path / "none", make())


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.write_text, (self.target, "owned")


def test_hostile_pickle_runs_nothing(tmp_path: Path) -> None:
    target = tmp_path / "owned.txt"
    for payload in ({"weight": Hostile(target)}, Hostile(target)):
        file = tmp_path / "evil.pdparams"
        file.write_bytes(pickle.dumps(payload))
        with pytest.raises(
            ppxcls.CheckpointError, match="refused, not a file of weights: it asks for pathlib"
        ):
            ppxcls.load_weights(make().network, file)
    pickle.loads(pickle.dumps(Hostile(target)))
    assert target.exists()  # Python's own reader does run the payload


@pytest.mark.parametrize(
    "data", [b"", b"<html></html>", b"\x80\x04", pickle.dumps([1, 2]), pickle.dumps("x"), os.urandom(400)]
)
def test_other_files_are_refused_in_one_line(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.pdparams"
    file.write_bytes(data)
    with pytest.raises(ppxcls.CheckpointError, match="a.pdparams: ") as caught:
        ppxcls.load_weights(make().network, file)
    assert "\n" not in str(caught.value)
    with pytest.raises(ppxcls.CheckpointError, match="none.pdparams: no such file"):
        ppxcls.load_weights(make().network, tmp_path / "none")


def test_weights_that_do_not_fit_say_which(tmp_path: Path) -> None:
    model = ppxcls.build_model("Xception41", class_num=5)
    file = tmp_path / "five.pdparams"
    paddle.save(model.state_dict(), str(file))
    other = ppxcls.build_model("Xception41", class_num=7)
    with pytest.raises(ppxcls.CheckpointError) as caught:
        ppxcls.load_weights(other, file)
    assert "_exit_flow._out.weight is [2048, 5] in the file, [2048, 7] in the model" in str(caught.value)
    assert "_exit_flow._out.bias is [5] in the file, [7] in the model" in str(caught.value)
    fresh = other.state_dict()["_exit_flow._out.weight"].numpy()
    left = ppxcls.load_weights(other, file, keep_trunk=True)
    assert [entry.split()[0] for entry in left] == ["_exit_flow._out.weight", "_exit_flow._out.bias"]
    key = "_entry_flow._conv1._conv.weight"
    assert np.array_equal(other.state_dict()[key].numpy(), model.state_dict()[key].numpy())
    assert np.array_equal(other.state_dict()["_exit_flow._out.weight"].numpy(), fresh)
    with pytest.raises(
        ppxcls.CheckpointError, match="has the weights of Xception41, and the model is Xception65"
    ):
        ppxcls.load_weights(ppxcls.build_model("Xception65", class_num=5), file, keep_trunk=True)


def test_optimizer_state_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    part = make(parameters=slice(2))
    step(part, 1)
    save(tmp_path / "latest", part)
    with pytest.raises(ppxcls.CheckpointError, match=r"latest.pdopt: has no state for 4 of 6 parameters"):
        load(tmp_path / "latest", make())
