"""Class weights in whole runs: where the counts come from, what is logged, two processes, resuming, the page."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import ppxcls
from ppxcls.checkpoints.files import read_state
from ppxcls.models.weights import save_weights
from ppxcls.reports.record import read_record
from tests.conftest import ROOT, SMALL_NETWORK, run_tool

LABELS = [0] * 8 + [1] * 3 + [2]  # of the 12 training images
BALANCED = [12 / (3 * count) for count in (8, 3, 1)]
NAMES = ("ant", "bee", "cow")


@pytest.fixture
def unbalanced(small: Callable[..., Path], images: Path, tmp_path: Path) -> Callable[..., Path]:
    """Returns a function that writes a config with an unbalanced training list and names of its classes."""
    folder = tmp_path / "lists"
    folder.mkdir()
    lines = [f"train/{i:04d}.png {label}\n" for i, label in enumerate(LABELS)]
    (folder / "train_list.txt").write_text("".join(lines))
    shutil.copy(images / "val_list.txt", folder)
    write_names(folder)

    def write(class_weight: Any = "balanced", **keys: Any) -> Path:
        return small(
            **{
                "Loss.Train": [{"CELoss": {"class_weight": class_weight}}],
                "DataLoader.Train.dataset.cls_label_path": str(folder / "train_list.txt"),
                "DataLoader.Eval.dataset.cls_label_path": str(folder / "val_list.txt"),
                **keys,
            }
        )

    return write


def write_names(folder: Path, *names: str) -> None:
    (folder / "class_names.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(names or NAMES)))


def trainer_of(file: Path, *overrides: str) -> ppxcls.Trainer:
    return ppxcls.build_trainer(ppxcls.load_config(file, list(overrides)))


def weights_of(file: Path, *overrides: str) -> list[float]:
    trainer = trainer_of(file, *overrides)
    (weights,) = trainer.learner.loss.class_weights.values()
    trainer.run.folder.release()
    return list(weights)


def test_counts_are_those_of_the_training_list(unbalanced: Callable[..., Path], tmp_path: Path) -> None:
    """Of a list, of the same images packed, and of a run whose classes have another order."""
    file = unbalanced()
    assert weights_of(file) == pytest.approx(BALANCED)
    dataset = ppxcls.load_config(file).DataLoader.Train.dataset
    ppxcls.pack(dataset.cls_label_path, dataset.image_root, output=tmp_path / "pack")
    train = "DataLoader.Train.dataset"
    block = {"name": "PackedDataset", "pack": str(tmp_path / "pack")}
    transforms = [{"DecodeImage": {}}, {"RandCropImage": {"size": 71}}]
    assert weights_of(unbalanced(**{train: {**block, "transform_ops": transforms}})) == pytest.approx(
        BALANCED
    )

    file = unbalanced()
    trainer_of(file).fit()
    write_names(tmp_path / "lists", "cow", "ant", "bee")  # the numbers of the list now mean other classes
    resumed = weights_of(file, "Global.checkpoints=auto", "Global.allow_changes=true")
    assert resumed == pytest.approx([12 / (3 * count) for count in (3, 1, 8)])


def test_what_is_logged_and_evaluated(
    unbalanced: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The evaluation's loss has weights only if ``Loss.Eval`` has them."""
    trainer_of(unbalanced()).fit()
    run = tmp_path / "output/SmallNetwork"
    line = "CELoss: class weights from 0.5 (ant) to 4 (cow)"
    assert (run / "train.log").read_text().count(line) == 1
    with (run / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    losses = -np.log([float(row["label_score"]) for row in rows])
    labels = [int(row["label"]) for row in rows]
    evaluation = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert evaluation["loss"] == pytest.approx(losses.mean(), rel=1e-4)
    weighted = ppxcls.load_config(run, ["Loss.Eval.0.CELoss.class_weight=balanced"])
    expected = (np.array(BALANCED)[labels] * losses).mean()
    assert ppxcls.evaluate(weighted)["loss"] == pytest.approx(expected, rel=1e-4)
    without_list = ["Loss.Eval.0.CELoss.class_weight=balanced", "DataLoader.Train=null"]
    with pytest.raises(ppxcls.ConfigError, match=r"Loss.Eval.0.CELoss: .*DataLoader.Train is missing"):
        ppxcls.evaluate(ppxcls.load_config(run, without_list))
    by_name = ["Loss.Eval.0.CELoss.class_weight={cow: 2.0}", "DataLoader.Train=null"]
    ppxcls.evaluate(ppxcls.load_config(run, by_name))


def test_the_page_has_the_weights_beside_the_counts(unbalanced: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    trainer_of(unbalanced({"bee": 2.5})).fit()
    run = tmp_path / "output/SmallNetwork"
    text = ppxcls.report(run).read_text()
    assert '<button type="button">weight</button>' in text
    assert '<td class="n">3</td><td class="n">2.5</td></tr>' in text
    rows = list(csv.DictReader((run / "per_class.csv").read_text().splitlines()))
    assert [(row["training"], row["weight"]) for row in rows] == [("8", "1.0"), ("3", "2.5"), ("1", "1.0")]
    assert "the training loss is CELoss (class_weight {&#39;bee&#39;: 2.5})" in text
    (tmp_path / "lists/train_list.txt").unlink()
    assert list(read_record(run).class_weights["CELoss"]) == [1, 2.5, 1]
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(
        config.replace("bee: 2.5", "").replace("class_weight:", "class_weight: balanced")
    )
    assert read_record(run).class_weights == {}, "the counts are not known any more"


def test_other_words_for_the_classes_do_not_name_them(
    unbalanced: Callable[..., Path], tmp_path: Path
) -> None:
    """As metrics do, weights know the classes by the names of the list."""
    (tmp_path / "words.txt").write_text("0 formica\n1 apis\n2 bos\n")
    words = f"Infer={{PostProcess: {{class_id_map_file: {tmp_path}/words.txt}}}}"
    file = unbalanced({"bee": 2.0}, **{"Metric.Eval": [{"AUC": {"positive": "bee"}}]})
    assert weights_of(file, words) == [1, 2, 1]


@pytest.mark.parametrize(
    ("class_weight", "message"),
    [
        ({"bea": 2.0}, r"class_weight: no class has the name 'bea' \(did you mean 'bee'\?\)"),
        ([1, 2], "class_weight: expected 3 weights, one for each class, received 2"),
    ],
)
def test_what_does_not_fit_the_classes_is_an_error_at_the_start(
    class_weight: Any, message: str, unbalanced: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ppxcls.ConfigError, match=f"^[^\n]*Loss.Train.0.CELoss: loss CELoss: {message}$"):
        trainer_of(unbalanced(class_weight))
    assert not (tmp_path / "output/SmallNetwork/config.yaml").exists()


def test_a_resumed_run_has_the_weights_of_an_uninterrupted_one(
    unbalanced: Callable[..., Path], tmp_path: Path
) -> None:
    file = unbalanced(**{"Global.epochs": 2})
    states = []
    for name, epochs in (("whole", [2]), ("parts", [1, 2])):
        output = f"Global.output_dir={tmp_path}/{name}"
        for last_epoch in epochs:
            trainer = trainer_of(file, output, "Global.checkpoints=auto")
            trainer.run_schedule.epochs = last_epoch
            trainer.fit()
        states.append(read_state(tmp_path / name / "SmallNetwork/latest.pdparams"))
    for key in ("conv.weight", "norm._mean", "fc.weight", "fc.bias"):
        assert np.array_equal(states[0][key], states[1][key]), key


def test_processes_with_other_shares_of_the_classes_train_like_one(
    unbalanced: Callable[..., Path], tmp_path: Path
) -> None:
    """One process with batches of 8, the same in two micro-batches of 4, and two processes with 4 each.

    The list is not shuffled, so that the rare classes are in the last images.
    """
    start = tmp_path / "start.pdparams"
    save_weights(ppxcls.build_model("SmallNetwork", class_num=3), start)
    keys = {"Arch": {"name": "SmallNetwork", "freeze_norm": True, "pretrained": str(start)}}
    keys |= {"Global.epochs": 2, "DataLoader.Train.sampler.shuffle": False}
    keys |= {"Optimizer.lr.learning_rate": 0.3, "Global.eval_during_train": False}
    states, losses = [], []
    for name, processes, size, update_freq in (("one", 1, 8, 1), ("micro", 1, 4, 2), ("two", 2, 4, 1)):
        file = unbalanced(**keys, **{"DataLoader.Train.sampler.batch_size": size})
        overrides = [f"Global.output_dir={tmp_path}/{name}", f"Global.update_freq={update_freq}"]
        if processes == 1:
            trainer_of(file, *overrides).fit()
        else:
            words = [word for text in overrides for word in ("-o", text)]
            result = run_tool("tools/train.py", "-c", file, *words, processes=2, log_dir=tmp_path / "log")
            assert result.returncode == 0, result.stderr + result.stdout
        run = tmp_path / name / "SmallNetwork"
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows if row["kind"] == "train"])
        states.append(read_state(run / "latest.pdparams"))
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)
    for state in states[1:]:
        for key in ("conv.weight", "fc.weight", "fc.bias"):
            np.testing.assert_allclose(state[key], states[0][key], atol=1e-6, err_msg=key)
    first = ppxcls.build_model("SmallNetwork", class_num=3)
    ppxcls.load_weights(first, str(start))
    assert not np.allclose(states[0]["fc.bias"], first.fc.bias.numpy(), atol=1e-2), "it was trained"


PLUGIN = '''
import paddle
import ppxcls


@ppxcls.LOSSES.register
class PriorLoss(ppxcls.Loss):
    """Cross entropy with the shares of the classes, which it asks for."""

    def __init__(self, factor: float = 1.0, *, classes: ppxcls.TrainingClasses) -> None:
        self.names = classes.names
        self.shares = factor * classes.counts / classes.counts.sum()
        self.class_weights = classes.counts.max() / classes.counts

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        offsets = paddle.to_tensor(self.shares.astype("float32")).log()
        return paddle.nn.functional.cross_entropy(logits + offsets, labels)
'''


def test_a_loss_of_a_plugin_asks_for_the_classes(unbalanced: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "prior_loss.py").write_text(PLUGIN)
    file = unbalanced(**{"Loss.Train": [{"PriorLoss": {"factor": 2.0}}]})
    overrides = [f"Global.plugins=[{SMALL_NETWORK}, {tmp_path}/prior_loss.py]"]
    try:
        trainer = trainer_of(file, *overrides)
        ((_, _, loss),) = trainer.learner.loss.terms
        assert loss.names == list(NAMES)  # type: ignore[attr-defined]
        assert list(loss.shares) == pytest.approx([16 / 12, 6 / 12, 2 / 12])  # type: ignore[attr-defined]
        trainer.fit()
        line = "PriorLoss: class weights from 1 (ant) to 8 (cow)"
        assert line in (tmp_path / "output/SmallNetwork/train.log").read_text()
        with pytest.raises(ppxcls.ConfigError, match="unknown argument of loss PriorLoss 'classes'"):
            trainer_of(file, *overrides, "Loss.Train=[{PriorLoss: {classes: 3}}]")
    finally:
        ppxcls.LOSSES.forget({"PriorLoss"} & ppxcls.LOSSES.registered())


def test_the_example_of_the_page_is_valid(unbalanced: Callable[..., Path]) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/imbalance.md").read_text(), re.DOTALL)
    losses = yaml.safe_load(text)["Loss"]["Train"]
    assert weights_of(unbalanced(**{"Loss.Train": losses})) == pytest.approx(BALANCED)
    override = "Loss.Train.0.CELoss.class_weight=balanced"
    assert override in (ROOT / "docs/imbalance.md").read_text()
    assert weights_of(unbalanced(class_weight=None), override) == pytest.approx(BALANCED)
