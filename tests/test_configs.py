"""Every YAML of the repository trains two steps at a small size and is evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import ppxcls
from tests.conftest import ROOT, write_images

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


BASES = sorted((ROOT / "ppxcls/config/bases").glob("*.yaml"))


def test_there_are_some() -> None:
    assert len(CONFIGS) >= 15
    assert len(BASES) >= 7


@pytest.mark.parametrize("base", [file for file in BASES if file.stem != "photographs"], ids=lambda f: f.stem)
def test_the_packaged_bases_have_the_values_of_the_repositorys_files(base: Path) -> None:
    """For users who have installed the package without a clone: ``base: Xception41``."""
    (file,) = (ROOT / "configs").rglob(base.name)
    packaged = ppxcls.load_config({"base": base.stem})
    assert yaml.safe_load(packaged.to_yaml()) == yaml.safe_load(ppxcls.load_config(file).to_yaml())


def test_a_recipe_is_a_few_lines_over_its_base() -> None:
    recipes = sorted((ROOT / "configs/recipes").glob("modern_*.yaml"))
    assert len(recipes) == 6
    modern = ppxcls.load_config(ROOT / "configs/recipes/modern.yaml")
    for file in recipes:
        lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
        assert lines[0] == "base: modern.yaml"
        assert len(lines) <= 3
        config = ppxcls.load_config(file)
        assert config.Arch.name == file.stem.removeprefix("modern_")
        assert config.Optimizer == modern.Optimizer or dict(config.Optimizer) == dict(modern.Optimizer)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.stem)
def test_header(file: Path) -> None:
    comment = [line for line in file.read_text().splitlines() if line.startswith("#")]
    text = " ".join(comment)
    assert "arXiv:" in text
    assert any(word in text for word in ("tools/train.py", "scripts/quickstart.sh"))
    assert "epochs" in text
    assert any(word in text for word in ("reported", "measured here"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.stem)
def test_trains_two_steps_and_is_evaluated(file: Path, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", 4)
    write_images(data, 2, seed=1, name="val")
    config = yaml.safe_load(ppxcls.load_config(file).to_yaml())  # includes the values of its bases
    config["Global"] |= {
        "device": "cpu",
        "epochs": 1,
        "output_dir": str(tmp_path / "output"),
        "save_interval": 1,
        "update_freq": 1,
    }
    config["Global"] |= {
        "print_batch_step": 1,
        "use_visualdl": False,
        "eval_interval": 1,
        "start_eval_epoch": 0,
    }
    config["Arch"]["class_num"] = 3
    for key in ("warmup_epoch", "cooldown_epoch"):
        config["Optimizer"]["lr"].pop(key, None)
    for mode, name in (("Train", "train"), ("Eval", "val")):
        section = config["DataLoader"][mode]
        section["dataset"] |= {"image_root": str(data), "cls_label_path": str(data / f"{name}_list.txt")}
        section["sampler"]["batch_size"] = 2
        ops = section["dataset"]["transform_ops"]
        resize = {"resize_short": 75} if any("CropImage" in op for op in ops) else {"size": 71}
        for op in ops:
            for key, small in (
                ("RandCropImage", {"size": 71}),
                ("CropImage", {"size": 71}),
                ("ResizeImage", resize),
            ):
                if key in op:
                    op[key] |= small
    changed = tmp_path / "config.yaml"
    changed.write_text(yaml.safe_dump(config))
    trainer = ppxcls.build_trainer(ppxcls.load_config(changed))
    trainer.fit()
    assert trainer.progress.step == 2
    rows = [json.loads(line) for line in (trainer.output_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["train", "train", "eval"]
    assert rows[0]["loss"] > 0
    results = ppxcls.evaluate(ppxcls.load_config(changed))
    assert results == {key: rows[-1][key] for key in results}
