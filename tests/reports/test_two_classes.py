"""The report of two classes: its figures against scikit-learn, and its page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn import metrics as sklearn_metrics

import ppxcls
from ppxcls.reports.record import read_record
from ppxcls.reports.run_files import Samples
from ppxcls.reports.two_classes import _corners, roc_content, two_classes
from tests.conftest import small_config, write_images

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
pytest.importorskip("scipy")


def drawn(seed: int, count: int = 200) -> tuple[Samples, np.ndarray]:
    """Random predictions for two classes, with many equal scores, and the scores of class 1."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < 0.2).astype(int)
    margins = rng.integers(-6, 7, count) * 4 + 3.0 * labels  # up to a score of 1 - 1e-12
    scores = np.stack([1 / (1 + np.exp(margins)), 1 / (1 + np.exp(-margins))], axis=1)
    order = np.argsort(-scores, axis=1)
    samples = Samples(
        files=[f"{i}.jpg" for i in range(count)],
        labels=labels,
        predicted_ids=order[:, 0],
        scores=scores.max(axis=1),
        label_scores=scores[np.arange(count), labels],
        top_ids=order.tolist(),
        runner_up_scores=scores.min(axis=1),
    )
    return samples, margins


def record_of(names: list[str], metrics: list[dict[str, Any]] | None = None) -> Any:
    blocks = [SimpleNamespace(arguments=keys) for keys in metrics or []]
    return SimpleNamespace(names=names, config=SimpleNamespace(Metric=SimpleNamespace(Eval=blocks)))


@pytest.mark.parametrize(("positive", "class_id"), [(None, 1), (0, 0), ("real", 0), ("fake", 1)])
def test_figures_are_scikit_learns(positive: int | str | None, class_id: int) -> None:
    samples, margins = drawn(class_id)
    record = record_of(["real", "fake"], [{}, {"positive": positive}])
    classes = two_classes(record, samples)
    assert classes is not None
    is_positive, scores = samples.labels == class_id, margins if class_id else -margins
    content = roc_content(classes)
    assert content["positive"] == ["real", "fake"][class_id]
    assert content["area"] == pytest.approx(sklearn_metrics.roc_auc_score(is_positive, scores), abs=1e-12)
    assert content["precision"] == pytest.approx(
        sklearn_metrics.average_precision_score(is_positive, scores), abs=1e-12
    )
    fpr, tpr, _ = sklearn_metrics.roc_curve(is_positive, scores)
    assert content["rates"] == [(limit, tpr[fpr <= limit][-1]) for limit in (0.001, 0.01, 0.1)]
    corners = _corners(classes.ranking)
    assert len(corners) < len(classes.ranking.hits) or len(corners) == len(fpr)
    np.testing.assert_allclose(
        np.interp(
            fpr, classes.ranking.false_alarms[corners] / (~is_positive).sum(), classes.ranking.hits[corners]
        ),
        np.interp(fpr, fpr, tpr * is_positive.sum()),
    )


def test_what_is_no_problem_of_two_classes() -> None:
    samples, _ = drawn(0)
    assert two_classes(record_of(["a", "b", "c"]), samples) is None
    assert two_classes(record_of(["a", "b"]), None) is None
    samples.labels[:] = 1
    assert two_classes(record_of(["a", "b"]), samples) is None
    samples.runner_up_scores = None
    assert two_classes(record_of(["a", "b"]), samples) is None


def test_the_page_of_two_classes(
    small: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_images(tmp_path / "data", 8, classes=2)
    write_images(data, 7, classes=2, seed=1, name="val")
    (data / "class_names.txt").write_text("0 real\n1 <b>fake\n")
    keys = yaml.safe_load(small().read_text())
    metrics = [{"AUC": {"positive": "<b>fake"}}, {"EER": {}}, {"TopkAcc": {"topk": [1]}}]
    changes = {"Metric.Eval": metrics, "Global.best_metric": "EER", "Global.epochs": 2}
    config = small_config(data, tmp_path / "output", **changes, Arch={"name": "SmallNetwork", "class_num": 2})
    config["Global"]["plugins"] = keys["Global"]["plugins"]
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump(config))
    trainer = ppxcls.build_trainer(ppxcls.load_config(file))
    trainer.fit()
    text = ppxcls.report(trainer.output_dir).read_text()
    results = ppxcls.evaluate(ppxcls.load_config(trainer.output_dir))
    assert json.loads((trainer.output_dir / "eval.json").read_text())["AUC"] == results["AUC"]
    record = read_record(trainer.output_dir)
    classes = two_classes(record, record.samples)
    assert classes is not None
    content = roc_content(classes)
    assert content["positive"] == "<b>fake"
    assert (content["area"], content["equal_error_rate"]) == (
        pytest.approx(results["AUC"], abs=1e-6),
        pytest.approx(results["EER"], abs=1e-6),
    )
    assert f"AUC {results['AUC']:.4f}" in text
    assert "&lt;b&gt;fake is the positive class: 42.9 % of the images" in text
    assert re.search(rf"<th>EER ✓</th><td class=\"n\">{results['EER']:.6g}</td>", text)
    assert "of 2, by EER" in text
    assert 'id="roc"' in text
    assert (trainer.output_dir / "roc.png").is_file()
