"""Figures of groups of images against scikit-learn's of the mean probabilities."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
import yaml
from sklearn import metrics as sklearn_metrics

import ppxcls
from ppxcls.build.data import build_loader
from ppxcls.build.groups import evaluation_groups
from ppxcls.config.checks import ConfigError
from ppxcls.train.group_figures import GroupFigures
from ppxcls.train.metrics import build_metrics
from tests.conftest import SMALL_NETWORK, small_config, write_images

CLASSES = 70  # more than are gathered at once


def means(logits: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Mean probabilities of each group, one after the other."""
    exponentials = np.exp(logits.astype(np.float64))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    return np.array([probabilities[groups == group].mean(axis=0) for group in range(groups.max() + 1)])


@pytest.mark.parametrize("class_num", [2, CLASSES])
def test_the_scores_of_a_group_are_the_means_of_its_images(class_num: int) -> None:
    rng = np.random.default_rng(class_num)
    groups = rng.permutation(np.r_[np.arange(140), rng.integers(0, 140, 260)])
    labels = rng.permutation(np.arange(140) % class_num)
    logits = rng.normal(0, 2, (400, class_num)).astype(np.float32)
    logits[np.arange(400), labels[groups]] += 0.5
    names = ["TopkAcc", "AUC", *(["EER"] if class_num == 2 else [])]
    figures = GroupFigures(groups, labels, build_metrics([{name: {}} for name in names], class_num=class_num))
    order = rng.permutation(400)
    for _ in range(2):  # the second evaluation begins anew
        for batch in np.split(order, [150, 390]):
            figures.add(batch, paddle.to_tensor(logits[batch]))
        results = figures.results()
    scores = means(logits, groups)
    if class_num == 2:
        area = sklearn_metrics.roc_auc_score(labels, scores[:, 1])
        fpr, tpr, _ = sklearn_metrics.roc_curve(labels, scores[:, 1])
        assert results["group_EER"] == pytest.approx(np.interp(1, fpr + tpr, fpr), abs=1e-12)
    else:
        area = sklearn_metrics.roc_auc_score(labels, scores, multi_class="ovr")
    assert results["group_AUC"] == pytest.approx(area, abs=1e-12)
    assert results["group_top1"] == pytest.approx((scores.argmax(1) == labels).mean(), abs=1e-12)
    assert results["num_groups"] == 140


def test_a_group_without_readable_images_and_an_interruption() -> None:
    logits = np.array([[0, 1], [2, 0], [0, 3]], np.float32)
    figures = GroupFigures(
        np.array([0, 1, 0, 2]), np.array([1, 0, 0]), build_metrics([{"TopkAcc": {}}], class_num=2)
    )
    figures.add(np.array([3]), paddle.to_tensor(logits[:1]))
    figures.reset()
    figures.add(np.array([0, 1, 2]), paddle.to_tensor(logits))
    assert figures.results() == {"group_top1": 1.0, "num_groups": 2}
    assert repr(figures.results()) == "{'group_top1': nan, 'num_groups': 0}"


def test_an_evaluation_with_groups(tmp_path: Path, new_warnings: Callable[[], list[str]]) -> None:
    """Two videos of each class, one with two labels, and an image without a group."""
    data = write_images(tmp_path / "data", 12)
    videos = {i: f"{i % 3}_{i // 6}" for i in range(11)}
    videos[0] = "1_0"
    rows = [["image", "group"], *([f"train/{i:04d}.png", video] for i, video in videos.items())]
    with open(data / "groups.csv", "w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    keys = {
        "Arch": {"name": "SmallNetwork"},
        "Global.plugins": [SMALL_NETWORK],
        "DataLoader.Eval.dataset.cls_label_path": str(data / "train_list.txt"),
        "Metric.Eval": [{"TopkAcc": {}}, {"AUC": {}}],
        "Global.best_metric": "group_AUC",
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(small_config(data, tmp_path / "output", **keys)))
    trainer = ppxcls.build_trainer(ppxcls.load_config(tmp_path / "config.yaml"))
    trainer.fit()
    warnings = new_warnings()
    assert sum("1 groups have images with different labels" in line and "1_0" in line for line in warnings)
    assert sum("1 images have no group in groups.csv" in line for line in warnings)
    results = json.loads((trainer.output_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert results["num_groups"] == 5
    table = list(csv.DictReader((trainer.output_dir / "predictions.csv").read_text().splitlines()))
    scores: dict[str, list[np.ndarray]] = {}
    for i, row in enumerate(table):
        pairs = zip(row["top_ids"].split(), row["top_scores"].split(), strict=True)
        values = {int(class_id): float(score) for class_id, score in pairs}
        scores.setdefault(videos.get(i, ""), []).append(np.array([values[label] for label in range(3)]))
    del scores["1_0"], scores[""]
    labels = np.array([int(video[0]) for video in scores])
    mean_scores = np.array([np.mean(rows, axis=0) for rows in scores.values()])
    expected = sklearn_metrics.roc_auc_score(
        labels, mean_scores / mean_scores.sum(1)[:, None], multi_class="ovr"
    )
    assert results["group_AUC"] == pytest.approx(expected, abs=1e-6)
    ppxcls.evaluate(ppxcls.load_config(trainer.output_dir))
    evaluation = json.loads((trainer.output_dir / "eval.json").read_text())
    assert evaluation["group_AUC"] == pytest.approx(results["group_AUC"], abs=1e-6)
    assert evaluation["group_AUC"] != evaluation["AUC"]
    best = json.loads((trainer.output_dir / "best_model.json").read_text())["progress"]["best"]
    assert (best["metric"], best["value"]) == ("group_AUC", results["group_AUC"])
    pytest.importorskip("jinja2")
    text = ppxcls.report(trainer.output_dir).read_text()
    assert "<th>group_AUC ✓</th>" in text
    assert "Names with group_ mean groups of images" in text


def test_processes_compare_their_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node without ``groups.csv``, or with another one, would leave the others alone in their sums."""
    digests: list[str] = []
    monkeypatch.setattr(
        "ppxcls.build.groups.distributed.require_same",
        lambda values: digests.append(values["groups of the evaluation list"]),
    )
    config = ppxcls.load_config(small_config(write_images(tmp_path, 4), tmp_path))
    assert config.DataLoader
    assert config.DataLoader.Eval
    config.DataLoader.Eval.dataset["cls_label_path"] = str(tmp_path / "train_list.txt")
    dataset = build_loader(config, "Eval", None).dataset
    for first_group in ("", "a", "b"):
        rows = [f"train/000{i}.png,{group}" for i, group in enumerate([first_group, "c", "b", first_group])]
        if first_group:
            (tmp_path / "groups.csv").write_text("\n".join(["image,group", *rows]))
        groups = evaluation_groups(config, dataset)
        expected = GroupFigures(*groups, []).digest if groups else ""
        assert digests[-1] == expected
    assert len(set(digests)) == 3
    assert digests[0] == ""


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"Global.best_metric": "group_AUC"},
            "Global.best_metric: unknown figure of the evaluation 'group_AUC'",
        ),
        ({"Global.best_metric": "group_loss"}, "Global.best_metric: unknown figure of the evaluation"),
        (
            {"Metric.Eval": [{"AUC": {}}, {"F1": {"figure": "group_AUC"}}]},
            "Metric.Eval.1.F1: the results have a figure 'group_AUC' already",
        ),
        (
            {"Global.best_metric": "group_top1"},
            "Global.best_metric: expected a figure of images, received 'group_top1': no groups.csv",
        ),
    ],
)
def test_figures_of_groups_that_are_refused(
    keys: dict[str, Any], message: str, small: Callable[..., Path]
) -> None:
    with pytest.raises(ConfigError, match=message):
        ppxcls.build_trainer(ppxcls.load_config(small(**keys)))
