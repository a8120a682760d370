"""What a run's folder keeps, what is moved aside, and what is still found after a move."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import paddle
import pytest
import yaml

import ppxcls
from ppxcls.build.choices import weights_for
from ppxcls.train import learner
from ppxcls.train.evaluation import Evaluation
from tests.conftest import SMALL_NETWORK, run_tool
from tests.test_one_truth import train


def test_an_earlier_run_in_the_folder_is_moved_aside(small: Callable[..., Path], tmp_path: Path) -> None:
    file = small()
    first = train(file)
    folder = tmp_path / "output/SmallNetwork"
    (folder / "eval.json").write_text("{}")
    first_id = json.loads((folder / "latest.json").read_text())["run"]
    result = run_tool(
        "tools/train.py", "-c", file, "-o", "Global.eval_during_train=False", "-o", "Global.seed=1"
    )
    assert result.returncode == 0, result.stderr
    assert f"the files of an earlier run were moved to {folder}/earlier_1" in result.stdout
    assert not (folder / "best_model.json").exists()
    assert not (folder / "eval.json").exists()
    second = json.loads((folder / "latest.json").read_text())
    assert second["run"] != first_id
    assert ppxcls.evaluate(ppxcls.load_config(folder / "earlier_1"))["top1"] == first.progress.best["value"]
    used = run_tool("tools/eval.py", "-c", file)
    assert "no best_model, because no evaluation has chosen one; latest is used" in used.stdout
    # Files that are copied back still belong to another run.
    for part in (folder / "earlier_1").glob("best_model.*"):
        shutil.copy(part, folder)
    used = run_tool("tools/eval.py", "-c", file)
    assert f"{folder}/best_model belongs to another run than {folder}/latest and is ignored" in used.stdout
    assert f"with {folder}/latest (epoch 1)" in used.stdout


def test_auto_resumes_the_run_of_the_folder_whatever_the_clock_said(
    small: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ahead(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(timezone.utc) + timedelta(days=30)

    file = small(**{"Global.save_interval_steps": 1, "Global.keep_last": 9})
    with monkeypatch.context() as context:
        context.setattr(learner, "datetime", Ahead)
        train(file, "Global.epochs=3")
    folder = tmp_path / "output/SmallNetwork"
    train(file)
    newest = train(file, "Global.epochs=2", "Global.checkpoints=auto")
    assert newest.progress.step == 6
    manifest = json.loads((folder / "latest.json").read_text())
    assert {json.loads(f.read_text())["run"] for f in folder.glob("step_*.json")} == {manifest["run"]}
    # Also if the folder contains files of the older run, with a higher step and a later time.
    for part in (folder / "earlier_1").glob("step_9.*"):
        shutil.copy(part, folder)
    again = ppxcls.build_trainer(ppxcls.load_config(file, ["Global.epochs=3", "Global.checkpoints=auto"]))
    assert again.progress.step == 6


def test_a_run_continued_from_elsewhere_does_not_mix_with_what_is_there(
    small: Callable[..., Path], tmp_path: Path
) -> None:
    file = small()
    first = train(file, f"Global.output_dir={tmp_path}/first")
    train(file, "Global.epochs=3", "Global.seed=1")
    folder = tmp_path / "output/SmallNetwork"
    start = f"Global.checkpoints={tmp_path}/first/SmallNetwork/latest"
    assert train(file, start, "Global.epochs=2").progress.step == 6
    ids = {json.loads(f.read_text())["run"] for f in folder.glob("*.json")}
    assert ids == {first.run.facts.run}
    assert (folder / "earlier_1/step_9.json").exists()


def test_a_branch_moves_aside_what_comes_after_it(small: Callable[..., Path], tmp_path: Path) -> None:
    """Resumes from an older checkpoint.

    Neither ``auto`` nor an evaluation uses the files of the abandoned branch.
    """
    file = small(**{"Global.keep_last": 9})
    train(file, "Global.epochs=3")
    folder = tmp_path / "output/SmallNetwork"
    train(
        file,
        f"Global.checkpoints={folder}/epoch_1",
        "Optimizer.lr.learning_rate=0.9",
        "Global.epochs=2",
        "Global.eval_interval=9",
    )
    assert {f.stem for f in (folder / "earlier_1").glob("*.json")} >= {"epoch_2", "epoch_3", "step_9"}
    assert (folder / "epoch_1.json").exists()
    has_moved = [(folder / "earlier_1" / name).exists() for name in ("best_model.json", "predictions.csv")]
    assert has_moved[0] == has_moved[1], "the predictions are those of best_model"
    again = ppxcls.build_trainer(ppxcls.load_config(file, ["Global.epochs=4", "Global.checkpoints=auto"]))
    assert again.progress.step == 6
    weights = weights_for(ppxcls.load_config(folder), "evaluate")
    assert weights is not None
    assert int(weights.note.split()[1].rstrip(",")) <= 2


def test_a_run_that_was_moved_or_copied_in_part(small: Callable[..., Path], tmp_path: Path) -> None:
    """The folder is enough, even if its original location is gone.

    The run's initial weights are not its result.
    """
    ppxcls.load_config(small())  # imports the plugin
    paddle.save(ppxcls.build_model("SmallNetwork").state_dict(), str(tmp_path / "start.pdparams"))
    names = tmp_path / "names.txt"
    names.write_text("0 ant\n1 bee\n2 cat\n")
    trainer = train(
        small(
            **{"Global.pretrained_model": f"{tmp_path}/start"},
            Infer={"PostProcess": {"class_id_map_file": str(names)}},
        )
    )
    best = trainer.progress.best["value"]
    moved = shutil.move(tmp_path / "output/SmallNetwork", tmp_path / "moved")
    names.unlink()
    assert ppxcls.evaluate(ppxcls.load_config(moved))["top1"] == best
    assert not (tmp_path / "output/SmallNetwork").exists()
    again = train(moved, "Global.checkpoints=auto", "Global.epochs=2")
    assert (again.progress.step, again.output_dir) == (6, Path(moved))
    part = tmp_path / "part"
    part.mkdir()
    for name in ("config.yaml", "best_model.pdparams", "class_names.txt"):
        shutil.copy(Path(moved) / name, part)
    weights = weights_for(ppxcls.load_config(part), "infer")
    assert weights is not None
    assert weights.path == str(part / "best_model")
    (part / "best_model.pdparams").unlink()
    with pytest.raises(
        ppxcls.ConfigError,
        match="expected the weights to infer, received null, and there is no .*part/best_model",
    ):
        weights_for(ppxcls.load_config(part), "infer")


def test_a_copy_of_a_runs_config_is_a_config_like_any_other(
    small: Callable[..., Path], tmp_path: Path
) -> None:
    train(small())
    run = tmp_path / "output/SmallNetwork"
    copied = shutil.copy(run / "config.yaml", tmp_path / "mine.yaml")
    assert ppxcls.load_config(copied).run_folder == run
    assert (
        ppxcls.load_config(copied, [f"Global.output_dir={tmp_path}/b"]).run_folder
        == tmp_path / "b/SmallNetwork"
    )
    assert ppxcls.load_config(run, ["Arch={name: Xception65}"]).run_folder == tmp_path / "output/Xception65"


@pytest.mark.parametrize("name", ["best_model", "epoch_1", "step_3.pdparams"])
def test_a_run_does_not_start_from_its_own_folder(
    name: str, small: Callable[..., Path], tmp_path: Path
) -> None:
    train(small())
    start = f"Global.pretrained_model={tmp_path}/output/SmallNetwork/{name}"
    with pytest.raises(
        ppxcls.ConfigError, match="is in this run's output folder, whose files a new run moves aside"
    ):
        ppxcls.build_trainer(ppxcls.load_config(small(), [start]))
    assert train(small(), start, f"Global.output_dir={tmp_path}/other").progress.step == 3


def test_the_config_of_a_run_describes_the_run(small: Callable[..., Path], tmp_path: Path) -> None:
    """Overrides of a single command are not stored, and a command that trains nothing changes nothing."""
    file = small(**{"Global.epochs": 2})
    train(file)
    stored = tmp_path / "output/SmallNetwork/config.yaml"
    before = stored.read_bytes()
    for epochs in (1, 2):
        again = run_tool(
            "tools/train.py", "-c", file, "-o", "Global.checkpoints=auto", "-o", f"Global.epochs={epochs}"
        )
        assert again.returncode == 0, again.stderr
        assert f"nothing to do: 2 of {epochs} epochs are done" in again.stdout
        assert stored.read_bytes() == before
    train(file, "Global.checkpoints=auto", "Global.allow_changes=True", "Global.epochs=3")
    settings = yaml.safe_load(stored.read_text())["Global"]
    assert (settings["checkpoints"], settings["allow_changes"], settings["epochs"]) == (None, False, 3)
    fresh = ppxcls.build_trainer(ppxcls.load_config(stored))
    assert fresh.progress.step == 0


TRACKERS = """
from pathlib import Path

import ppxcls


@ppxcls.TRACKERS.register
class Diary(ppxcls.Tracker):
    \"\"\"Keeps its file in an attribute, so that it declares nothing.\"\"\"

    def __init__(self, folder: Path) -> None:
        self.file = folder / "diary.txt"

    def log(self, kind, place, figures):
        with open(self.file, "a") as stream:
            stream.write(f"{kind} {place['step']}\\n")


@ppxcls.TRACKERS.register
class Album(ppxcls.Tracker):
    \"\"\"Declares its folder.\"\"\"

    files = ("album",)

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "album")

    def log(self, kind, place, figures):
        Path(self.path).mkdir(exist_ok=True)
        (Path(self.path) / f"{place['step']}.txt").touch()
"""


def test_the_files_of_a_users_trackers_are_moved_aside_with_their_run(
    small: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "diaries.py").write_text(TRACKERS)
    plugins = [SMALL_NETWORK, str(tmp_path / "diaries.py")]
    file = small(**{"Global.plugins": plugins, "Global.trackers": [{"Diary": {}}, {"Album": {}}]})
    ppxcls.build_trainer(ppxcls.load_config(file, trust=True)).fit()
    folder = tmp_path / "output/SmallNetwork"
    (folder / "notes.txt").write_text("a user's own file stays")
    diary = (folder / "diary.txt").read_text()
    resumed = ppxcls.build_trainer(ppxcls.load_config(file, ["Global.checkpoints=auto", "Global.epochs=2"]))
    resumed.fit()
    assert (folder / "diary.txt").read_text().startswith(diary), "a resumed run goes on with its files"
    assert not (folder / "earlier_1").exists()
    ppxcls.build_trainer(ppxcls.load_config(file, ["Global.trackers=[{Diary: {}}]"])).fit()
    assert (folder / "earlier_1/diary.txt").read_text().startswith(diary)
    assert (folder / "diary.txt").read_text() == diary
    assert (folder / "earlier_1/album").is_dir(), "the new run has no Album, but the earlier one had"
    assert not (folder / "album").exists()
    assert (folder / "notes.txt").exists()


def test_equal_metrics_are_told_apart_by_the_loss(
    small: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With few images, several epochs have the same top-1."""
    figures = iter([(0.5, 1.0), (0.75, 0.9), (0.75, 0.6), (0.75, 0.7), (0.5, 0.1)])
    evaluate = Evaluation.__call__

    def scripted(self: Evaluation, *arguments: Any) -> dict[str, float]:
        results = evaluate(self, *arguments)
        top1, loss = next(figures)
        return {**results, "top1": top1, "loss": loss}

    monkeypatch.setattr(Evaluation, "__call__", scripted)
    trainer = train(small(), "Global.epochs=5")
    assert trainer.progress.best == {"metric": "top1", "value": 0.75, "epoch": 3, "loss": 0.6}
    manifest = json.loads((tmp_path / "output/SmallNetwork/best_model.json").read_text())
    assert (manifest["progress"]["epoch"], manifest["progress"]["best"]["epoch"]) == (4, 3)
