"""``DataLoader.Test``: images that neither train nor choose, evaluated on request and counted."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import ppxcls
from tests.conftest import run_tool, write_images


@pytest.fixture
def run(small: Callable[..., Path], tmp_path: Path) -> Path:
    """A run whose config has a third list, of other images in another folder."""
    write_images(tmp_path / "others", 9, seed=2, name="test")
    keys = {
        "DataLoader.Test": {
            "cls_label_path": str(tmp_path / "others/test_list.txt"),
            "image_root": str(tmp_path / "others"),
        }
    }
    trainer = ppxcls.build_trainer(ppxcls.load_config(small(**keys)))
    trainer.fit()
    return trainer.output_dir


def result_of(run: Path) -> dict[str, object]:
    values: dict[str, object] = json.loads((run / "test.json").read_text())
    return values


def test_the_images_that_judge(run: Path, tmp_path: Path) -> None:
    """The result is that of the same list as an evaluation, in files of its own."""
    files = {name: (run / name).read_bytes() for name in ("predictions.csv", "metrics.jsonl", "config.yaml")}
    assert not (run / "test.json").exists(), "training does not use them"
    results = ppxcls.evaluate(ppxcls.load_config(run), test=True)
    assert results["num_samples"] == 9
    values = result_of(run)
    assert values["uses"] == 1
    assert values["data"] == str(tmp_path / "others/test_list.txt")
    assert values["checkpoint"] == hashlib.sha256((run / "best_model.json").read_bytes()).hexdigest()
    rows = list(csv.DictReader((run / "test_predictions.csv").read_text().splitlines()))
    assert {Path(row["file"]).parent for row in rows} == {tmp_path / "others/test"}
    hits = sum(row["label"] == row["predicted"] for row in rows)
    assert values["top1"] == pytest.approx(hits / 9)
    as_evaluation = ppxcls.evaluate(
        ppxcls.load_config(
            run,
            [
                f"DataLoader.Eval.dataset.image_root={tmp_path}/others",
                f"DataLoader.Eval.dataset.cls_label_path={tmp_path}/others/test_list.txt",
            ],
        )
    )
    assert as_evaluation == results
    assert (run / "eval_other.json").exists(), "an evaluation on another list is not the run's own"
    assert files == {name: (run / name).read_bytes() for name in files}


def test_the_interval_is_wilsons(run: Path) -> None:
    statsmodels_free = pytest.importorskip("scipy.stats")
    ppxcls.evaluate(ppxcls.load_config(run), test=True)
    values = result_of(run)
    hits = round(9 * float(str(values["top1"])))
    interval = statsmodels_free.binomtest(hits, 9).proportion_ci(method="wilson")
    assert values["top1_interval"] == pytest.approx([interval.low, interval.high], abs=1e-9)


def test_each_use_is_counted(run: Path, small: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    config = ppxcls.load_config(run)
    ppxcls.evaluate(config, test=True)
    assert "have now judged" not in caplog.text
    ppxcls.evaluate(config, test=True)
    assert result_of(run)["uses"] == 2
    (run / "earlier_1").mkdir()  # where a new training puts the results of an earlier one
    shutil.move(run / "test.json", run / "earlier_1/test.json")
    ppxcls.evaluate(config, test=True)
    assert result_of(run)["uses"] == 3
    values = result_of(run)
    for damage in (
        "[",
        '{"uses": true, "list": "LIST"}',
        '{"uses": -5, "list": "LIST"}',
        '{"uses": 9, "list": ""}',
    ):
        (run / "test.json").write_text(damage.replace("LIST", str(values["list"])))
        ppxcls.evaluate(config, test=True)
        assert result_of(run)["uses"] == 3, "the earlier file counts, and a damaged one is no use"


@pytest.mark.parametrize(
    "override",
    [
        "DataLoader.Test.cls_label_path=val_list.txt",
        "DataLoader.Eval.dataset.transform_ops.1.ResizeImage.resize_short=80",
    ],
)
def test_other_data_are_not_the_runs_own_result(
    override: str, run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images)
    overrides = [override, f"DataLoader.Test.image_root={images}"] if "cls_label" in override else [override]
    ppxcls.evaluate(ppxcls.load_config(run, overrides), test=True)
    assert not (run / "test.json").exists()
    assert json.loads((run / "eval_other.json").read_text())["num_samples"] > 0


def test_the_command(run: Path) -> None:
    for number in (1, 2):
        result = run_tool("eval", "-c", run, "--test")
        assert result.returncode == 0, result.stderr
        assert f"written to {run}/test.json" in result.stdout
        assert ("these images have now judged 2 times" in result.stdout + result.stderr) is (number == 2)


def test_a_run_without_such_images(small: Callable[..., Path]) -> None:
    with pytest.raises(ppxcls.ConfigError, match=r"DataLoader.Test: the section is missing"):
        ppxcls.evaluate(ppxcls.load_config(small()), test=True)


def test_the_root_is_that_of_the_evaluation(small: Callable[..., Path], images: Path) -> None:
    from ppxcls.build.judging import judging_config

    config = judging_config(
        ppxcls.load_config(small(**{"DataLoader.Test": {"cls_label_path": str(images / "train_list.txt")}}))
    )
    assert config.DataLoader
    assert config.DataLoader.Eval
    dataset = config.DataLoader.Eval.dataset
    assert dataset.image_root == str(images)
    assert dataset.cls_label_path == str(images / "train_list.txt")


def test_a_moved_run_finds_the_list_again(run: Path, tmp_path: Path) -> None:
    """The list and the images have moved with the run, like those of the evaluation."""
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "output", tmp_path / "elsewhere/output")
    shutil.move(tmp_path / "others", tmp_path / "elsewhere/others")
    moved_run = tmp_path / "elsewhere/output" / run.name
    config = ppxcls.load_config(moved_run)
    assert config.DataLoader
    assert config.DataLoader.Test
    assert config.DataLoader.Test.cls_label_path == str(tmp_path / "elsewhere/others/test_list.txt")
    ppxcls.evaluate(config, test=True)
    assert result_of(moved_run)["uses"] == 1


@pytest.mark.parametrize(
    "damage",
    [
        {},
        {"top1": 2},
        {"top1": None},
        {"num_samples": 0},
        {"num_samples": "9"},
        {"checkpoint": None},
        {"checkpoint": "0" * 64},
    ],
)
def test_tools_print_the_judged_accuracy_of_these_weights(damage: dict[str, object], run: Path) -> None:
    ppxcls.evaluate(ppxcls.load_config(run), test=True)
    values = result_of(run)
    (run / "test.json").write_text(json.dumps({**values, **damage}))
    best = json.loads((run / "best_model.json").read_text())["progress"]["best"]
    description = ppxcls.load(run).description
    if damage:
        assert f"(epoch 1, top1 {best['value']:.4g})" in description
    else:
        assert f"(epoch 1, top1 {values['top1']:.4g} on 9 images that judge)" in description


def test_check_finds_images_that_train_and_judge(run: Path, images: Path, tmp_path: Path) -> None:
    shutil.copy(images / "train/0000.png", tmp_path / "others/test/0003.png")
    result = run_tool("check", "-c", run)
    assert result.returncode == 1
    assert "in training and evaluation: 1" in result.stdout
    assert "train_list.txt:1 train/0000.png = " in result.stdout
    assert "test_list.txt:4 test/0003.png" in result.stdout
