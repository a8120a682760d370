"""Checkpoints of version 0.2.0 and of Paddle 2.6 can be resumed."""

from __future__ import annotations

import collections
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import ppxcls
from ppxcls.checkpoints import files
from ppxcls.checkpoints.compatibility import RunFacts, check_continues
from ppxcls.checkpoints.files import CheckpointError, read_checkpoint, read_state
from tests.conftest import ROOT, SMALL_NETWORK, write_images

OLD = ROOT / "tests/fixtures/version_0_2_0"
OF_2_6 = ROOT / "tests/fixtures/paddle_2_6"


def config_of(manifest: dict[str, Any], folder: Path) -> Path:
    """Writes the manifest's config, with newly written images in ``folder``."""
    write_images(folder / "data", 12)
    write_images(folder / "data", 7, seed=1, name="val")
    config = yaml.safe_load(manifest["config"])
    config["Global"] |= {"output_dir": str(folder / "output"), "plugins": [SMALL_NETWORK]}
    for mode, name in (("Train", "train"), ("Eval", "val")):
        config["DataLoader"][mode]["dataset"] |= {
            "image_root": str(folder / "data"),
            "cls_label_path": str(folder / f"data/{name}_list.txt"),
        }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def arrays(state: dict[str, Any]) -> list[np.ndarray]:
    """Returns the arrays in order. The optimizer's keys depend on other objects in the process."""
    return [value for value in state.values() if isinstance(value, np.ndarray)]


@pytest.mark.every_paddle
def test_a_checkpoint_of_0_2_0_is_continued(tmp_path: Path) -> None:
    parts, manifest = read_checkpoint(OLD / "step_5")
    assert manifest["ppxcls"] == "0.2.0"
    config = ppxcls.load_config(config_of(manifest, tmp_path), [f"Global.checkpoints={OLD}/step_5"])
    trainer = ppxcls.build_trainer(config)

    # The loaded state is bit-identical to the files, and would be saved unchanged.
    snapshot = trainer.learner.state()
    assert snapshot is not None
    assert snapshot.parts.keys() == parts.keys() == {".pdparams", ".pdopt", ".pdema"}
    for extension, part in parts.items():
        saved, loaded = arrays(part), arrays(snapshot.parts[extension])
        assert len(saved) >= 4
        assert all(np.array_equal(a, b) for a, b in zip(saved, loaded, strict=True)), extension
    written = snapshot.manifest(trainer.run.facts.as_dict())
    newer_keys = {"run", "started_from", "class_names", "best_metric", "eval_groups"}
    assert written.keys() - newer_keys == manifest.keys() - {"format", "parts"}
    assert written["progress"] == {**manifest["progress"], "improvement": {}, "stale_evaluations": 0}

    trainer.fit()
    folder = tmp_path / "output/SmallNetwork"
    # Another processor may round differently.
    for extension in (".pdparams", ".pdopt", ".pdema"):
        expected, received = (
            arrays(read_state(OLD / f"step_9{extension}")),
            arrays(read_state(folder / f"latest{extension}")),
        )
        assert all(
            np.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(expected, received, strict=True)
        ), extension
    assert written["progress"]["plateau"]["factor"] == 1
    assert trainer.progress.plateau["factor"] == 0.25
    old, new = (
        [json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (OLD, folder)
    )
    old = [row for row in old if (row["epoch"], row.get("iter", 9)) >= (2, 4)]
    assert [row.keys() - {"ips_total", "samples"} for row in new] == [row.keys() for row in old]
    for one, two in zip(old, new, strict=True):
        for key in one.keys() - {"batch_cost", "reader_cost", "ips", "eta"}:
            assert two[key] == (
                pytest.approx(one[key], rel=1e-4) if isinstance(one[key], float) else one[key]
            ), key


@pytest.mark.every_paddle
def test_a_checkpoint_of_paddle_2_6_is_continued(tmp_path: Path) -> None:
    """The checkpoint was written by Paddle 2.6.2 with numpy 2, and that of 0.2.0 above by Paddle 3.3.

    Each Paddle reads both.
    """
    manifest = json.loads((OF_2_6 / "step_3.json").read_text())
    assert manifest["paddle"] == "2.6.2"
    config = ppxcls.load_config(config_of(manifest, tmp_path), [f"Global.checkpoints={OF_2_6}/step_3"])
    trainer = ppxcls.build_trainer(config)
    assert trainer.progress.step == 3
    trainer.fit()
    folder = tmp_path / "output/SmallNetwork"
    for extension in (".pdparams", ".pdopt", ".pdema"):
        expected, received = (
            arrays(read_state(OF_2_6 / f"step_6{extension}")),
            arrays(read_state(folder / f"latest{extension}")),
        )
        assert len(expected) >= 4
        assert all(
            np.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(expected, received, strict=True)
        ), extension


def test_a_resume_reads_and_hashes_each_part_once(
    write_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_config(
        **{"Arch": {"name": "SmallNetwork"}, "Global.plugins": [SMALL_NETWORK], "EMA": {"decay": 0.9}}
    )
    ppxcls.build_trainer(ppxcls.load_config(file)).fit()
    folder = tmp_path / "output/SmallNetwork"
    parts = {
        hashlib.sha256((folder / f"latest{e}").read_bytes()).digest(): e
        for e in (".pdparams", ".pdopt", ".pdema")
    }
    hashed: collections.Counter[str] = collections.Counter()
    sha256 = hashlib.sha256

    def counted(data: bytes = b"") -> Any:
        digest = sha256(data)
        hashed[parts.get(digest.digest(), "other")] += 1
        return digest

    monkeypatch.setattr(files.hashlib, "sha256", counted)
    trainer = ppxcls.build_trainer(ppxcls.load_config(file, ["Global.checkpoints=auto"]))
    assert trainer.progress.epoch == 2
    assert {e: hashed[e] for e in parts.values()} == {".pdparams": 1, ".pdopt": 1, ".pdema": 1}


def test_a_checkpoint_named_by_one_of_its_files_is_named_rightly_in_messages(tmp_path: Path) -> None:
    _, manifest = read_checkpoint(OLD / "step_5")
    overrides = [f"Global.checkpoints={OLD}/step_5.pdparams", "Arch.class_num=7", "Global.allow_changes=True"]
    config = ppxcls.load_config(config_of(manifest, tmp_path), overrides)
    with pytest.raises(CheckpointError, match=r"step_5\.(pdparams|pdema) does not fit the model"):
        ppxcls.build_trainer(config)


def facts(**keys: Any) -> RunFacts:
    """Facts of a run without data."""
    values = {"ppxcls": "0.15.0", "paddle": "3", "config": "{}", "train_list": "a", "samples": 1}
    values |= {"global_batch": 1, "update_freq": 1, "steps_per_epoch": 1, "world_size": 1}
    return RunFacts(**{**values, **keys})


@pytest.mark.parametrize(
    ("version", "layer_decay", "count"),
    [
        ("0.14.0", 0.5, 1),
        ("0.9.12", 0.5, 1),
        ("0.14.0", "null", 0),
        ("0.15.0", 0.5, 0),
        ("0.15.1.dev0", 0.5, 0),
        ("unknown", 0.5, 0),
    ],
)
def test_other_rates_of_layers_since_0_15_are_said(
    version: str, layer_decay: Any, count: int, new_warnings: Callable[[], list[str]]
) -> None:
    now = facts(config=f"Optimizer: {{layer_decay: {layer_decay}}}")
    check_continues({**now.as_dict(), "ppxcls": version}, now, allow_changes=False)
    warnings = new_warnings()
    assert len(warnings) == count
    assert all(f"is of ppxcls {version}: since 0.15.0, Optimizer.layer_decay" in text for text in warnings)


@pytest.mark.parametrize(("best_metric", "count"), [("group_AUC", 1), ("AUC", 0)])
def test_other_groups_make_the_best_figure_not_comparable(
    best_metric: str, count: int, new_warnings: Callable[[], list[str]]
) -> None:
    earlier, now = (facts(best_metric=best_metric, eval_groups=digest) for digest in ("b", "c"))
    check_continues(earlier.as_dict(), now, allow_changes=False)
    warnings = new_warnings()
    assert ["other groups of the evaluation list" in text for text in warnings] == [True] * count
