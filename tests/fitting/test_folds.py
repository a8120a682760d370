"""``fit --folds``: each photograph is predicted by a fold that was not trained on it."""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ppxcls
from ppxcls.checkpoints.files import read_manifest
from ppxcls.cli.verbs import VERBS
from ppxcls.data.errors import DataError
from ppxcls.fitting import all_layers, classifiers, cross_validation, stage_results
from ppxcls.fitting.plan import AllLayersChoice, Counts, Speeds, fold_seconds
from ppxcls.fitting.training import EpochLimits
from ppxcls.reports.fold_file import read_folds
from tests.fitting import networks
from tests.fitting.small_fits import OPTIONS, only_linear, photographs, records
from tests.fitting.test_kills import killed_at

pytest.importorskip("scipy")
pytest.importorskip("sklearn")

FOLDS = 3


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines()


def predicted_files(file: Path) -> list[str]:
    """Paths below the folder of the photographs."""
    return [row["file"].split("photos/")[1] for row in csv.DictReader(lines(file))]


def paths(file: Path) -> set[str]:
    return {line.rsplit(" ", 1)[0] for line in lines(file)}


def fold_folders(output: str = "out") -> list[Path]:
    return [Path(output) / f"folds/fold_{number}" for number in range(1, FOLDS + 1)]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns a list of the sizes whose features are computed."""
    sizes: list[int] = []
    original = classifiers.compute_features

    def computed(*arguments: Any, **keys: Any) -> Any:
        sizes.append(keys["size"])
        return original(*arguments, **keys)

    monkeypatch.setattr(classifiers, "compute_features", computed)
    return sizes


def test_all_photographs_are_predicted_by_folds_that_had_not_seen_them(
    weights: str, speeds: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    only_linear(monkeypatch)
    sizes, label_counts = counted(monkeypatch), []
    original = classifiers.chosen_problem

    def problem(features: np.ndarray, labels: np.ndarray, **keys: Any) -> Any:
        label_counts.append(len(labels))
        return original(features, labels, **keys)

    monkeypatch.setattr(classifiers, "chosen_problem", problem)
    run = ppxcls.fit("photos", weights, **OPTIONS, folds=FOLDS, group=r"(\w+/[0-9])")
    assert sizes == [networks.SIZE], "the features are computed once for all"
    known_counts = [len(lines(fold / "lists/train_list.txt")) for fold in fold_folders()]
    assert label_counts == [30, *known_counts], "a fold knows no label that it predicts"
    all_files = {str(path.relative_to("photos")) for path in Path("photos").rglob("*.png")}
    files = predicted_files(run / "fold_predictions.csv")
    assert len(files) == len(all_files)
    assert set(files) == all_files
    start = 0
    for fold in fold_folders():
        train, val = paths(fold / "lists/train_list.txt"), paths(fold / "lists/val_list.txt")
        assert train | val == all_files
        assert not {path[:5] for path in train} & {path[:5] for path in val}, "groups stay together"
        assert set(files[start : start + len(val)]) == val
        start += len(val)
    content = read_folds(run / "folds.json")
    assert content
    accuracies = []
    for fold, figures in zip(fold_folders(), content.folds, strict=True):
        evaluation = json.loads((fold / networks.NAME / "eval.json").read_text())
        assert figures == {key: evaluation[key] for key in figures}
        assert {"top1", "loss", "num_samples"} <= set(figures)
        accuracies.append(evaluation["top1"])
    mean = content.means[0]
    assert (mean.name, mean.mean) == ("top1", pytest.approx(np.mean(accuracies)))
    assert mean.spread == pytest.approx(np.std(accuracies, ddof=1))
    assert any("group_top1" in fold for fold in content.folds), "ant/1 has three images"
    assert not list(Path("out/stages").glob("features*")), "they are removed in the end"
    assert not Path("out/lists/test_list.txt").exists(), "the folds judge"
    assert ppxcls.evaluate(ppxcls.load_config(run))["top1"] > 0.7


KILLS: list[tuple[Any, str, int]] = [
    (cross_validation, "write_text", 1),
    (classifiers, "compute_features", 1),
    (stage_results, "write_result", 1),
    (classifiers, "chosen_problem", 2),
    (stage_results, "write_result", 2),
    (cross_validation, "write_bytes", 1),
]


def test_a_kill_at_any_place_changes_nothing(
    weights: str, speeds: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    only_linear(monkeypatch)
    options = {**OPTIONS, "folds": 2}
    whole_run = ppxcls.fit("photos", weights, **options)
    options["output"] = "killed"
    for owner, name, number in KILLS:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, killed_at(getattr(owner, name), number, is_after=True))
            with pytest.raises(KeyboardInterrupt):
                ppxcls.fit("photos", weights, **options)
    run = ppxcls.fit("photos", weights, **options)
    for name in ("folds.json", "fold_predictions.csv", "predictions.csv"):
        assert (run / name).read_bytes() == (whole_run / name).read_bytes()
    with pytest.raises(DataError, match="--folds was 2, and is now not given"):
        ppxcls.fit("photos", weights, **{**OPTIONS, "output": "killed"}, test_share=0.0)


@pytest.mark.parametrize("is_taken", [True, False])
def test_folds_are_trained_like_the_result_of_all_photographs(
    is_taken: bool, weights: str, speeds: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fit of all photographs alone chooses the size and the epochs, and takes the stage or not."""
    monkeypatch.setattr("ppxcls.fitting.stage_results.is_better_score", lambda *_: is_taken)
    monkeypatch.setattr("ppxcls.fitting.result._deciding_figure", lambda *_: "top1")  # as if AUC were NaN
    choices = iter([AllLayersChoice(24, 1)])
    monkeypatch.setattr(all_layers, "all_layers_choice", lambda *_, **__: next(choices))
    again_shares: list[float] = []

    def limits(**keys: Any) -> EpochLimits:
        again_shares.append(keys["again_share"])
        return EpochLimits(**keys)

    monkeypatch.setattr(all_layers, "EpochLimits", limits)
    sizes = counted(monkeypatch)
    overrides = ["Global.epochs=1", "Metric.Eval=[{AUC: {}}, {TopkAcc: {topk: [1]}}]"]
    run = ppxcls.fit("photos", weights, **OPTIONS, folds=2, overrides=overrides)
    assert sizes == [networks.SIZE, 24], "once for each size"
    assert read_manifest(run / "best_model")["trained_on_eval_list"]
    for number in (1, 2):
        fold = Path(f"out/folds/fold_{number}") / networks.NAME
        stages = [(stage.size, stage.is_chosen) for stage in records(fold)]
        assert stages == [(networks.SIZE, True), *([(24, True)] if is_taken else [])]
        assert not read_manifest(fold / "best_model")["trained_on_eval_list"]
        assert all("too little time" not in stage.choice for stage in records(fold))
    assert again_shares[0] > 1
    assert again_shares[1:] == [0, 0] * is_taken, "a fold is not trained again"
    content = read_folds(run / "folds.json")
    assert content
    assert content.figure == "AUC"
    assert [fold["num_samples"] for fold in content.folds] == [15, 15]


@pytest.mark.parametrize(
    "override",
    [
        "Global.output_dir=x",
        " Global.checkpoints =auto",
        "Global.pretrained_model=x",
        "DataLoader.Train.dataset.cls_label_path=x",
        "DataLoader.Eval.dataset.pack=x",
        "DataLoader.Train.dataset={}",
    ],
)
def test_folds_share_no_place_lists_and_start(override: str, tmp_path: Path) -> None:
    photographs(tmp_path / "photos", {"ant": 1})
    key = override.partition("=")[0].strip()
    with pytest.raises(DataError, match=f"^with --folds, expected no override of {key}, because"):
        ppxcls.fit(tmp_path / "photos", "none", output=tmp_path / "out", folds=2, overrides=[override])
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("_registered_network")
def test_folds_from_scratch_and_their_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jinja2")
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "photos", {"ant": 8, "bee": 6})
    rows = [
        f"{name}/{i}.png,{name},{name}{i // 2}"
        for name, count in (("ant", 8), ("bee", 6))
        for i in range(count)
    ]
    Path("labels.csv").write_text("\n".join(["image,label,patient", *rows]))
    table: dict[str, Any] = {"group": "patient", "image_root": "photos", "overrides": ["Global.epochs=1"]}
    run = ppxcls.fit("labels.csv", "none", **OPTIONS, folds=2, **table)
    content = read_folds(run / "folds.json")
    assert content
    assert len(predicted_files(run / "fold_predictions.csv")) == 14
    assert sum(fold["num_groups"] or 0 for fold in content.folds) == 7, "each patient is in one fold"
    text = (run / "report.html").read_text()
    assert 'id="folds"' in text
    assert "<tr><th>group_top1</th>" in text
    assert "These are the predictions of 2 folds." in text
    assert "together they are all 14 images" in text
    assert f"<b>{content.means[0].mean:.4f} ± {content.means[0].spread:.4f}</b>" in text
    from ppxcls.fitting.judging import sentence_of

    sentence = sentence_of(run)
    assert sentence.startswith("On 14 photographs, each by a fold that was not trained on it, ")
    assert f"Mean of 2 folds: {content.means[0]}." in sentence


def test_the_command_takes_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def fit(*_: Any, **keys: Any) -> None:
        calls.append(keys)
        raise KeyboardInterrupt

    monkeypatch.setattr(ppxcls, "fit", fit)
    for words, folds, test_share in ((["--folds", "5"], 5, None), (["--test-share", "0.1"], 0, 0.1)):
        monkeypatch.setattr("sys.argv", ["fit", "photos", *words])
        with pytest.raises(KeyboardInterrupt):
            VERBS["fit"].function(argparse.ArgumentParser())
        assert (calls[-1]["folds"], calls[-1]["test_share"]) == (folds, test_share)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"folds": 1}, "expected 2 folds or more, received 1"),
        ({"folds": 40}, "expected from 2 to 12 folds, because of 30 images"),
        ({"folds": 9, "group": r"/([0-2])"}, "finds no group in "),
    ],
)
def test_folds_that_are_refused_leave_nothing(
    keys: dict[str, Any], message: str, weights: str, speeds: Callable[..., None]
) -> None:
    with pytest.raises(DataError, match=message):
        ppxcls.fit("photos", weights, **OPTIONS, **keys)
    assert not Path("out").exists()


def test_the_time_is_divided_equally_and_features_are_paid_once() -> None:
    counts = Counts(train=80, choose=20, judge=0, classes=2)
    speeds = Speeds(size=200, feature=0.5, step=1.0)
    seconds = fold_seconds(speeds, counts, size=100, copies=2, seconds=600.0, folds=4)
    assert seconds == pytest.approx((600 - 2 * 100 * 0.5 / 4) / 5)
    assert fold_seconds(speeds, counts, size=200, copies=2, seconds=60.0, folds=4) == 0


@pytest.mark.parametrize(
    "text",
    [
        "[",
        "[]",
        '{"format": 2, "figure": "a", "folds": [{}, {}]}',
        '{"format": 1, "figure": "a\\n", "folds": [{}, {}]}',
        '{"format": 1, "figure": "a", "folds": [{}]}',
        '{"format": 1, "figure": "a", "folds": [{"a": "1"}, {}]}',
        '{"format": 1, "figure": "a", "folds": [{"a": 1e300}, {}]}',
    ],
)
def test_hostile_figures_of_folds_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "folds.json").write_text(text)
    with pytest.raises(DataError, match="folds.json: "):
        read_folds(tmp_path / "folds.json")


def test_a_figure_that_a_fold_lacks_is_left_out_of_its_mean(tmp_path: Path) -> None:
    content = {"format": 1, "figure": "AUC", "folds": [{"AUC": 0.5}, {"AUC": None}, {"num_samples": 3}]}
    (tmp_path / "folds.json").write_text(json.dumps(content))
    folds = read_folds(tmp_path / "folds.json")
    assert folds
    (mean,) = folds.means
    assert (mean.values, mean.mean, mean.spread) == ([0.5, None, None], 0.5, None)
