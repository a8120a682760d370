"""Figures of evaluations against scikit-learn, and the figure that chooses ``best_model``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
import yaml
from sklearn import metrics as sklearn_metrics

import ppxcls
from ppxcls.checkpoints.files import read_state
from ppxcls.train.group_figures import GroupFigures
from ppxcls.train.metrics import build_metrics
from tests.conftest import ROOT, SMALL_NETWORK, run_tool


def sample(class_num: int, seed: int = 0, count: int = 150) -> tuple[np.ndarray, np.ndarray]:
    """Logits float32 of which each row is there about five times, so that there are many ties, and labels."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(0, 2, (count // 5, class_num)).astype(np.float32)
    return rows[rng.integers(0, len(rows), count)], rng.integers(0, class_num, count)


def figures_of(
    metric: str,
    logits: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    names: Sequence[str] = (),
    **keys: Any,
) -> dict[str, float]:
    """Results of a metric whose batches have different sizes. A second evaluation gives them again."""
    (instance,) = build_metrics([{metric: keys}], class_num=logits.shape[1], class_names=names)
    results = []
    for cuts in ([0, len(labels)], [0, len(labels) // 3, len(labels)]):
        for part in (slice(a, b) for a, b in zip(cuts, cuts[1:], strict=False) if a < b):
            batch = paddle.to_tensor(logits[part]), paddle.to_tensor(np.asarray(labels)[part])
            assert instance(*batch) == {}
        results.append(instance.results())
    assert repr(results[0]) == repr(results[1])
    assert instance.figures[0] in results[0]
    return results[0]


def probabilities(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("average", ["macro", "weighted"])
@pytest.mark.parametrize("class_num", [3, 70])
def test_means_over_classes_are_scikit_learns(class_num: int, average: str) -> None:
    logits, labels = sample(class_num, count=350)
    labels[:class_num] = np.arange(class_num)
    scores = probabilities(logits)
    area = sklearn_metrics.roc_auc_score(labels, scores, multi_class="ovr", average=average)
    assert figures_of("AUC", logits, labels, average=average) == {"AUC": pytest.approx(area, abs=1e-12)}
    one_hot = np.eye(class_num)[labels]
    precision = sklearn_metrics.average_precision_score(one_hot, scores, average=average)
    assert figures_of("AveragePrecision", logits, labels, average=average) == {
        "AveragePrecision": pytest.approx(precision, abs=1e-12)
    }


@pytest.mark.parametrize(("positive", "class_id"), [(None, 1), (0, 0), ("real", 0), ("fake", 1)])
def test_one_of_two_classes(positive: int | str | None, class_id: int) -> None:
    logits, labels = sample(2)
    scores, is_positive = probabilities(logits)[:, class_id], labels == class_id
    expected = {
        "AUC": sklearn_metrics.roc_auc_score(is_positive, scores),
        "AveragePrecision": sklearn_metrics.average_precision_score(is_positive, scores),
    }
    fpr, tpr, _ = sklearn_metrics.roc_curve(is_positive, scores)
    expected["EER"] = np.interp(1, fpr + tpr, fpr)
    expected["TprAtFpr"] = tpr[fpr <= 0.2][-1]
    for name, value in expected.items():
        keys = {"max_fpr": 0.2} if name == "TprAtFpr" else {}
        result = figures_of(name, logits, labels, ["real", "fake"], positive=positive, **keys)
        assert result == {name: pytest.approx(value, abs=1e-12)}


def test_one_class_against_all_others() -> None:
    logits, labels = sample(4)
    expected = sklearn_metrics.roc_auc_score(labels == 2, probabilities(logits)[:, 2])
    assert figures_of("AUC", logits, labels, positive=2)["AUC"] == pytest.approx(expected, abs=1e-12)


def test_confident_scores_stay_different() -> None:
    """As float32, all probabilities of the positive class are 1, so the area would be 0.5."""
    logits = np.array([[0, 20], [0, 21], [0, 22]], np.float32)
    assert figures_of("AUC", logits, [0, 1, 1]) == {"AUC": 1.0}
    logits = np.pad(logits, ((0, 0), (0, 1)))
    assert figures_of("AUC", logits, [0, 1, 1], positive=1) == {"AUC": 1.0}


@pytest.mark.parametrize("average", ["macro", "weighted", "micro", "binary"])
def test_f1_is_scikit_learns(average: str) -> None:
    logits, labels = sample(2 if average == "binary" else 5)
    predicted_ids = logits.argmax(axis=1)
    keys = {"positive": 0} if average == "binary" else {}
    expected = sklearn_metrics.f1_score(
        labels, predicted_ids, average=average, **({"pos_label": 0} if keys else {})
    )
    assert figures_of("F1", logits, labels, average=average, **keys)["F1"] == pytest.approx(
        expected, abs=1e-12
    )


@pytest.mark.parametrize("weights", [None, "linear", "quadratic"])
def test_kappa_is_scikit_learns(weights: str | None) -> None:
    logits, labels = sample(6)
    labels[labels == 3] = 5  # the distances are those of the ids, also if a class is missing
    expected = sklearn_metrics.cohen_kappa_score(
        labels, logits.argmax(axis=1), labels=range(6), weights=weights
    )
    assert figures_of("CohenKappa", logits, labels, weights=weights)["CohenKappa"] == pytest.approx(
        expected, abs=1e-12
    )


@pytest.mark.parametrize("metric", ["AUC", "AveragePrecision", "F1"])
def test_a_class_without_samples_is_left_out_of_the_mean_and_named(
    metric: str, new_warnings: Callable[[], list[str]]
) -> None:
    logits, labels = sample(4)
    labels[labels == 2] = 3
    scores, one_hot = probabilities(logits), np.eye(4)[labels]
    means = {
        "AUC": np.mean([sklearn_metrics.roc_auc_score(one_hot[:, i], scores[:, i]) for i in (0, 1, 3)]),
        "AveragePrecision": sklearn_metrics.average_precision_score(
            one_hot[:, [0, 1, 3]], scores[:, [0, 1, 3]]
        ),
        "F1": sklearn_metrics.f1_score(labels, logits.argmax(axis=1), labels=[0, 1, 3], average="macro"),
    }
    result = figures_of(metric, logits, labels, ["a", "b", "c", "d"])
    assert result == {metric: pytest.approx(means[metric], abs=1e-12), f"{metric}_classes": 3}
    (warning,) = new_warnings()  # two evaluations, one line
    assert warning == (
        f"{metric} is the mean over 3 of 4 classes; the evaluation has no samples to compare for 'c'"
    )


@pytest.mark.parametrize(
    ("metric", "labels", "message"),
    [
        ("AUC", [0], "AUC is not defined: the evaluation has no sample of 'fake'"),
        ("EER", [1, 1], "EER is not defined: the evaluation has only samples of 'fake'"),
        ("TprAtFpr", [0, 0], "TprAtFpr is not defined: the evaluation has no sample of 'fake'"),
        (
            "AveragePrecision",
            [0, 0],
            "AveragePrecision is not defined: the evaluation has no sample of 'fake'",
        ),
    ],
)
def test_a_figure_that_is_not_defined_is_said_to_be_so(
    metric: str, labels: list[int], message: str, new_warnings: Callable[[], list[str]]
) -> None:
    result = figures_of(metric, np.zeros((len(labels), 2), np.float32), labels, ["real", "fake"])
    assert math.isnan(result[metric])
    assert new_warnings() == [message]


def test_figures_of_a_single_image(new_warnings: Callable[[], list[str]]) -> None:
    logits = np.array([[0, 3, 1]], np.float32)
    assert figures_of("F1", logits, [1]) == {"F1": 1.0, "F1_classes": 1}
    assert math.isnan(figures_of("AUC", logits, [1])["AUC"])
    assert math.isnan(figures_of("CohenKappa", logits, [1])["CohenKappa"])
    assert "CohenKappa is not defined: all labels and predictions are of one class" in new_warnings()


@pytest.mark.parametrize("names", [["cat", "cat", "dog"], ["cafe\u0301", "cow", "dog"]])
def test_a_class_has_one_name_in_any_form_of_unicode(names: list[str]) -> None:
    if names[0] == names[1]:
        with pytest.raises(
            ppxcls.ConfigError, match="positive: 2 classes have the name 'cat'; write the id of"
        ):
            build_metrics([{"AUC": {"positive": "cat"}}], class_num=3, class_names=names)
    else:
        logits, labels = sample(3)
        by_name = figures_of("AUC", logits, labels, names, positive="caf\u00e9")
        assert by_name == figures_of("AUC", logits, labels, names, positive=0)


@pytest.mark.parametrize("metric", ["AUC", "AveragePrecision", "F1", "CohenKappa", "ClassReport"])
def test_a_reset_forgets_what_an_interruption_left(metric: str) -> None:
    logits, labels = sample(3)
    (instance,) = build_metrics([{metric: {}}], class_num=3)
    instance(paddle.to_tensor(logits[:50]), paddle.to_tensor(labels[:50]))
    instance.reset()
    instance(paddle.to_tensor(logits), paddle.to_tensor(labels))
    assert instance.results() == figures_of(metric, logits, labels)


def test_an_evaluation_after_an_interrupted_one_counts_each_image_once(small: Callable[..., Path]) -> None:
    trainer = ppxcls.build_trainer(ppxcls.load_config(small(**{"Metric.Eval": [{"F1": {}}]})))
    evaluation, network = trainer.evaluation, trainer.learner.network
    batches = list(evaluation.loader.epoch())

    def interrupted() -> Iterator[Any]:
        yield from batches
        raise KeyboardInterrupt

    expected = evaluation(network, batches)
    with pytest.raises(KeyboardInterrupt):
        evaluation(network, interrupted())
    part = batches[-1:]  # with the others of the interrupted evaluation, the figures would be those of all
    results = evaluation(network, part)
    assert len(evaluation.predictions.samples) == results["num_samples"] < expected["num_samples"]
    labels, (predicted_ids,) = part[0].labels, evaluation.predictions.classes[:, :1].T
    score = sklearn_metrics.f1_score(labels, predicted_ids, labels=np.unique(labels), average="macro")
    assert results["F1"] == pytest.approx(score, abs=1e-12)
    trainer.run.folder.release()


@pytest.mark.parametrize("class_num", [2, 3])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_outputs_that_are_not_finite_give_no_figure(value: float, class_num: int) -> None:
    logits, labels = sample(class_num)
    logits[3, 1] = value
    assert math.isnan(figures_of("AUC", logits, labels, positive=1)["AUC"])


# Seven samples on two processes, of which the second has two or none. Rank 0 writes what it computes.
TWO_PROCESSES = """
import json, sys
sys.path.insert(0, {root!r})
import ppxcls
ppxcls.build_trainer
import numpy as np, paddle, paddle.distributed as dist
from ppxcls.system import distributed
from ppxcls.train.metrics import build_metrics
from tests.train.test_figures import SPECS, group_figures, sample

paddle.set_device("cpu")
if dist.get_world_size() > 1:
    dist.init_parallel_env()
results = []
for class_num, specs in SPECS.items():
    for share in (5, 7):
        logits, labels = sample(class_num, count=7)
        part = [slice(0, share), slice(share, 7)][dist.get_rank()]
        metrics = build_metrics(specs, class_num=class_num)
        for metric in metrics if len(labels[part]) else []:
            metric(paddle.to_tensor(logits[part]), paddle.to_tensor(labels[part]))
        results.append({{name: value for metric in metrics for name, value in metric.results().items()}})
        results[-1] |= group_figures(specs, logits, range(7)[part])
if dist.get_rank() == 0:
    open(sys.argv[1], "w").write(json.dumps(results))
"""
_FOR_ALL = [
    {"AUC": {}},
    {"AveragePrecision": {"average": "weighted"}},
    {"F1": {}},
    {"CohenKappa": {"weights": "linear"}},
]
SPECS = {2: [*_FOR_ALL, {"EER": {}}, {"TprAtFpr": {"max_fpr": 0.5}}, {"ClassReport": {}}], 3: _FOR_ALL}


def group_figures(
    specs: list[dict[str, Any]], logits: np.ndarray, samples: Sequence[int]
) -> dict[str, float]:
    """Figures of seven images in four groups, of which this process has some."""
    groups = np.array([0, 1, 2, 0, 3, 2, -1])
    labels = np.arange(4) % logits.shape[1]
    figures = GroupFigures(groups, labels, build_metrics(specs, class_num=logits.shape[1]))
    if len(samples):
        figures.add(np.array(samples), paddle.to_tensor(logits[list(samples)]))
    return figures.results()


def test_two_processes_with_unequal_shares_give_the_figures_of_one(tmp_path: Path) -> None:
    script = tmp_path / "figures.py"
    script.write_text(TWO_PROCESSES.format(root=str(Path(__file__).parents[2])))
    result = run_tool(script, tmp_path / "out.json", processes=2, log_dir=tmp_path / "log")
    assert result.returncode == 0, result.stderr
    received = json.loads((tmp_path / "out.json").read_text())
    expected = []
    for class_num, specs in SPECS.items():
        logits, labels = sample(class_num, count=7)
        figures = {}
        for spec in specs:
            ((name, keys),) = spec.items()
            figures |= figures_of(name, logits, labels, **keys)
        figures |= group_figures(specs, logits, range(7))
        expected += [figures, figures]
    assert received == expected


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"Metric.Eval": [{"EER": {}}]},
            r"Metric.Eval.0.EER: metric EER: expected two classes, or positive: the class against all others; "
            "received class_num 3",
        ),
        ({"Metric.Eval": [{"F1": {"average": "binary"}}]}, "metric F1: expected two classes, or positive"),
        (
            {"Metric.Eval": [{"F1": {"positive": 1}}]},
            "positive: expected null with average 'macro', received 1",
        ),
        ({"Metric.Eval": [{"AUC": {"positive": 3}}]}, "positive: expected a class from 0 to 2, received 3"),
        (
            {"Metric.Eval": [{"AUC": {"positive": -1}}]},
            "AUC.positive: expected an integer at least 0 or a string",
        ),
        (
            {"Metric.Eval": [{"TprAtFpr": {"max_fpr": 2, "positive": 1}}]},
            "max_fpr: expected a number at least 0",
        ),
        (
            {"Metric.Eval": [{"CohenKappa": {"weights": "cubic"}}]},
            "weights: expected 'linear' or 'quadratic', received 'cubic'",
        ),
        (
            {"Metric.Eval": [{"AUC": {}}, {"AUC": {"positive": 2}}]},
            r"the results have a figure 'AUC' already; give it another name: AUC: \{figure: AUC_2\}",
        ),
        (
            {"Metric.Eval": [{"AUC": {"figure": "loss"}}]},
            "Metric.Eval.0.AUC: the results have a figure 'loss' already",
        ),
        ({"Metric.Eval": [{"AUC": {"figure": "views"}}]}, "the results have a figure 'views' already"),
        (
            {"Metric.Eval": [{"AUC": {}}, {"F1": {"figure": "AUC_classes"}}]},
            r"Metric.Eval.1.F1: the results have a figure 'AUC_classes' already; .*: F1: \{figure: AUC_classes_2",
        ),
        (
            {"Metric.Eval": [{"F1": {"figure": "AUC_classes"}}, {"AUC": {}}]},
            "Metric.Eval.0.F1: the results have a figure 'AUC_classes' already",
        ),
        (
            {"Loss.Eval": [{"CELoss": {"logit_adjustment": 1}}]},
            "Loss.Eval.0.CELoss.logit_adjustment: expected 0 under Loss.Eval, received 1: only a training adds",
        ),
        (
            {"Arch.class_num": 1, "Global.best_metric": "foo"},
            "Global.best_metric: unknown figure of the evaluation 'foo'; allowed: top1",
        ),
        ({"Metric.Eval": [{"AUC": {"figure": "a b"}}]}, "figure: expected a letter and up to 59 letters"),
        ({"Metric.Eval": [{"TopkAcc": {}}, {"TopkAcc": {}}]}, "the results have a figure 'top1' already$"),
        (
            {"Metric.Train": [{"AUC": {}}]},
            "Metric.Train.0.AUC: AUC is an evaluation metric: expected it under Metric.Eval",
        ),
        (
            {"Global.best_metric": "auc", "Metric.Eval": [{"AUC": {}}, {"TopkAcc": {"topk": [1, 2]}}]},
            r"Global.best_metric: unknown figure of the evaluation 'auc' \(did you mean 'AUC'\?\); allowed: AUC, top1, "
            "top2, CELoss, loss",
        ),
    ],
)
def test_settings_that_are_refused_when_the_config_is_loaded(
    keys: dict[str, Any], message: str, write_config: Callable[..., Path]
) -> None:
    with pytest.raises(ppxcls.ConfigError, match=message):
        ppxcls.load_config(write_config(**keys))


def test_the_example_of_the_page(small: Callable[..., Path]) -> None:
    (example,) = re.findall("```yaml\n(.*?)```", (ROOT / "docs/metrics.md").read_text(), re.DOTALL)
    keys = yaml.safe_load(example)
    overrides = [
        "Arch.class_num=2",
        f"Metric={keys['Metric']}",
        f"Global.best_metric={keys['Global']['best_metric']}",
    ]
    config = ppxcls.load_config(small(), overrides)
    blocks = config.Metric.Eval
    results: dict[str, float] = {}
    logits, labels = (
        np.tile(np.float32([3, 0]), (100, 1)),
        np.arange(100) < 5,
    )  # always "real", as the page says
    for metric in build_metrics(blocks, class_num=2, class_names=["real", "fake"]):
        batch = metric(paddle.to_tensor(logits), paddle.to_tensor(labels.astype(np.int64)))
        results |= {name: float(value) / 100 for name, value in batch.items()} | metric.results()
    assert results == {
        "AUC": 0.5,
        "AveragePrecision": 0.05,
        "EER": 0.5,
        "TprAtFpr": 0.0,
        "F1": 0.0,
        "top1": 0.95,
    }


def test_the_metrics_of_paddleclas_for_two_classes_load(small: Callable[..., Path]) -> None:
    metrics = "{Train: [{TopkAcc: {topk: [1, 2]}}], Eval: [{TprAtFpr: null}, {TopkAcc: {topk: [1, 2]}}]}"
    config = ppxcls.load_config(small(), ["Arch.class_num=2", f"Metric={metrics}"])
    with pytest.raises(ppxcls.ConfigError, match="allowed: TprAtFpr, top1, top2, CELoss, loss"):
        ppxcls.load_config(small(), ["Arch.class_num=2", f"Metric={metrics}", "Global.best_metric=x"])
    (metric, _) = build_metrics(config.Metric.Eval, class_num=2)
    scores = np.linspace(
        -3, 3, 2001, dtype=np.float32
    )  # of negatives, of which two may be taken for positives
    logits = np.stack([0 * scores, scores], axis=1)
    positives = np.array([[0, 2.99], [0, 3.01], [0, 4]], np.float32)
    metric(paddle.to_tensor(logits), paddle.zeros([len(logits)], "int64"))
    metric(paddle.to_tensor(positives), paddle.ones([3], "int64"))
    assert metric.results() == {"TprAtFpr": 2 / 3}


def test_a_class_is_named_as_in_the_lists(small: Callable[..., Path], images: Path, tmp_path: Path) -> None:
    config = ppxcls.load_config(small(**{"Metric.Eval": [{"AUC": {"positive": "cat"}}]}))
    with pytest.raises(ppxcls.ConfigError, match="expected the id of a class, because they have no names"):
        ppxcls.build_trainer(config)
    names = tmp_path / "names.txt"
    names.write_text("0 cats\n1 dog\n2 cow\n")
    overrides = [f"Infer={{PostProcess: {{class_id_map_file: {names}}}}}"]
    config = ppxcls.load_config(tmp_path / "config.yaml", overrides)
    with pytest.raises(ppxcls.ConfigError, match=r"no class has the name 'cat' \(did you mean 'cats'\?\)"):
        ppxcls.build_trainer(config)
    ppxcls.build_trainer(
        ppxcls.load_config(tmp_path / "config.yaml", [*overrides, "Metric.Eval.0.AUC.positive=cow"])
    )


def evaluations(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "eval"]


def best(folder: Path, name: str = "best_model") -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text())["progress"]["best"]


METRIC_LIST = [{"EER": {"positive": 1}}, {"TopkAcc": {"topk": [1]}}, {"CohenKappa": {}}]


def train(file: Path, *overrides: str) -> Path:
    trainer = ppxcls.build_trainer(ppxcls.load_config(file, overrides))
    trainer.fit()
    return trainer.output_dir


@pytest.mark.parametrize(
    ("name", "choose"), [(None, min), ("EER", min), ("loss", min), ("CohenKappa", max), ("top1", max)]
)
def test_the_figure_that_chooses_best_model(
    name: str | None, choose: Any, small: Callable[..., Path]
) -> None:
    file = small(
        **{"Global.best_metric": name, "Global.epochs": 4, "Metric.Eval": METRIC_LIST, "Global.seed": 3}
    )
    folder = train(file)
    rows = evaluations(folder)
    figure = name or "EER"
    value = choose(row[figure] for row in rows)
    candidates = [row for row in rows if row[figure] == value]
    epoch = min(candidates, key=lambda row: row["loss"])["epoch"]
    result = best(folder)
    assert (result["metric"], result["value"], result["epoch"]) == (figure, value, epoch)
    assert (
        f"[best metric: {best(folder, 'latest')['value']:.5f}] {figure} of epoch {epoch}"
        in (folder / "train.log").read_text()
    )


def test_a_run_is_resumed_with_its_best_and_another_figure_starts_anew(
    small: Callable[..., Path], tmp_path: Path, new_warnings: Callable[[], list[str]]
) -> None:
    lr = {"name": "ReduceOnPlateau", "learning_rate": 0.02, "patience": 0}
    keys = {"Global.epochs": 4, "Metric.Eval": METRIC_LIST, "Optimizer.lr": lr, "Global.keep_last": 9}
    file = small(**{**keys, "Global.best_metric": "CohenKappa"})
    whole = train(file, f"Global.output_dir={tmp_path}/whole")
    checkpoint = f"Global.checkpoints={whole}/step_6"
    again = train(file, f"Global.output_dir={tmp_path}/again", checkpoint)
    assert evaluations(whole)[2:] == evaluations(again)
    weights = [read_state(run / "best_model.pdparams") for run in (whole, again)]
    arrays = [
        {key: value for key, value in state.items() if isinstance(value, np.ndarray)} for state in weights
    ]
    assert len(arrays[0]) > 5
    assert all(np.array_equal(value, arrays[1][key]) for key, value in arrays[0].items())
    progress = [json.loads((run / "latest.json").read_text())["progress"] for run in (whole, again)]
    assert {**progress[0], "started": ""} == {**progress[1], "started": ""}
    new_warnings()
    other = train(file, f"Global.output_dir={tmp_path}/other", checkpoint, "Global.best_metric=EER")
    assert (
        "best_model was chosen by CohenKappa, and EER chooses it from now on: the next evaluation is the best so far"
        in new_warnings()
    )
    rows = evaluations(other)
    assert best(other)["metric"] == "EER"
    assert best(other)["value"] == min(row["EER"] for row in rows)
    assert best(other)["epoch"] >= 3
    plateau = json.loads((other / "latest.json").read_text())["progress"]["plateau"]
    assert plateau["best"] == best(other)["value"]


PLUGIN = """
import paddle, ppxcls

@ppxcls.METRICS.register
class Width(ppxcls.Metric):
    \"\"\"The mean distance of the largest logit from the label's.\"\"\"

    figures = ("width", "count")
    smaller_is_better = ("width",)

    def __init__(self) -> None:
        self.values = []

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> dict:
        own = paddle.take_along_axis(logits, labels.unsqueeze(-1), axis=-1).squeeze(-1)
        self.values += (logits.max(axis=-1) - own).tolist()
        return {}

    def results(self) -> dict:
        values, self.values = self.values, []
        return {"width": sum(values) / len(values), "count": len(values), "undeclared": 1.0}
"""


def test_a_metric_of_a_plugin_chooses_best_model(
    small: Callable[..., Path], tmp_path: Path, plugin_metrics_forgotten: None
) -> None:
    (tmp_path / "width.py").write_text(PLUGIN)
    plugins = [SMALL_NETWORK, str(tmp_path / "width.py")]
    keys = {"Global.plugins": plugins, "Global.best_metric": "width", "Global.epochs": 3}
    file = small(**keys, **{"Metric.Eval": [{"TopkAcc": {"topk": [1]}}, {"Width": {}}]})
    result = run_tool("train", "--trust", "-c", file)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = evaluations(tmp_path / "output/SmallNetwork")
    assert {"width", "count", "undeclared"} <= rows[0].keys()
    assert best(tmp_path / "output/SmallNetwork")["value"] == min(row["width"] for row in rows)
    assert "count: 7, undeclared: 1.00000" in result.stdout
    with pytest.raises(ppxcls.ConfigError, match="'undeclared'.*; allowed: top1, width, count, CELoss, loss"):
        ppxcls.load_config(file, ["Global.best_metric=undeclared"], trust=True)
