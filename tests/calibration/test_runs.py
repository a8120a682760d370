"""Calibrated runs: training, evaluation, prediction, exported files, several processes, and kills."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
import yaml
from scipy.special import log_softmax, softmax

import ppxcls
from ppxcls.build.calibration import calibration_for
from ppxcls.build.choices import weights_for
from ppxcls.build.image_relations import shared_count
from ppxcls.calibration.coverage import score_limit
from ppxcls.calibration.fit import read_calibration
from ppxcls.calibration.temperature import best_temperature
from ppxcls.calibration.unknown import energy_limit
from ppxcls.checkpoints.files import read_state, write_state
from ppxcls.data.dataset import DATASETS, ImageNetDataset
from ppxcls.fitting.result import state_of, write_result
from ppxcls.reports.record import read_record
from ppxcls.system.arrays import Array
from ppxcls.train.trainer import Trainer
from tests.conftest import SMALL_NETWORK, copy_folder, run_tool, small_config, write_images

CHOSE = "whose images chose the weights"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training images, 60 that choose and 54 others, of 3 classes.

    Every fifth label of the last two lists is wrong, so that a sure network is too sure.
    """
    folder = tmp_path_factory.mktemp("pictures")
    for name, count, seed in (("train", 24, 0), ("val", 60, 1), ("other", 54, 2)):
        write_images(folder, count, size=20, seed=seed, name=name)
    for name in ("val", "other"):
        list_file = folder / f"{name}_list.txt"
        lines = [line.split() for line in list_file.read_text().splitlines()]
        labels = [(int(label) + (i % 5 == 0)) % 3 for i, (_, label) in enumerate(lines)]
        list_file.write_text(
            "".join(f"{line[0]} {label}\n" for line, label in zip(lines, labels, strict=True))
        )
    return folder


def write_file(folder: Path, pictures: Path, **keys: Any) -> Path:
    """Writes a config whose runs learn fast."""
    ops = [
        {"DecodeImage": {}},
        {"ResizeImage": {"size": 20}},
        {"NormalizeImage": {"scale": "1.0/255.0", "order": ""}},
    ]
    keys = {
        "Arch": {"name": "SmallNetwork"},
        "Global.plugins": [SMALL_NETWORK],
        "Global.epochs": 4,
        "Optimizer.lr.learning_rate": 0.5,
        "Loss.Train": [{"CELoss": {"weight": 1.0}}],
        "DataLoader.Train.dataset.transform_ops": ops,
        "DataLoader.Eval.dataset.transform_ops": ops,
        **keys,
    }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(small_config(pictures, folder / "output", **keys), sort_keys=False))
    return file


def trainer_of(file: Path, *overrides: str) -> Trainer:
    return ppxcls.build_trainer(ppxcls.load_config(file, list(overrides)))


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trained run, which no test writes to."""
    folder = tmp_path_factory.mktemp("run")
    trainer = trainer_of(write_file(folder, pictures))
    trainer.fit()
    return trainer.output_dir


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return copy_folder(trained, tmp_path / "SmallNetwork")


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """Returns a function that gives the lines of the log."""
    ppxcls.system.logs.logger.propagate = True
    caplog.set_level(logging.INFO)
    yield lambda: [record.getMessage() for record in caplog.records]
    ppxcls.system.logs.logger.propagate = False


def logits_of(run: Path, pictures: Path, name: str) -> tuple[Array, Array, list[str]]:
    """Returns the network's own logits, the labels and the files of a list."""
    config = ppxcls.load_config(run)
    network = ppxcls.build_model("SmallNetwork", class_num=3)
    ppxcls.load_weights(network, str(run / "best_model"))
    network.eval()
    transform = ppxcls.build_transforms(config.DataLoader.Eval.dataset.transform_ops)
    rows = [line.split() for line in (pictures / f"{name}_list.txt").read_text().splitlines()]
    files = [str(pictures / row[0]) for row in rows]
    images = np.stack([transform(Path(file).read_bytes()) for file in files]).transpose(0, 3, 1, 2)
    logits = network(paddle.to_tensor(images)).numpy()
    return logits, np.array([int(row[1]) for row in rows]), files


def test_a_training_keeps_the_temperature_of_its_best_model(run: Path, pictures: Path) -> None:
    """The temperature, the energies and the scores are those of the network's own logits."""
    logits, labels, files = logits_of(run, pictures, "val")
    fitted = read_calibration(run, hashlib.sha256((run / "best_model.pdparams").read_bytes()).hexdigest())
    assert fitted is not None
    record = fitted.calibration
    assert record.source == f"val_list.txt, {CHOSE}"
    assert list(record.images_per_class) == np.bincount(labels).tolist()
    np.testing.assert_allclose(record.temperature, best_temperature(logits, labels, smallest=0.1), rtol=1e-4)
    assert abs(record.temperature - 1) > 0.02, "a test of nothing"
    expected = softmax(logits.astype(np.float64) / record.temperature, axis=1)
    np.testing.assert_allclose(record.true_scores, np.sort(expected[np.arange(60), labels]), rtol=1e-4)
    with open(run / "predictions.csv") as stream:
        rows = list(csv.DictReader(stream))
    np.testing.assert_allclose([float(row["score"]) for row in rows], expected.max(1), rtol=1e-4)
    np.testing.assert_allclose(
        [float(row["label_score"]) for row in rows], expected[np.arange(60), labels], rtol=1e-4
    )
    predictions = ppxcls.load(run).predict(files, topk=3)
    for prediction, scores in zip(predictions, expected, strict=True):
        np.testing.assert_allclose(prediction.scores, np.sort(scores)[::-1], atol=2e-5)


def test_an_evaluation_says_what_the_temperature_changes(run: Path, pictures: Path) -> None:
    """The loss and the metrics are those of the logits."""
    logits, labels, _ = logits_of(run, pictures, "val")
    results = ppxcls.evaluate(ppxcls.load_config(run))
    content = json.loads((run / "eval.json").read_text())
    facts = content["calibration"]
    rows = np.arange(len(labels))
    logits = logits.astype(np.float64)
    for key, temperature in (("before", 1.0), ("after", facts["temperature"])):
        loss = -log_softmax(logits / temperature, axis=1)[rows, labels].mean()
        assert facts[f"loss_{key}"] == pytest.approx(loss, rel=1e-4)
        scores = softmax(logits / temperature, axis=1).max(1)
        bins = np.digitize(scores, np.linspace(0, 1, 16), right=True)
        gaps = [abs((scores - (logits.argmax(1) == labels))[bins == i].sum()) for i in np.unique(bins)]
        assert facts[f"error_{key}"] == pytest.approx(sum(gaps) / len(labels), abs=1e-4)
    predictions = (run / "predictions.csv").read_bytes()
    ppxcls.evaluate(ppxcls.load_config(run, ["Global.calibrate=False"]))
    assert (run / "predictions.csv").read_bytes() == predictions, "not the run's own evaluation"
    with open(run / "predictions_other.csv") as stream:
        assert {row["temperature"] for row in csv.DictReader(stream)} == {"1"}
    assert results["CELoss"] == pytest.approx(facts["loss_before"], rel=1e-5)
    assert facts["loss_after"] < facts["loss_before"]


def test_weights_without_a_record_of_their_own_have_plain_scores(
    run: Path, pictures: Path, lines: Callable[[], list[str]]
) -> None:
    _, _, files = logits_of(run, pictures, "val")
    calibrated_scores = [p.scores[0] for p in ppxcls.load(run).predict(files[:6])]
    state = read_state(run / "best_model.pdparams")
    write_state(run.parent / "same.pdparams", state)
    write_state(run.parent / "other.pdparams", {**state, "fc.bias": state["fc.bias"] + np.float32(1e-6)})
    assert (run.parent / "same.pdparams").read_bytes() == (run / "best_model.pdparams").read_bytes()
    for override, is_calibrated in (
        (f"Global.pretrained_model={run.parent}/same", True),
        (f"Global.pretrained_model={run.parent}/other", False),
        ("Global.calibrate=False", False),
    ):
        predictor = ppxcls.load(ppxcls.load_config(run, [override]))
        scores = [p.scores[0] for p in predictor.predict(files[:6])]
        assert (predictor.calibration is not None) is is_calibrated
        assert np.allclose(scores, calibrated_scores, atol=1e-3) is is_calibrated
    assert any("belongs to other weights, so scores are not calibrated" in line for line in lines())


@pytest.mark.every_paddle
def test_exported_files_have_the_scores_of_the_run(run: Path, pictures: Path) -> None:
    """The temperature is a large one, so that an 8-bit file without it would be noticed."""
    logits, _, files = logits_of(run, pictures, "val")
    content = json.loads((run / "calibration.json").read_text())
    (run / "calibration.json").write_text(json.dumps({**content, "temperature": 8.0}))
    expected = ppxcls.load(run).predict(files[:9], topk=3)
    plain_scores = softmax(logits[:9], axis=1).max(1)
    assert np.abs(plain_scores - [prediction.scores[0] for prediction in expected]).min() > 0.1
    folder = run / "inference"
    config = ppxcls.load_config(run, [f"Global.save_inference_dir={folder}"])
    ppxcls.export(config, ["paddle", "onnx"], int8=str(pictures / "train_list.txt"))
    places = [folder, folder / "inference.onnx", folder / "inference.int8.onnx"]
    for place, tolerance in zip(places, (2e-5, 2e-5, 0.1), strict=True):
        predictor = ppxcls.load(place)
        assert predictor.calibration == ppxcls.load(run).calibration
        for prediction, run_prediction in zip(predictor.predict(files[:9], topk=3), expected, strict=True):
            assert prediction.class_ids[0] == run_prediction.class_ids[0]
            np.testing.assert_allclose(prediction.scores, run_prediction.scores, atol=tolerance)
    ppxcls.export(config, ["onnx"], softmax=False)
    predictor = ppxcls.load(folder)
    for prediction, run_prediction in zip(predictor.predict(files[:9], topk=3), expected, strict=True):
        np.testing.assert_allclose(prediction.scores, run_prediction.scores, atol=2e-5)


def test_a_killed_run_has_the_same_record_in_the_end(trained: Path, pictures: Path, tmp_path: Path) -> None:
    """The run ends after three epochs, and is continued."""
    file = write_file(tmp_path, pictures)
    trainer = trainer_of(file)
    trainer.run_schedule.epochs = 3
    trainer.fit()
    run = trainer.output_dir
    early_record = read_calibration(run, None)
    trainer_of(file, "Global.checkpoints=auto").fit()
    record = read_calibration(run, hashlib.sha256((run / "best_model.pdparams").read_bytes()).hexdigest())
    assert record is not None
    assert record == read_calibration(trained, None)
    assert record != early_record


def test_a_record_is_written_before_its_weights(
    trained: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk error at the commit of ``best_model`` leaves no weights with the record of others."""
    monkeypatch.setattr(
        "ppxcls.train.run.write_calibration", lambda *_: (_ for _ in ()).throw(OSError(28, "full"))
    )
    with pytest.raises(OSError, match="best_model"):
        trainer_of(write_file(tmp_path, pictures)).fit()
    assert not (tmp_path / "output/SmallNetwork/best_model.json").exists()


class _KillError(BaseException):
    """Ends the thread that writes a checkpoint, as a kill would."""


@pytest.mark.parametrize("commits", range(4))
def test_a_run_that_is_killed_between_commits_ends_with_the_same_files(
    commits: int, trained: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kill is in the save of the last epoch, which is the best one, after some of its commits."""
    run = copy_folder(trained, tmp_path / "output/SmallNetwork")
    file = write_file(tmp_path, pictures)
    commit, committed_names = ppxcls.checkpoints.files._commit, []

    def killed_commit(prefix: Path, manifest: Any) -> None:
        if len(committed_names) == commits:
            raise _KillError
        commit(prefix, manifest)
        committed_names.append(prefix.name)

    monkeypatch.setattr("ppxcls.checkpoints.files._commit", killed_commit)
    with pytest.raises(_KillError):
        trainer_of(file, f"Global.checkpoints={run}/epoch_3").fit()
    assert committed_names == ["best_model", "latest", "epoch_4", "step_24"][:commits]
    monkeypatch.undo()
    trainer_of(file, "Global.checkpoints=auto").fit()
    for name in ("best_model.pdparams", "latest.pdparams"):
        states = [read_state(folder / name) for folder in (trained, run)]
        for key in ("fc.bias", "conv.weight", "norm._mean"):
            assert np.array_equal(states[0][key], states[1][key]), (name, key)
    digest = hashlib.sha256((run / "best_model.pdparams").read_bytes()).hexdigest()
    assert read_calibration(run, digest) == read_calibration(trained, None)


def test_few_images_fit_no_temperature(small: Callable[..., Path], lines: Callable[[], list[str]]) -> None:
    trainer = trainer_of(small())
    trainer.fit()
    assert "scores are not calibrated: the list has 7 images, and fewer than 50 tell too little" in lines()
    assert not (trainer.output_dir / "calibration.json").exists()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        '{"temperature": 0}',
        '{"temperature": NaN}',
        "[" * 1000,
        '{"temperature": 1, "source": "x"}',
    ],
)
def test_a_hostile_record_ends_in_one_line(run: Path, content: str) -> None:
    (run / "calibration.json").write_text(content)
    with pytest.raises(ppxcls.DataError, match=r"calibration\.json: .*remove the file") as error:
        ppxcls.load(run)
    assert "\n" not in str(error.value)
    assert ppxcls.load(ppxcls.load_config(run, ["Global.calibrate=False"])).calibration is None


def test_another_list_calibrates(
    run: Path, pictures: Path, tmp_path: Path, lines: Callable[[], list[str]]
) -> None:
    """The record says if the images chose the weights, and images that were trained on are refused."""
    logits, labels, _ = logits_of(run, pictures, "other")
    config = ppxcls.load_config(run)
    result = ppxcls.calibrate(config, pictures / "other_list.txt")
    expected = best_temperature(logits, labels, smallest=0.1)
    assert result["temperature"] == pytest.approx(expected, rel=1e-4)
    assert result["source"] == "other_list.txt, whose images did not choose the weights"
    calibration = ppxcls.load(run).calibration
    assert calibration is not None
    assert (calibration.temperature, calibration.images) == (result["temperature"], 54)
    few = [line for line in lines() if "fewer than 20 images" in line]
    assert "3 of 3 classes have fewer than 20 images" in few[0]
    assert ppxcls.calibrate(config, pictures / "val_list.txt")["source"] == f"val_list.txt, {CHOSE}"
    with pytest.raises(ppxcls.DataError, match="no calibration is written: the list has 24 images"):
        ppxcls.calibrate(config, pictures / "train_list.txt")
    lists = {
        name: (pictures / f"{name}_list.txt").read_text().splitlines() for name in ("train", "val", "other")
    }
    mixed_file = tmp_path / "mixed.txt"
    mixed_file.write_text("\n".join([*lists["other"], *lists["val"][:6]]))
    source = ppxcls.calibrate(config, mixed_file)["source"]
    assert source == "mixed.txt, 6 of whose 60 images chose the weights"
    mixed_file.write_text("\n".join([*lists["other"], lists["train"][0]]))
    with pytest.raises(ppxcls.DataError, match="received 1 of 55 that they were trained on"):
        ppxcls.calibrate(config, mixed_file)


@pytest.mark.parametrize("mode", ["Train", "Eval"])
def test_images_are_found_in_a_pack(run: Path, pictures: Path, tmp_path: Path, mode: str) -> None:
    """A pack has the names of its list."""
    name = "train" if mode == "Train" else "val"
    ppxcls.pack(pictures / f"{name}_list.txt", None, output=tmp_path / "pack")
    lines = [(pictures / f"{part}_list.txt").read_text().splitlines() for part in ("other", name)]
    mixed_file = pictures / f"mixed_{name}.txt"  # a pack has no folder of images
    mixed_file.write_text("\n".join([*lines[0], *lines[1][:6]]))
    values = yaml.safe_load((run / "config.yaml").read_text())
    block = values["DataLoader"][mode]["dataset"]
    values["DataLoader"][mode]["dataset"] = {
        "name": "PackedDataset",
        "pack": str(tmp_path / "pack"),
        "transform_ops": block["transform_ops"],
    }
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(values))
    config = ppxcls.load_config(file, [f"Global.output_dir={run.parent}"])
    if mode == "Train":
        with pytest.raises(ppxcls.DataError, match="received 6 of 60 that they were trained on"):
            ppxcls.calibrate(config, mixed_file)
    else:
        assert "6 of whose 60 images chose the weights" in ppxcls.calibrate(config, mixed_file)["source"]


def test_what_is_not_known_of_the_images_is_said(
    run: Path, pictures: Path, tmp_path: Path, lines: Callable[[], list[str]]
) -> None:
    """Weights in other files have the lists in their manifest. A list that is gone tells nothing."""
    other_list = pictures / "other_list.txt"
    mixed_file = tmp_path / "mixed.txt"
    train_lines = (pictures / "train_list.txt").read_text().splitlines()
    mixed_file.write_text("\n".join([other_list.read_text(), train_lines[0]]))
    copy = copy_folder(run, tmp_path / "copy")
    for name in ("config.yaml", "calibration.json"):
        (copy / name).unlink()
    overrides = [f"Global.pretrained_model={copy}/best_model", f"Global.output_dir={tmp_path}/elsewhere"]
    config = ppxcls.load_config(run, overrides)
    with pytest.raises(ppxcls.DataError, match="received 1 of 55 that they were trained on"):
        ppxcls.calibrate(config, mixed_file)
    source = "other_list.txt, whose images did not choose the weights"
    assert ppxcls.calibrate(config, other_list)["source"] == source
    (copy / "best_model.json").unlink()
    unknown = "of whose images it is not known whether they trained or chose the weights"
    assert ppxcls.calibrate(config, other_list)["source"] == f"other_list.txt, {unknown}"
    gone = ppxcls.load_config(run, [f"DataLoader.Train.dataset.cls_label_path={tmp_path}/gone.txt"])
    unknown = (
        "of whose images it is not known whether they trained the weights "
        "and whose images did not choose the weights"
    )
    assert ppxcls.calibrate(gone, other_list)["source"] == f"other_list.txt, {unknown}"
    assert "it is not known whether its images trained the weights: the config's lists" in lines()[-4:][0]


def test_images_that_judge_are_named(run: Path, pictures: Path) -> None:
    test = f"DataLoader.Test.cls_label_path={pictures}/other_list.txt"
    source = ppxcls.calibrate(ppxcls.load_config(run, [test]), pictures / "other_list.txt")["source"]
    assert (
        source == "other_list.txt, whose images did not choose the weights and whose images judge the weights"
    )


def test_other_lists_need_no_groups(run: Path, pictures: Path, tmp_path: Path) -> None:
    """Only a training needs the figure that chooses. A calibration does not even read the groups."""
    config = ppxcls.load_config(run, ["Global.best_metric=group_top1"])
    assert ppxcls.evaluate(config)["num_samples"] == 60
    (tmp_path / "other_list.txt").write_text((pictures / "other_list.txt").read_text())
    (tmp_path / "groups.csv").write_text("damaged")
    assert ppxcls.calibrate(config, tmp_path / "other_list.txt")["images"] == 54


@pytest.fixture
def drawn_images() -> Iterator[str]:
    """Registers a data set without a list."""

    @DATASETS.register
    class DrawnImages(ppxcls.Dataset):
        def __init__(
            self, transform_ops: ppxcls.TransformOps | None = None, class_num: int | None = None
        ) -> None:
            super().__init__(np.arange(60) % 3, transform_ops, class_num)

        def read(self, index: int) -> Array:
            return np.full((20, 20, 3), index, np.uint8)

    yield DrawnImages.__name__
    DATASETS.forget({DrawnImages.__name__})


def test_a_list_is_refused_if_the_evaluation_reads_none(
    drawn_images: str, pictures: Path, tmp_path: Path
) -> None:
    """Its own images would be evaluated in the place of those of the list."""
    file = write_file(tmp_path, pictures, **{"DataLoader.Eval.dataset": {"name": drawn_images}})
    list_file = pictures / "other_list.txt"
    config = ppxcls.load_config(file, [f"DataLoader.Test.cls_label_path={list_file}"])
    message = f"expected a data set of a list in DataLoader.Eval, received {drawn_images}"
    with pytest.raises(ppxcls.ConfigError, match=message):
        ppxcls.calibrate(config, list_file)
    with pytest.raises(ppxcls.ConfigError, match=message):
        ppxcls.evaluate(config, test=True)


def test_samples_with_numbers_as_names_can_not_be_compared(drawn_images: str, pictures: Path) -> None:
    drawn = DATASETS.components()[drawn_images]()
    listed = ImageNetDataset(str(pictures), str(pictures / "val_list.txt"))
    assert shared_count(drawn, drawn) is shared_count(listed, drawn) is None
    assert shared_count(listed, listed) == 60


@pytest.mark.parametrize("content", ['{"focal_length": 35}', "[]", "{", "\0", '{"temperature": 20.5}'])
def test_a_file_of_another_program_is_no_calibration(run: Path, tmp_path: Path, content: str) -> None:
    folder = tmp_path / "Downloads"
    folder.mkdir()
    shutil.copy(run / "best_model.pdparams", folder / "weights.pdparams")
    (folder / "calibration.json").write_text(content)
    overrides = [f"Global.pretrained_model={folder}/weights", f"Global.output_dir={tmp_path}/elsewhere"]
    config = ppxcls.load_config(run, overrides)
    weights = weights_for(config, "infer")
    assert weights
    assert calibration_for(config, weights) is None
    shutil.copy(run / "calibration.json", folder / "calibration.json")
    assert calibration_for(config, weights) is not None


def test_a_record_of_another_number_of_classes_ends_in_one_line(run: Path) -> None:
    content = json.loads((run / "calibration.json").read_text())
    counts = [*content["images_per_class"], 0]
    (run / "calibration.json").write_text(json.dumps({**content, "images_per_class": counts}))
    with pytest.raises(ppxcls.DataError, match=r"expected 3 numbers as 'images_per_class', received 4"):
        ppxcls.load(run)
    with pytest.raises(ppxcls.DataError, match=r"expected 3 numbers as 'images_per_class', received 4"):
        read_record(run)


def test_two_processes_calibrate_as_one(run: Path, pictures: Path, tmp_path: Path) -> None:
    """Two processes, whose parts of the list differ in size."""
    list_file = pictures / "other_list.txt"
    (pictures / "odd_list.txt").write_text("".join(list_file.read_text().splitlines(keepends=True)[:53]))
    command = ["tools/eval.py", "-c", run, "--calibrate", pictures / "odd_list.txt"]
    ppxcls.calibrate(ppxcls.load_config(run), pictures / "odd_list.txt")
    one = json.loads((run / "calibration.json").read_text())
    (run / "calibration.json").unlink()
    result = run_tool(*command, processes=2, log_dir=tmp_path / "log")
    assert result.returncode == 0, result.stderr + result.stdout
    two = json.loads((run / "calibration.json").read_text())
    assert one["images"] == two["images"] == 53
    for key in ("temperature", "energies", "true_scores"):
        np.testing.assert_allclose(two[key], one[key], rtol=1e-5)
    assert two["images_per_class"] == one["images_per_class"]


def test_the_report_shows_the_temperature_the_risk_and_the_limits(run: Path, pictures: Path) -> None:
    """The table's numbers are those of the network's own logits."""
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    logits, labels, _ = logits_of(run, pictures, "val")
    text = ppxcls.report(run).read_text()
    record = read_calibration(run, None)
    assert record is not None
    assert f"divided by the temperature {record.calibration.temperature:.4g}, of 60 images of" in text
    assert CHOSE in text
    assert f"from {record.figures.error_before:.4f} to {record.figures.error_after:.4f}" in text
    is_wrong = logits.argmax(1) != labels
    assert f'100 %</td><td class="n">{100 * is_wrong.mean():.2f} %' in text
    assert "none: to turn away at most 0.01 of known images needs at least 99 calibration images" in text
    limit = f"{energy_limit(record.calibration, 0.05):.4g}"
    assert f"<code>--unknown 0.05</code></td><td>{limit}</td>" in text
    limit = f"{score_limit(record.calibration, 0.9):.4g}"
    assert f"<code>--coverage 0.9</code></td><td>{limit}</td>" in text
    assert "risk.png" in {file.name for file in run.iterdir()}
    content = json.loads((run / "calibration.json").read_text())
    (run / "calibration.json").write_text(json.dumps({**content, "weights": "0" * 64}))
    assert "another temperature" not in text
    text = ppxcls.report(run).read_text()
    assert "no temperature divides the logits" in text
    temperature = f"{record.calibration.temperature:.4g}"
    assert f"another temperature than predictions have now: {temperature}. They are computed anew by" in text
    (run / "calibration.json").write_text(json.dumps({**content, "energies": "<script>"}))
    with pytest.raises(ppxcls.DataError, match=r"calibration\.json: not the calibration of a run"):
        ppxcls.report(run)


@pytest.mark.parametrize("has_average", [True, False])
def test_the_record_belongs_to_the_weights_that_were_evaluated(
    pictures: Path, tmp_path: Path, has_average: bool
) -> None:
    """With an average of the weights, the raw weights have no record. Figures of images that judge are read."""
    test = {"cls_label_path": str(pictures / "other_list.txt")}
    keys: dict[str, Any] = {"Global.weights_format": "safetensors", "Global.epochs": 1}
    if has_average:
        keys["EMA"] = {"use_ema": True, "decay": 0.9}
    file = write_file(tmp_path, pictures, **keys)
    content = yaml.safe_load(file.read_text())
    content["DataLoader"]["Test"] = test
    file.write_text(yaml.safe_dump(content))
    trainer = trainer_of(file)
    trainer.fit()
    run = trainer.output_dir
    assert (ppxcls.load(run).calibration is None) is False
    raw = ppxcls.load(ppxcls.load_config(run, ["EMA=null"]))
    assert (raw.calibration is None) is has_average
    ppxcls.evaluate(ppxcls.load_config(run), test=True)
    facts = json.loads((run / "test.json").read_text())["calibration"]
    assert facts["source"] == f"val_list.txt, {CHOSE}"
    if has_average:
        ppxcls.report(run)


def test_a_stage_of_fit_keeps_the_temperature_of_its_logits(pictures: Path, tmp_path: Path) -> None:
    """The logits are those of weights that were not trained on the photographs that choose."""
    config = ppxcls.load_config(write_file(tmp_path, pictures))
    labels = np.array([int(line.split()[1]) for line in (pictures / "val_list.txt").read_text().splitlines()])
    rng = np.random.default_rng(0)
    logits = (4 * rng.normal(size=(60, 3)) + 3 * np.eye(3)[labels]).astype(np.float32)
    state = state_of(ppxcls.build_model("SmallNetwork", class_num=3))
    write_result(config, state, epoch=1, is_first=True, val_logits=logits, note="by other weights")
    run = config.run_folder
    fitted = read_calibration(run, hashlib.sha256((run / "best_model.pdparams").read_bytes()).hexdigest())
    assert fitted is not None
    temperature = fitted.calibration.temperature
    assert temperature == pytest.approx(best_temperature(logits, labels, smallest=0.1), rel=1e-5)
    assert fitted.calibration.source == f"val_list.txt, {CHOSE} (by other weights)"
    with open(run / "predictions.csv") as stream:
        scores = [float(row["score"]) for row in csv.DictReader(stream)]
    np.testing.assert_allclose(scores, softmax(logits / temperature, axis=1).max(1), rtol=1e-4)
    facts = json.loads((run / "eval.json").read_text())["calibration"]
    assert facts["loss_after"] == pytest.approx(fitted.figures.loss_after, rel=1e-4)
