"""The file formats of checkpoints, how often they are written, and their parts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ppxcls
from ppxcls.checkpoints import files
from ppxcls.checkpoints.files import read_checkpoint, write_checkpoint
from ppxcls.checkpoints.safe_states import PARAMETER_NAMES_KEY, from_safetensors, to_safetensors
from tests.conftest import run_tool

safetensors = pytest.importorskip("safetensors.numpy")

STEPS = {"Global.save_interval_steps": 1, "Global.save_interval": 9, "EMA": {"decay": 0.9}}


def train(file: Path, *overrides: str) -> Path:
    """Trains and returns the run's folder."""
    trainer = ppxcls.build_trainer(ppxcls.load_config(file, list(overrides)))
    trainer.fit()
    return trainer.output_dir


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        np.array_equal(a[key], b[key]) for key in a if key != PARAMETER_NAMES_KEY
    )


def test_both_formats_hold_the_same(small: Callable[..., Path], tmp_path: Path) -> None:
    """A run with safetensors weights, resumed inside its second epoch, against a run with Paddle's files.

    Both are bit-identical.
    """
    file = small(**STEPS, **{"Global.epochs": 2})
    plain = train(file)
    safe = [f"Global.output_dir={tmp_path / 'safe'}", "Global.weights_format=safetensors"]
    folder = train(file, *safe, "Global.keep_last=9")
    assert {f.name for f in folder.glob("best_model.*")} == {
        "best_model.safetensors",
        "best_model.ema.safetensors",
        "best_model.json",
    }
    train(file, *safe, f"Global.checkpoints={folder / 'step_4'}")
    ours, _ = read_checkpoint(plain / "latest")
    theirs, _ = read_checkpoint(folder / "latest")
    assert ours.keys() == theirs.keys() == {".pdparams", ".pdopt", ".pdema"}
    assert same(ours[".pdparams"], theirs[".pdparams"])
    assert same(ours[".pdema"], theirs[".pdema"])
    assert same(
        safetensors.load_file(folder / "latest.safetensors"),
        {k: v for k, v in ours[".pdparams"].items() if k != PARAMETER_NAMES_KEY},
    )
    results = [ppxcls.evaluate(ppxcls.load_config(place)) for place in (plain, folder)]
    assert results[0] == results[1]


def test_a_run_that_changes_its_format_leaves_no_old_file(small: Callable[..., Path]) -> None:
    file = small(**STEPS)
    folder = train(file)
    assert (folder / "latest.pdparams").exists()
    train(file, "Global.epochs=2", "Global.checkpoints=auto", "Global.weights_format=safetensors", "EMA=null")
    assert {f.name for f in folder.glob("latest.*")} == {"latest.json", "latest.safetensors", "latest.pdopt"}
    trainer = ppxcls.build_trainer(ppxcls.load_config(file, ["Global.epochs=3", "Global.checkpoints=auto"]))
    assert trainer.progress.epoch == 3


def test_a_damaged_safetensors_is_refused(small: Callable[..., Path]) -> None:
    folder = train(small(**STEPS), "Global.weights_format=safetensors")
    file = folder / "best_model.ema.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(
        ppxcls.CheckpointError, match="best_model.ema.safetensors: is damaged: its size or SHA-256"
    ):
        ppxcls.evaluate(ppxcls.load_config(folder))


def test_scalars_and_views_keep_their_shapes() -> None:
    state = {
        "scalar": np.float32(3),
        "transposed": np.arange(6, dtype=np.int64).reshape(2, 3).T,
        PARAMETER_NAMES_KEY: {"scalar": "a_0"},
    }
    found = from_safetensors(to_safetensors(state))
    assert found[PARAMETER_NAMES_KEY] == {"scalar": "a_0"}
    assert found["scalar"].shape == ()
    np.testing.assert_array_equal(found["transposed"], state["transposed"])


def test_the_tool_converts_one_into_the_other_and_back(small: Callable[..., Path], tmp_path: Path) -> None:
    model = ppxcls.build_model("Xception41", class_num=3)
    write_checkpoint(
        [tmp_path / "a"],
        {".pdparams": {k: v.numpy() for k, v in model.state_dict().items()}},
        manifest={"progress": {}},
    )
    tool = ["convert", "--model", "Xception41", "--class-num", "3"]
    for source, target in (("a.pdparams", "b.safetensors"), ("b.safetensors", "c.pdparams")):
        result = run_tool(*tool, tmp_path / source, "-o", tmp_path / target)
        assert result.returncode == 0, result.stderr
    other = ppxcls.build_model("Xception41", class_num=3)
    ppxcls.load_weights(other, tmp_path / "c")
    assert same(
        {k: v.numpy() for k, v in model.state_dict().items()},
        {k: v.numpy() for k, v in other.state_dict().items()},
    )


def test_best_model_has_weights_alone_unless_it_is_asked_for_more(
    small: Callable[..., Path], tmp_path: Path
) -> None:
    file = small(**STEPS)
    folder = train(file)
    assert not (folder / "best_model.pdopt").exists()
    with pytest.raises(
        ppxcls.CheckpointError,
        match="best_model has no optimizer state, so a run can't resume from it; latest",
    ):
        ppxcls.build_trainer(
            ppxcls.load_config(file, ["Global.epochs=2", f"Global.checkpoints={folder / 'best_model'}"])
        )
    wish = ["Global.best_model_optimizer=True", f"Global.output_dir={tmp_path / 'other'}"]
    other = train(file, *wish)
    trainer = ppxcls.build_trainer(
        ppxcls.load_config(file, [*wish, "Global.epochs=2", f"Global.checkpoints={other / 'best_model'}"])
    )
    assert trainer.progress.epoch == 2


def test_latest_can_be_rarer_and_the_run_is_the_same(small: Callable[..., Path], tmp_path: Path) -> None:
    """The run is killed after epoch 4, when ``latest`` is from epoch 3.

    It resumes from there and ends with the same weights.
    """
    keys = {"Global.epochs": 5, "Global.latest_interval": 3, "Global.save_interval": 9, "EMA": None}
    whole = train(small(**keys))
    assert {f.stem for f in whole.glob("*.json")} == {"latest", "best_model", "step_9", "step_15"}
    other = [f"Global.output_dir={tmp_path / 'other'}"]
    trainer = ppxcls.build_trainer(ppxcls.load_config(small(**keys), other))
    finish, epochs = trainer._finish_epoch, []

    def stop_after_four() -> None:
        finish()
        epochs.append(trainer.progress.epoch)
        if len(epochs) == 4:
            raise KeyboardInterrupt

    trainer._finish_epoch = stop_after_four  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    folder = train(small(**keys), *other, "Global.checkpoints=auto")
    assert "epoch 4, batch 0, step 9" in (folder / "train.log").read_text()
    assert same(*(read_checkpoint(place / "latest")[0][".pdparams"] for place in (whole, folder)))
    assert same(*(read_checkpoint(place / "best_model")[0][".pdparams"] for place in (whole, folder)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["Global.samples_per_step=6"],
            r"expected a multiple of 4 \(1 processes with batches of 4\), received 6",
        ),
        (
            ["Global.samples_per_step=8", "Global.update_freq=3"],
            "8 samples are 2 micro-batches, but Global.update_freq is 3",
        ),
    ],
)
def test_samples_per_step_that_do_not_fit(
    overrides: list[str], message: str, small: Callable[..., Path]
) -> None:
    with pytest.raises(ppxcls.ConfigError, match=message):
        ppxcls.build_trainer(ppxcls.load_config(small(), overrides))


def test_samples_per_step_decide_the_accumulation(small: Callable[..., Path], tmp_path: Path) -> None:
    folders = [
        train(small(), key, f"Global.output_dir={tmp_path / str(i)}")
        for i, key in enumerate(["Global.samples_per_step=8", "Global.update_freq=2"])
    ]
    assert same(*(read_checkpoint(folder / "latest")[0][".pdparams"] for folder in folders))
    assert read_checkpoint(folders[0] / "latest")[1]["update_freq"] == 2


def test_a_folder_removed_during_a_save_is_written_again(
    small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is removed after the parts were written and before they are renamed."""
    trainer = ppxcls.build_trainer(ppxcls.load_config(small(**STEPS)))
    whole, removed = files.whole_file, []

    def remove_and_write(file: Path, *, durable: bool = False) -> Any:
        if file.name == "step_2.json" and not removed:
            removed.append(file)
            while file.parent.exists():  # the training loop may write to its log at the same time
                shutil.rmtree(file.parent, ignore_errors=True)
            file.parent.mkdir()
        return whole(file, durable=durable)

    monkeypatch.setattr(files, "whole_file", remove_and_write)
    trainer.fit()
    assert removed
    assert {f.stem for f in trainer.output_dir.glob("*.json")} == {"step_2", "step_3", "latest", "best_model"}
    assert files.check_whole(trainer.output_dir / "step_2")["progress"]["step"] == 2


def test_a_manifest_without_files_is_ignored(small: Callable[..., Path]) -> None:
    file = small(**STEPS)
    folder = train(file)
    for part in folder.glob("*.pd*"):
        part.unlink()
    trainer = ppxcls.build_trainer(ppxcls.load_config(file, ["Global.checkpoints=auto"]))
    assert trainer.progress.step == 0
    assert (
        "step_3.json belongs to a checkpoint without files; it is ignored"
        in (folder / "train.log").read_text()
    )
