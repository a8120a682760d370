"""Paths of a YAML, from whichever folder a command is called."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import ppxcls
from tests.conftest import run_tool, small_config, write_images

Texts = Callable[[], list[str]]


@pytest.fixture
def notes(new_warnings: Texts) -> Texts:
    """Returns a function that gives the notes about paths since its last call, each as one text.

    A note with long paths has several lines, one for each path.
    """

    def new_notes() -> list[str]:
        texts: list[str] = []
        for line in new_warnings():
            if "were found elsewhere" in line:
                texts.append(line)
            elif texts and re.match(r"[A-Z]\w+(\.\w+)+: /", line):
                texts[-1] += f" {line}"
        return texts

    return new_notes


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Callable[..., Path]) -> Path:
    """A folder with images, lists and a YAML with relative paths; it is the current folder."""
    folder = tmp_path / "project"
    write_images(folder / "data", 12)
    write_images(folder / "data", 7, seed=1, name="val")
    plugin = yaml.safe_load(small().read_text())["Global"]["plugins"][0]
    config = small_config(Path("data"), Path("output"), Arch={"name": "SmallNetwork"})
    config["Global"]["plugins"] = [plugin]
    (folder / "settings").mkdir()
    (folder / "settings/small.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(folder)
    return folder


def paths_of(config: Any) -> list[str]:
    sections = (config.DataLoader.Train, config.DataLoader.Eval)
    return [section.dataset[key] for section in sections for key in ("image_root", "cls_label_path")]


def trained(file: str | Path, *overrides: str) -> Path:
    trainer = ppxcls.build_trainer(ppxcls.load_config(file, list(overrides)))
    trainer.fit()
    return Path(os.path.abspath(trainer.output_dir))


def test_a_path_is_relative_to_the_current_folder_first(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: Texts
) -> None:
    relative = ["data", "data/train_list.txt", "data", "data/val_list.txt"]
    assert paths_of(ppxcls.load_config("settings/small.yaml")) == relative
    assert notes() == []
    monkeypatch.chdir(tmp_path / "elsewhere")
    expected = [str(project / path) for path in relative]
    assert paths_of(ppxcls.load_config("../project/settings/small.yaml")) == expected
    (line,) = notes()
    assert "paths that do not exist from the current folder were found elsewhere" in line
    assert f"DataLoader.Eval.dataset.image_root: {project}/data" in line
    # One of the two paths is here, but they belong together.
    (tmp_path / "elsewhere/data").mkdir()
    assert paths_of(ppxcls.load_config("../project/settings/small.yaml")) == expected
    shutil.copytree(project / "data", tmp_path / "elsewhere/data", dirs_exist_ok=True)
    assert paths_of(ppxcls.load_config("../project/settings/small.yaml")) == relative


def test_paths_of_the_command_line_are_relative_to_the_current_folder(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "elsewhere")
    override = "DataLoader.Eval.dataset.cls_label_path=data/val_list.txt"
    config = ppxcls.load_config(project / "settings/small.yaml", [override])
    assert config.DataLoader.Eval.dataset.cls_label_path == "data/val_list.txt"


def test_paths_that_are_nowhere_stay_as_they_are(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: Texts
) -> None:
    shutil.rmtree("data")
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = ppxcls.load_config(project / "settings/small.yaml")
    assert paths_of(config)[:2] == ["data", "data/train_list.txt"]
    assert notes() == []
    with pytest.raises(ppxcls.DataError, match=r"^data/train_list.txt: no such list file"):
        ppxcls.build_trainer(config)


def test_a_run_works_from_any_folder(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: Texts
) -> None:
    run = trained("settings/small.yaml")
    results = ppxcls.evaluate(ppxcls.load_config(run))
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert stored["Global"]["output_dir"] == str(project / "output")
    assert stored["Global"]["save_inference_dir"] == "./inference", "an export goes to the current folder"
    shutil.copytree(project / "data", tmp_path / "elsewhere/data")
    (tmp_path / "elsewhere/data/val_list.txt").write_text("val/0000.png 2\n")
    (run / "eval.json").unlink()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for folder in (run, os.path.relpath(run)):
        assert ppxcls.evaluate(ppxcls.load_config(folder)) == results, "not the data of this folder"
    assert (run / "eval.json").exists()
    assert ppxcls.check_data(ppxcls.load_config(run), progress_bar=False).lists.keys() == {
        f"{project}/data/{name}_list.txt" for name in ("train", "val")
    }
    resumed = ppxcls.load_config(run, ["Global.checkpoints=auto", "Global.epochs=2"])
    assert ppxcls.build_trainer(resumed).progress.epoch == 2
    assert notes() == []


def test_every_key_of_a_run(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("names.txt").write_text("0 a\n1 b\n2 c\n")
    start = trained("settings/small.yaml", "Global.output_dir=first")
    shutil.copy(start / "best_model.pdparams", "start.pdparams")
    settings = "Infer={infer_imgs: data/val, PostProcess: {class_id_map_file: names.txt}}"
    run = trained("settings/small.yaml", settings, "Global.pretrained_model=start")
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = ppxcls.load_config(run)
    assert config.Global.pretrained_model == str(project / "start")
    assert config.Infer.infer_imgs == str(project / "data/val")
    assert config.Infer.PostProcess.class_id_map_file == str(project / "names.txt")
    assert len(ppxcls.infer(config)) == 7
    ppxcls.build_trainer(ppxcls.load_config(run, [f"Global.output_dir={tmp_path}/second"]))


def test_a_run_of_an_older_version(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: Texts
) -> None:
    """It has relative paths. Its folder and ``output_dir`` tell where it was started."""
    run = trained("settings/small.yaml")
    results = ppxcls.evaluate(ppxcls.load_config(run))
    text = (run / "config.yaml").read_text().replace(f"{project}/", "")
    assert yaml.safe_load(text)["DataLoader"]["Eval"]["dataset"]["image_root"] == "data"
    (run / "config.yaml").write_text(text)
    assert ppxcls.evaluate(ppxcls.load_config(run)) == results
    assert notes() == []
    write_images(tmp_path / "elsewhere/data", 3, seed=5, name="val")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert ppxcls.evaluate(ppxcls.load_config(run)) == results
    assert len(notes()) == 1
    moved = shutil.move(project, tmp_path / "moved")
    assert ppxcls.evaluate(ppxcls.load_config(f"{moved}/output/SmallNetwork")) == results


def test_a_moved_run(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: Texts) -> None:
    run = trained("settings/small.yaml")
    results = ppxcls.evaluate(ppxcls.load_config(run))
    monkeypatch.chdir(tmp_path)
    alone = shutil.copytree(run, tmp_path / "alone")
    assert ppxcls.evaluate(ppxcls.load_config(alone)) == results, "the data is where it was"
    assert notes() == []
    shutil.move(project, tmp_path / "moved")
    moved_run = tmp_path / "moved/output/SmallNetwork"
    assert ppxcls.evaluate(ppxcls.load_config(moved_run)) == results
    (line,) = notes()
    assert f"DataLoader.Eval.dataset.cls_label_path: {tmp_path}/moved/data/val_list.txt" in line
    with pytest.raises(ppxcls.DataError, match=f"{project}/data/val_list.txt: no such list file"):
        ppxcls.evaluate(ppxcls.load_config(alone))


def test_plugins_beside_a_moved_run(project: Path, tmp_path: Path) -> None:
    plugin = Path("settings/my_moved_transform.py")
    plugin.write_text(
        "import ppxcls\n\n\n@ppxcls.TRANSFORMS.register\nclass MovedTransform(ppxcls.Transform):\n"
        '    """Changes nothing."""\n\n    def __call__(self, image, rng):\n        return image\n'
    )
    config = yaml.safe_load(Path("settings/small.yaml").read_text())
    config["Global"]["plugins"].append("my_moved_transform.py")
    config["DataLoader"]["Train"]["dataset"]["transform_ops"].insert(1, {"MovedTransform": {}})
    Path("settings/small.yaml").write_text(yaml.safe_dump(config))
    assert (
        run_tool(
            "train",
            "--trust",
            "-c",
            project / "settings/small.yaml",
            "-o",
            f"Global.output_dir={project}/output",
        ).returncode
        == 0
    )
    shutil.move(project, tmp_path / "moved")
    result = run_tool("eval", "-c", tmp_path / "moved/output/SmallNetwork")
    assert result.returncode == 2, "the user has trusted the file in its old place"
    assert f"{tmp_path}/moved/settings/my_moved_transform.py" in result.stderr
    result = run_tool("eval", "-c", tmp_path / "moved/output/SmallNetwork", "--trust")
    assert result.returncode == 0, result.stderr


def test_a_resumed_run_of_an_older_version_reports_no_changed_path(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = trained("settings/small.yaml")
    for file in run.glob("*.json"):
        if file.name != "eval.json":
            file.write_text(file.read_text().replace(f"{project}/", ""))
    ppxcls.system.logs.logger.propagate = True
    try:
        overrides = ["Global.checkpoints=auto", "Global.epochs=2"]
        ppxcls.build_trainer(ppxcls.load_config("settings/small.yaml", overrides))
    finally:
        ppxcls.system.logs.logger.propagate = False
    changes = [r.getMessage() for r in caplog.records if "changed since the checkpoint" in r.getMessage()]
    assert [text.split(": ")[1] for text in changes] == ["Global.epochs"]


def test_a_moved_project_resumes_without_a_word_about_its_paths(
    project: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained("settings/small.yaml")
    moved = Path(shutil.move(project, tmp_path / "moved"))
    monkeypatch.chdir(moved)
    ppxcls.system.logs.logger.propagate = True
    try:
        overrides = ["Global.checkpoints=auto", "Global.epochs=2"]
        trainer = ppxcls.build_trainer(ppxcls.load_config("settings/small.yaml", overrides))
    finally:
        ppxcls.system.logs.logger.propagate = False
    assert trainer.progress.epoch == 2
    changes = [r.getMessage() for r in caplog.records if "changed since the checkpoint" in r.getMessage()]
    assert [text.split(": ")[1] for text in changes] == ["Global.epochs"]


def test_a_moved_folder_with_its_own_yaml_is_written_to(project: Path, tmp_path: Path, notes: Texts) -> None:
    """The YAML of ``ppxcls fit`` is in the folder of its lists and runs, and its paths are absolute."""
    output = project / "output/photos"
    (output / "lists").mkdir(parents=True)
    shutil.copy("data/val_list.txt", output / "lists/val_list.txt")
    config = yaml.safe_load(Path("settings/small.yaml").read_text())
    config["Global"]["output_dir"] = str(output)
    config["DataLoader"]["Eval"]["dataset"] |= {
        "image_root": str(project / "data"),
        "cls_label_path": str(output / "lists/val_list.txt"),
    }
    (output / "train.yaml").write_text(yaml.safe_dump(config))
    assert ppxcls.load_config(output / "train.yaml").Global.output_dir == str(output)
    moved = Path(shutil.move(output, tmp_path / "photos"))
    config = ppxcls.load_config(moved / "train.yaml")
    assert config.DataLoader.Eval.dataset.cls_label_path == str(moved / "lists/val_list.txt")
    assert config.DataLoader.Eval.dataset.image_root == str(project / "data")
    assert config.Global.output_dir == str(moved)
    (line,) = notes()
    assert line.endswith(f"Global.output_dir: {moved}")


def test_a_renamed_folder_whose_old_path_is_in_use_again(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The files that were renamed with a YAML are used, and not the new ones in their old place."""

    def write_fit(folder: Path) -> None:
        shutil.copytree(project / "data", folder / "lists", ignore=lambda *_: ["train", "val"])
        (folder / "fit.json").touch()
        config = yaml.safe_load(Path("settings/small.yaml").read_text())
        config["Global"]["output_dir"] = str(folder)
        for mode, name in (("Train", "train"), ("Eval", "val")):
            config["DataLoader"][mode]["dataset"] |= {
                "image_root": str(project / "data"),
                "cls_label_path": str(folder / f"lists/{name}_list.txt"),
            }
        (folder / "train.yaml").write_text(yaml.safe_dump(config))
        config["Global"]["output_dir"] = str(folder / "head")
        (folder / "head.yaml").write_text(yaml.safe_dump(config))

    output, renamed = project / "output/dg", project / "output/dg_old"
    write_fit(output)
    run = trained(output / "train.yaml")
    results = ppxcls.evaluate(ppxcls.load_config(run))
    output.rename(renamed)
    write_fit(output)
    (output / "lists/val_list.txt").write_text("val/0000.png 2\n")
    (output / "SmallNetwork").mkdir()
    ppxcls.system.logs.logger.propagate = True
    try:
        for file in (renamed / "SmallNetwork", renamed / "train.yaml", renamed / "head.yaml"):
            config = ppxcls.load_config(file)
            assert config.DataLoader.Eval.dataset.cls_label_path == str(renamed / "lists/val_list.txt")
            assert config.DataLoader.Train.dataset.image_root == str(project / "data")
            assert config.run_folder.parent == (renamed / "head" if file.stem == "head" else renamed)
            assert f"{file}" in caplog.text
            assert f"it was moved from {output}" in caplog.text
        caplog.clear()
        assert ppxcls.load_config(output / "train.yaml").Global.output_dir == str(output)
        # A file that was never in its output folder is used as it is.
        shutil.copytree(output / "lists", project / "settings/lists")
        shutil.copy(output / "train.yaml", "settings/own.yaml")
        config = ppxcls.load_config("settings/own.yaml")
        assert config.DataLoader.Eval.dataset.cls_label_path == str(output / "lists/val_list.txt")
        assert config.Global.output_dir == str(output)
        assert caplog.text == ""
    finally:
        ppxcls.system.logs.logger.propagate = False
    assert ppxcls.evaluate(ppxcls.load_config(renamed / "SmallNetwork")) == results


def test_only_images_are_a_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern in another key is a name, and no pattern is followed below its first folder."""
    (tmp_path / "project/photos/deep").mkdir(parents=True)
    (tmp_path / "project/photos/deep/a.pdparams").touch()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    file = tmp_path / "project/a.yaml"
    keys = "Global: {pretrained_model: photos/*/a}\nInfer: {infer_imgs: photos/d*/*/*/nothing*}\n"
    file.write_text(f"Arch: {{name: Xception41}}\n{keys}")
    config = ppxcls.load_config(file)
    assert config.Global.pretrained_model == "photos/*/a"
    assert config.Infer.infer_imgs == str(tmp_path / "project/photos/d*/*/*/nothing*")
