"""``fit`` checks before it writes, names bad photographs, and continues what was interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import ppxcls
from ppxcls.checkpoints.progress import Progress
from ppxcls.config.checks import ConfigError
from ppxcls.data.errors import DataError
from ppxcls.data.groups import read_groups
from ppxcls.data.list_index import ListIndex
from ppxcls.fitting import folder as fitting
from ppxcls.fitting import training, trial
from ppxcls.fitting.progress import FILE, read_progress
from ppxcls.system.atomic_files import write_text
from ppxcls.train.run_schedule import RunSchedule
from tests.conftest import ROOT, SMALL_NETWORK

EPOCHS = 60  # a few seconds
OVERRIDES = (
    f"Global.plugins=[{SMALL_NETWORK}]",
    "Arch={name: SmallNetwork, class_num: 2}",
    f"Global.epochs={EPOCHS}",
)
WORDS = ["fit", "photos", "--output", "out", "--minutes", "0.01"]
WORDS += [word for override in OVERRIDES for word in ("-o", override)]


def photographs(folder: Path, count: int = 6) -> Path:
    """Writes folders of two classes, each with different images."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("ant", "bee")):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            image = rng.integers(0, 60, (80, 80, 3)).astype(np.uint8)
            image[..., label] += 150
            cv2.imwrite(str(folder / name / f"{i}.png"), image)
    return folder


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, BaseException], None]:
    """Makes a step take no time, and returns a function that makes one of the steps fail."""
    monkeypatch.setattr("ppxcls.fitting.settings._seconds_per_step", lambda *_: 1.0)

    def fail(name: str, error: BaseException) -> None:
        def failing(*_: object, **__: object) -> None:
            raise error

        for module in (fitting, trial, training):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, failing)

    return fail


def start(words: list[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ppxcls", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "NoSuchFile"}, "NoSuchFile: no such file, and no name of published weights"),
        ({"weights": "NoSuchFile.pdparams"}, "NoSuchFile.pdparams: no such file of weights"),
        (
            {"weights": "Xception41"},
            "Xception41: not on this machine, and PPXCLS_OFFLINE forbids to fetch it",
        ),
        ({"weights": "Xception41_empty.pdparams"}, "Xception41_empty.pdparams"),
        ({"network": "Xception42"}, "expected one of the networks .*Xception41.* received 'Xception42'"),
        ({"minutes": -1.0}, "expected minutes above 0"),
        ({"output": "file"}, "expected a folder for the results"),
        ({"output": "file/deeper/still"}, "expected a folder for the results"),
        ({"overrides": ["Global.epochs"]}, "expected KEY.KEY=value"),
        ({"overrides": ["Global.epoch=3"]}, "epochs"),
        ({"overrides": ["Global.epochs=many"]}, "epochs"),
        ({"overrides": ["Global.max_hours=1"]}, "Global.max_hours: expected null, because --minutes limits"),
        ({"overrides": ["Arch.class_num=1"]}, "expected the names of 1 classes, received 2"),
        ({"overrides": ["Global.device=gpux"]}, "expected one of cpu"),
        ({"overrides": ["DataLoader.Train.dataset.cls_label_path=gone.txt"]}, "gone.txt: no such list file"),
    ],
)
def test_nothing_is_written_before_everything_is_checked(
    options: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "photos")
    (tmp_path / "file").touch()
    (tmp_path / "Xception41_empty.pdparams").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((ConfigError, DataError, OSError, ppxcls.CheckpointError), match=message):
        ppxcls.fit("photos", **{"output": "out", **options})
    assert sorted(tmp_path.rglob("*")) == before


def test_bad_photographs_and_copies_are_named(
    tmp_path: Path, stubs: Callable[[str, BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    photos = photographs(tmp_path / "photos", 5)
    (photos / "train").mkdir()
    (photos / "val").mkdir()
    for name in ("ant", "bee"):
        (photos / name).rename(photos / "train" / name)
        (photos / "val" / name).mkdir()
        (photos / f"train/{name}/4.png").rename(photos / f"val/{name}/4.png")
    (photos / "train/ant/0.png").write_bytes(b"<html>")
    (photos / "train/bee/0.png").write_bytes(b"")
    (photos / "val/ant/0.png").write_bytes((photos / "train/ant/1.png").read_bytes())
    (photos / "train/bee/copy.png").write_bytes((photos / "train/ant/2.png").read_bytes())
    stubs("_train", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        ppxcls.fit(photos, output=tmp_path / "out")
    text = capsys.readouterr().out
    assert "left out, because it can't be read: train/ant/0.png: " in text
    assert "left out, because it can't be read: train/bee/0.png: 0 bytes" in text
    assert "the same picture is in two classes: train/ant/2.png = train/bee/copy.png" in text
    assert "the same picture is in two parts, so it is left out" in text
    assert "of the part that chooses: train/ant/1.png = val/ant/0.png" in text
    train_lines, val_lines, test_lines = (
        (tmp_path / f"out/lists/{part}_list.txt").read_text(encoding="utf-8").splitlines()
        for part in ("train", "val", "test")
    )
    assert sorted([*train_lines, *val_lines]) == [
        *(f"train/ant/{i}.png 0" for i in (2, 3)),
        *(f"train/bee/{i}.png 1" for i in (1, 2, 3, "copy")),
    ]
    assert {"train/ant/2.png 0", "train/bee/copy.png 1"} <= set(train_lines), "one picture of two classes"
    assert test_lines == ["val/ant/0.png 0", "val/ant/4.png 0", "val/bee/4.png 1"]
    for file in (photos / "train/bee").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(DataError, match="no training image of the class 'bee' can be read"):
        ppxcls.fit(photos, output=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_table_is_fitted_with_its_groups(
    tmp_path: Path, stubs: Callable[[str, BaseException], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lists of the run have the table's classes, and no patient is in two of them."""
    monkeypatch.chdir(tmp_path)
    photos = photographs(tmp_path / "photos", 10)
    rows = [f"{name}/{i}.png,{name.title()},{name}{i // 2}" for name in ("ant", "bee") for i in range(10)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,class,patient", *rows]))
    stubs("_train", KeyboardInterrupt())
    options = {"image_root": "photos", "group": "patient"}
    for _ in range(2):  # the second call continues the first
        with pytest.raises(KeyboardInterrupt):
            ppxcls.fit("labels.csv", **options)
    lists = tmp_path / "output/labels/lists"
    assert (lists / "class_names.txt").read_text() == "0 Ant\n1 Bee\n"
    groups = read_groups(lists / "groups.csv")
    assert groups is not None
    patients = []
    for part in ("train", "val", "test"):
        index = ListIndex(lists / f"{part}_list.txt")
        patients.append({groups[index.path(i)] for i in range(len(index))})
        assert len({int(label) for label in index.labels}) == 2
    assert sum(map(len, patients)) == len(set().union(*patients)) == 10
    config = ppxcls.load_config(tmp_path / "output/labels/train.yaml")
    assert config.DataLoader.Train.dataset.image_root == str(photos)
    assert ppxcls.check_data(config, progress_bar=False).errors == 0
    with pytest.raises(DataError, match="--group was patient, and is now not given"):
        ppxcls.fit("labels.csv", image_root="photos")
    with pytest.raises(DataError, match="image='path' is for a table in CSV"):
        ppxcls.fit("photos", output="other", image="path")


def test_names_that_look_alike_are_said(
    tmp_path: Path, stubs: Callable[[str, BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    photos = photographs(tmp_path / "photos", 3)
    (photos / "ant").rename(photos / "Bee")
    stubs("_train", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        ppxcls.fit(photos, output=tmp_path / "out")
    assert "WARNING: the names of the classes 0 and 1 look alike: 'Bee' and 'bee'" in capsys.readouterr().out


def test_what_has_changed_is_said(tmp_path: Path, stubs: Callable[[str, BaseException], None]) -> None:
    photos = photographs(tmp_path / "photos", 3)
    stubs("_train", ppxcls.TrainingError("the loss is not finite"))
    with pytest.raises(ppxcls.TrainingError):
        ppxcls.fit(photos, output=tmp_path / "out", overrides=["Global.epochs=2"])
    with pytest.raises(DataError, match=r"-o was \['Global.epochs=2'\], and is now \['Global.epochs=3'\]"):
        ppxcls.fit(photos, output=tmp_path / "out", overrides=["Global.epochs=3"])
    with pytest.raises(DataError, match="--network was Xception41, and is now Xception65; repeat"):
        ppxcls.fit(photos, output=tmp_path / "out", overrides=["Global.epochs=2"], network="Xception65")
    with pytest.raises(ppxcls.TrainingError):  # a resumed run needs no other key
        ppxcls.fit(photos, output=tmp_path / "out", overrides=["Global.epochs=2", "Global.checkpoints=auto"])
    (photos / "ant/new.png").write_bytes((photos / "ant/0.png").read_bytes())
    with pytest.raises(DataError, match="photographs in .* have changed"):
        ppxcls.fit(photos, output=tmp_path / "out", overrides=["Global.epochs=2"])


def test_a_moved_project_is_continued(
    tmp_path: Path, stubs: Callable[[str, BaseException], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs(tmp_path / "P1/ds", 3)
    (tmp_path / "P1/w1").mkdir()
    (tmp_path / "P1/w1/best_model.pdparams").touch()
    stubs("build_trainer", KeyboardInterrupt())
    monkeypatch.setattr(
        fitting,
        "_try_to_build",
        lambda request, settings, folder: write_text(folder / "train.yaml", "base: photographs\n"),
    )
    monkeypatch.setattr(fitting, "_try_to_build_head", lambda *_: None)
    monkeypatch.setattr(fitting, "with_stages", lambda *_, **__: None)
    monkeypatch.chdir(tmp_path / "P1")
    with pytest.raises(KeyboardInterrupt):
        ppxcls.fit("ds", "w1/best_model", network="Xception41")
    with pytest.raises(KeyboardInterrupt):  # the same file
        ppxcls.fit("ds", "w1/best_model.pdparams", network="Xception41")
    (tmp_path / "P1").rename(tmp_path / "P2")
    monkeypatch.chdir(tmp_path / "P2")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            ppxcls.fit("ds", str(tmp_path / "P2/w1/best_model.pdparams"), network="Xception41")
    for name in ("train.yaml", "head.yaml"):
        text = Path("output/ds", name).read_text(encoding="utf-8")
        assert f"{tmp_path}/P2/" in text
        assert f"{tmp_path}/P1/" not in text
    Path("ds").rename("other")
    with pytest.raises(
        DataError, match=f"PHOTOS was {tmp_path}/P2/ds, and is now {tmp_path}/P2/other; repeat"
    ):
        ppxcls.fit("other", "w1/best_model", network="Xception41", output="output/ds")


def test_a_changed_yaml_is_not_overwritten(
    tmp_path: Path, stubs: Callable[[str, BaseException], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = photographs(tmp_path / "photos", 3)
    stubs("build_trainer", KeyboardInterrupt())
    monkeypatch.setattr(fitting, "_try_to_build", lambda *_: None)
    monkeypatch.setattr(fitting, "_try_to_build_head", lambda *_: None)
    monkeypatch.setattr(fitting, "with_stages", lambda *_, **__: None)
    with pytest.raises(KeyboardInterrupt):
        ppxcls.fit(photos, output=tmp_path / "out")
    yaml_file = tmp_path / "out/train.yaml"
    yaml_file.write_text(yaml_file.read_text(encoding="utf-8") + "# mine\n", encoding="utf-8")
    with pytest.raises(
        DataError, match=r"train.yaml was changed after fit wrote it: train with 'ppxcls train"
    ):
        ppxcls.fit(photos, output=tmp_path / "out")
    assert yaml_file.read_text(encoding="utf-8").endswith("# mine\n")
    (tmp_path / "out" / FILE).write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"fit.json is damaged"):
        ppxcls.fit(photos, output=tmp_path / "out")


def test_a_second_fit_in_the_same_folder_is_refused(
    tmp_path: Path, stubs: Callable[[str, BaseException], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins while the first one chooses its settings, and again while the first one trains."""
    pytest.importorskip("fcntl")
    photos = photographs(tmp_path / "photos", 3)
    stubs("_try_to_build", AssertionError())
    refusals: list[str] = []

    def second(*_: object) -> None:
        with pytest.raises(DataError, match=f"{tmp_path}/out: another fit is running there; wait") as error:
            ppxcls.fit(photos, output=tmp_path / "out", minutes=3)
        refusals.append(str(error.value))

    def stopped(*_: object) -> None:
        second()
        raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "_try_to_build", second)
    monkeypatch.setattr(fitting, "_train", stopped)
    with pytest.raises(KeyboardInterrupt):
        ppxcls.fit(photos, output=tmp_path / "out")
    assert len(refusals) == 2
    progress = read_progress(tmp_path / "out", ())
    assert progress is not None
    assert progress.arguments["--minutes"] == 10


def test_each_step_is_taken_up_again(
    tmp_path: Path, stubs: Callable[[str, BaseException], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step fails once, as if by Ctrl-C. The same call goes on, and repeats no finished step."""
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "photos", 4)
    steps: list[str] = []
    failing = {"find_batch", "head", "find_lr", "train", "evaluate"}

    def step(name: str) -> None:
        steps.append(name)
        if name in failing:
            failing.remove(name)
            raise KeyboardInterrupt

    class StubTrainer:
        def __init__(self, config: ppxcls.config.sections.Config) -> None:
            self.name = "head" if "head" in config.Global.output_dir else "train"
            self.is_resumed = config.Global.checkpoints == "auto"
            self.folder = config.run_folder
            self.progress = Progress()
            self.run_schedule = RunSchedule(epochs=1)

        def fit(self) -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "latest.pdparams").touch()
            step(self.name)
            assert self.is_resumed

    monkeypatch.setattr(fitting, "_try_to_build", lambda *_: None)
    monkeypatch.setattr(fitting, "_try_to_build_head", lambda *_: None)
    monkeypatch.setattr(fitting, "with_stages", lambda *_, **__: None)
    monkeypatch.setattr(training, "build_trainer", StubTrainer)
    monkeypatch.setattr(fitting, "_with_batch_size", lambda _, settings: (step("find_batch"), settings)[1])
    monkeypatch.setattr(fitting, "_with_learning_rate", lambda _, settings: (step("find_lr"), settings)[1])
    monkeypatch.setattr(fitting, "load_config", load_config_of_a_stub(fitting.load_config))
    monkeypatch.setattr(fitting, "evaluate", lambda *_, **__: step("evaluate"))
    monkeypatch.setattr(fitting, "judge", lambda *_, **__: None)
    (tmp_path / "Xception41.pdparams").touch()
    options: dict[str, Any] = {"output": "out", "network": "Xception41", "find_lr": True, "find_batch": True}
    options["overrides"] = ["Global.epochs=1"]  # a user's number is not changed after the first epoch
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            ppxcls.fit("photos", "Xception41.pdparams", **options)
    assert ppxcls.fit("photos", "Xception41.pdparams", **options) == Path("out/Xception41")
    assert steps == [name for name in ("find_batch", "head", "find_lr", "train", "evaluate") for _ in "12"]
    ppxcls.fit("photos", "Xception41.pdparams", **options)
    assert len(steps) == 10


def load_config_of_a_stub(load_config: Callable[..., object]) -> Callable[..., object]:
    """Returns a function that reads no config from a run's folder, because a stub has written none."""
    return lambda path, *overrides, **keys: (
        None if Path(path).is_dir() else load_config(path, *overrides, **keys)
    )


@pytest.mark.timeout(300)
def test_ctrl_c_during_the_training(tmp_path: Path) -> None:
    photographs(tmp_path / "photos", 20)
    process = start(WORDS, tmp_path)
    while not (tmp_path / "out/SmallNetwork/latest.json").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, output + errors
    assert "fit has not finished: the same command continues it" in output
    assert "Traceback" not in errors
    process = start(WORDS, tmp_path)
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, output + errors
    assert f"Resumed {tmp_path}/out/SmallNetwork/" in output
    progress = read_progress(tmp_path / "out", ())
    assert progress is not None
    assert progress.finished_steps == ["train begun", "train", "evaluate"]
    rows = [
        json.loads(line) for line in (tmp_path / "out/SmallNetwork/metrics.jsonl").read_text().splitlines()
    ]
    assert sorted(row["epoch"] for row in rows if row["kind"] == "eval") == [*range(1, EPOCHS + 1)]


@pytest.mark.timeout(300)
def test_sigterm_before_and_during_the_training(tmp_path: Path) -> None:
    """Before the training it ends the process in silence. In the training it saves, and gives one advice."""
    photographs(tmp_path / "photos", 20)
    process = start(WORDS, tmp_path)
    assert process.stdout is not None
    while "class_names.txt" not in process.stdout.readline() and process.poll() is None:
        pass
    process.terminate()
    output, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGTERM, output + errors
    assert "FatalError" not in output + errors
    process = start(WORDS, tmp_path)
    while not (tmp_path / "out/SmallNetwork/latest.json").exists() and process.poll() is None:
        time.sleep(0.05)
    process.terminate()
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 75, output + errors
    assert errors.startswith("stopped by SIGTERM and saved at epoch ")
    assert (output + errors).count("the same command continues it") == 1
    assert "Global.checkpoints=auto" not in output + errors
