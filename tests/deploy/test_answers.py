"""What a prediction says beside its best classes: unknown images, sets of classes, a threshold, features."""

from __future__ import annotations

import ast
import csv
import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import paddle
import pytest
import yaml
from scipy.special import logsumexp, softmax

import ppxcls
from ppxcls.calibration.record import Calibration
from ppxcls.calibration.temperature import calibration_of
from ppxcls.data.transforms import Compose
from ppxcls.deploy.answer_limits import AnswerShares
from ppxcls.deploy.build import load_with_shares
from ppxcls.deploy.feature_files import FeatureRows
from ppxcls.deploy.feature_network import FeatureNetwork
from ppxcls.deploy.metadata import ExportMetadata, parse_metadata
from ppxcls.deploy.output import Output
from ppxcls.deploy.predict import Predictor
from ppxcls.deploy.threshold import Threshold
from ppxcls.deploy.writer import Writer
from ppxcls.serving.answers import answer_to, first_classes
from ppxcls.serving.app import build_app
from ppxcls.serving.bodies import BodyLimits
from ppxcls.serving.openapi import openapi_document
from ppxcls.train.paddle_inference import EvaluatedNetwork, is_compilable
from tests.conftest import SMALL_NETWORK, run_tool, small_config, write_images

CLASSES = 4


def drawn(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns logits and labels of known images: the logit of the true class is mostly the largest."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    logits = 5 * np.eye(CLASSES)[labels] + 1.5 * rng.normal(size=(count, CLASSES))
    return logits.astype(np.float32), labels


CALIBRATION = calibration_of(*drawn(300), "val_list.txt, whose images chose the weights")


def predictor_of(**keys: Any) -> Predictor:
    """Returns a predictor whose images are their own logits."""
    defaults = {"names": ["a", "b", "c", "d"], "gives_logits": True, "calibration": CALIBRATION}
    return Predictor(Compose([]), lambda images: images, **{"description": "", **defaults, **keys})


def test_known_images_and_sets_are_those_of_the_formulae() -> None:
    logits = np.concatenate([drawn(200, seed=1)[0], 0.3 * drawn(50, seed=2)[0]])
    predictions = (
        predictor_of().with_limits(unknown_share=0.1, coverage=0.9).predict_prepared(list(logits), 2)
    )
    temperature = CALIBRATION.temperature
    energy = -temperature * logsumexp(logits.astype(float) / temperature, axis=1)
    rank = int(np.ceil(301 * 0.9))
    expected = energy <= CALIBRATION.energies[rank - 1] + 1e-4
    assert [prediction.is_known for prediction in predictions] == expected.tolist()
    assert 0.7 < expected[:200].mean() < 1.0
    assert expected[200:].mean() < 0.1
    limit = CALIBRATION.true_scores[300 - rank]
    for prediction, scores in zip(
        predictions, softmax(logits.astype(float) / temperature, axis=1), strict=True
    ):
        ids = sorted(np.flatnonzero(scores >= limit - 1e-4), key=lambda i: -scores[i])
        assert prediction.class_set == ids
        assert prediction.class_set_names == ["abcd"[i] for i in ids]
        assert len(prediction.class_ids) == 2


def test_without_a_wish_nothing_is_said() -> None:
    (prediction,) = predictor_of().predict_prepared([drawn(1)[0][0]])
    assert (prediction.is_known, prediction.class_set, prediction.class_set_names) == (None, None, None)
    assert answer_to(prediction)[1].keys() == {"class_ids", "scores", "label_names"}


@pytest.mark.parametrize(
    ("keys", "wish", "message"),
    [
        ({"calibration": None}, {"unknown_share": 0.05}, "^there is no record of a calibration$"),
        ({"calibration": None, "no_limits": "get one"}, {"coverage": 0.9}, "^get one$"),
        (
            {"gives_logits": False},
            {"unknown_share": 0.05},
            r"probabilities, which have no energy: export .* --logits$",
        ),
        (
            {},
            {"unknown_share": 5},
            "^unknown share: expected a number between 0 and 1, such as 0.05, received 5, of val_list",
        ),
        (
            {},
            {"unknown_share": 0.001},
            r"^to turn away at most 0.001 .* at least 999 calibration images, .* has 300, of v",
        ),
        (
            {},
            {"coverage": 0.999},
            "^a coverage of 0.999 needs at least 999 calibration images, and the record has",
        ),
    ],
)
def test_what_can_not_be_answered(keys: dict[str, Any], wish: dict[str, float], message: str) -> None:
    with pytest.raises(ppxcls.DataError, match=message):
        predictor_of(**keys).with_limits(**wish)


def test_probabilities_have_sets_but_no_energy() -> None:
    logits = drawn(20, seed=3)[0]
    scores = softmax(logits.astype(float) / CALIBRATION.temperature, axis=1)
    received = predictor_of(gives_logits=False).with_limits(coverage=0.9).predict_prepared(list(scores))
    expected = predictor_of().with_limits(coverage=0.9).predict_prepared(list(logits))
    assert received == expected


def written(kind: Any, **wish: float) -> str:
    logits = np.array([[9, 0, 0, 0], [0, 0, 0.1, 0.2]], np.float32)
    predictor = predictor_of().with_limits(**wish)
    stream = io.StringIO()
    Writer(kind, stream, predictor.limits).write(predictor.predict_prepared(list(logits), 1))
    return stream.getvalue()


def test_every_form_says_that_an_image_is_unknown() -> None:
    rows = [json.loads(line) for line in written("jsonl", unknown_share=0.05).splitlines()]
    assert [row["known"] for row in rows] == [True, False]
    assert "class_set" not in rows[0]
    assert "'known': False" in written("paddleclas", unknown_share=0.05)
    table = list(csv.DictReader(io.StringIO(written("csv", unknown_share=0.05, coverage=0.95))))
    assert [(row["known"], row["class_set"]) for row in table] == [("true", "0"), ("false", "")]
    assert written("csv", coverage=0.95).splitlines()[0].endswith(",score,class_set")


def test_the_answer_of_a_server_and_its_description() -> None:
    predictor = predictor_of().with_limits(unknown_share=0.05, coverage=0.9)
    (prediction,) = predictor.predict_prepared([np.zeros(CLASSES, np.float32)], 3)
    status, content = answer_to(first_classes(prediction, 1))
    assert status == 200
    assert content["known"] is False
    assert content["class_set"] == content["class_set_names"] == []
    document = openapi_document(BodyLimits(1 << 20, 4), 8, predictor.limits)
    schema = document["components"]["schemas"]["Prediction"]
    assert "At most 0.05 of known images" in schema["properties"]["known"]["description"]
    assert set(schema["required"]) == content.keys() == schema["properties"].keys()


@pytest.mark.parametrize(("logit", "class_id"), [(-1.0, 0), (0.84, 0), (0.86, 1), (3.0, 1)])
@pytest.mark.parametrize("labels", [(None, None), ("nobody", "someone")])
def test_a_threshold_answers_as_in_paddleclas(
    logit: float, class_id: int, labels: tuple[str | None, str | None]
) -> None:
    """One class, its own score, and its label; a score of 0.7 has a logit of 0.847."""
    predictor = predictor_of(names=["no", "yes"], threshold=Threshold(0.7, *labels), calibration=None)
    (prediction,) = predictor.predict_prepared([np.array([0, logit], np.float32)], topk=5)
    score = 1 / (1 + np.exp(-logit))
    assert prediction.class_ids == [class_id]
    assert prediction.scores == [pytest.approx(score if class_id else 1 - score, abs=1e-5)]
    assert prediction.label_names == [labels[class_id] or ("no", "yes")[class_id]]


def test_a_threshold_without_any_names() -> None:
    predictor = predictor_of(names=[], threshold=Threshold(0.5), calibration=None)
    assert [p.label_names for p in predictor.predict_prepared(list(np.eye(2, dtype=np.float32)))] == [
        ["0"],
        ["1"],
    ]


@pytest.mark.parametrize("count", [1, 3])
def test_a_threshold_is_for_two_scores(count: int) -> None:
    """The number of classes of a plugin's network is not known when the config is loaded."""
    predictor = predictor_of(names=[], threshold=Threshold(0.5), calibration=None)
    with pytest.raises(ppxcls.DataError, match=f"^ThreshOutput: expected .* 2 classes, received {count} s"):
        predictor.predict_prepared([np.zeros(count, np.float32)])


@pytest.mark.parametrize("output", ["f.csv", "f.npy", "folder/../f.csv", "link.txt"])
def test_predictions_and_features_are_different_files(output: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / "f.csv")
    with pytest.raises(ppxcls.DataError, match="^--output: expected another file than .*which --features"):
        Output("csv", str(tmp_path / output), str(tmp_path / "f.npy"))
    assert Output("csv", str(tmp_path / "g.csv"), str(tmp_path / "f.npy")).file


def test_limits_in_the_metadata_of_an_export() -> None:
    metadata = ExportMetadata("x", "w", [{"ToCHWImage": None}], [], 2, shares=AnswerShares(coverage=0.9))
    values = json.loads(json.dumps(metadata.as_dict()))
    assert parse_metadata(values, "file").shares == AnswerShares(None, 0.9)
    assert "limits" not in ExportMetadata("x", "w", [{"ToCHWImage": None}], [], 2).as_dict()
    for limits in ([], {"coverage": 1}, {"coverage": "0.9"}, {"unknown_share": float("nan")}):
        with pytest.raises(ppxcls.DataError, match="^file: invalid metadata: limits: expected a"):
            parse_metadata(values | {"limits": limits}, "file")


def test_a_threshold_in_the_metadata_of_an_export() -> None:
    metadata = ExportMetadata("x", "w", [{"ToCHWImage": None}], [], 2, threshold=Threshold(0.25, "no"))
    values = json.loads(json.dumps(metadata.as_dict()))
    assert parse_metadata(values, "file").threshold == Threshold(0.25, "no", None)
    for change, message in (
        ({"PostProcess": {"name": "Topk"}}, "PostProcess: expected the name ThreshOutput"),
        ({"PostProcess": {"name": "ThreshOutput", "threshold": True}}, "expected a number from 0 to 1"),
        ({"PostProcess": {"name": "ThreshOutput", "threshold": 0.5, "label_1": 3}}, "expected texts as"),
        ({"class_num": 3}, "a threshold is for 2 classes, received 3"),
    ):
        with pytest.raises(ppxcls.DataError, match=f"^file: invalid metadata: .*{message}"):
            parse_metadata(values | change, "file")


def test_the_calibration_of_an_export_has_its_classes() -> None:
    calibration = Calibration(1.5, "x", 3, (1, 1, 1), (0.0,) * 3, (0.5,) * 3)
    metadata = ExportMetadata("x", "w", [{"ToCHWImage": None}], [], 3, calibration=calibration)
    values = json.loads(json.dumps(metadata.as_dict()))
    assert parse_metadata(values, "file").calibration == calibration
    with pytest.raises(ppxcls.DataError, match=r"^file: invalid metadata: calibration: expected 2 numbers"):
        parse_metadata(values | {"class_num": 2}, "file")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"name": "ThreshOutput"},
            r"PostProcess.threshold: ThreshOutput: expected a number from 0 to 1, received n",
        ),
        (
            {"name": "ThreshOutput", "threshold": 0.5},
            r"name: ThreshOutput: expected a network with 2 classes, rece.* 3",
        ),
        (
            {"name": "ThreshOutput", "threshold": 1.5},
            "threshold: expected a number at least 0 and at most 1.*1.5",
        ),
        ({"threshold": 0.5}, "threshold: only ThreshOutput has this key, and the name is Topk"),
        ({"label_0": "no"}, "label_0: only ThreshOutput has this key"),
        ({"unknown_share": 0}, "unknown_share: expected a number above 0 and below 1"),
        ({"coverage": 95}, "coverage: expected a number above 0 and below 1"),
    ],
)
def test_wrong_keys_are_told_when_the_config_is_loaded(
    small: Any, section: dict[str, Any], message: str
) -> None:
    with pytest.raises(ppxcls.ConfigError, match=message):
        ppxcls.load_config(small(Infer={"PostProcess": section}))


def small_run(small: Any, folder: Path, **keys: Any) -> Path:
    """Trains a small network, and returns the run's folder."""
    config = ppxcls.load_config(small(**{"Global.output_dir": str(folder / "output"), **keys}))
    trainer = ppxcls.build_trainer(config)
    trainer.fit()
    return Path(trainer.output_dir)


def test_features_are_the_input_of_the_classifier(small: Any, tmp_path: Path, images: Path) -> None:
    run = small_run(small, tmp_path)
    (tmp_path / "photos").mkdir()
    for i in range(3):
        (tmp_path / f"photos/{i}.png").write_bytes((images / f"val/000{i}.png").read_bytes())
    (tmp_path / "photos/1.png").write_bytes(b"no image")
    file = tmp_path / "features.npy"
    result = run_tool("infer", "-c", run, tmp_path / "photos", "--features", file, "--format", "jsonl")
    assert result.returncode == 1, result.stderr
    assert "2 images, " in result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    features = np.load(file)
    assert features.shape == (2, 4)
    assert features.dtype == np.float32
    with open(tmp_path / "features.csv", newline="") as stream:
        names = [row["file_name"] for row in csv.DictReader(stream)]
    assert names == [row["file_name"] for row in rows]
    network = ppxcls.build_model("SmallNetwork", class_num=3)
    ppxcls.load_weights(network, str(run / "best_model.pdparams"))
    logits = features @ network.fc.weight.numpy() + network.fc.bias.numpy()
    for row, scores in zip(rows, softmax(logits.astype(float), axis=1), strict=True):
        np.testing.assert_allclose(row["scores"], sorted(scores, reverse=True), atol=2e-5)
    by_load = ppxcls.load(run, features=True).predict(names)
    np.testing.assert_allclose(np.stack([p.features for p in by_load]), features, rtol=1e-5)
    for words, message in (
        (["--features", tmp_path / "x.parquet"], "--features: expected a file with the suffix .npy"),
        (["--features", file, "--tta", "flip"], "expected features of the image alone, without other views"),
    ):
        result = run_tool("infer", "-c", run, tmp_path / "photos", *words)
        assert result.returncode == 1
        assert message in result.stderr


def test_a_compiled_network_gives_the_same_features(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ppxcls.load_config(small())  # registers the network
    network = FeatureNetwork(ppxcls.build_model("SmallNetwork", class_num=3))
    network.eval()
    if not is_compilable(network):
        pytest.skip("Paddle has no oneDNN here")
    monkeypatch.setattr("ppxcls.train.paddle_inference._MIN_PIXELS_TO_COMPILE", 1)
    evaluated = EvaluatedNetwork(network)
    images = paddle.to_tensor(np.random.default_rng(0).normal(size=(5, 3, 20, 20)).astype(np.float32))
    received = evaluated(images).numpy()
    assert evaluated._predictor is not None
    assert received.shape == (5, 4 + 3)
    np.testing.assert_allclose(received, network(images).numpy(), rtol=1e-4, atol=1e-5)


def test_features_of_no_image_are_an_empty_table(tmp_path: Path) -> None:
    FeatureRows().write(tmp_path / "x.npy")
    assert len(np.load(tmp_path / "x.npy")) == 0
    assert (tmp_path / "x.csv").read_text() == "file_name\n"


def test_a_threshold_from_the_yaml_to_the_export(small: Any, tmp_path: Path) -> None:
    """``infer``, ``load`` and the exported files give the same answers, and so does another threshold."""
    data = write_images(tmp_path / "data", 8, classes=2)
    write_images(data, 4, classes=2, seed=1, name="val")
    process = {"name": "ThreshOutput", "threshold": 0.5, "label_0": "nobody", "label_1": "someone"}
    keys = {f"DataLoader.{mode}.dataset.image_root": str(data) for mode in ("Train", "Eval")}
    keys |= {
        f"DataLoader.{mode}.dataset.cls_label_path": str(data / f"{name}_list.txt")
        for mode, name in (("Train", "train"), ("Eval", "val"))
    }
    arch = {"name": "SmallNetwork", "class_num": 2}
    run = small_run(small, tmp_path, **{"Arch": arch, "Infer": {"PostProcess": process}, **keys})
    result = run_tool("tools/infer.py", "-c", run, data / "val")
    assert result.returncode == 0, result.stderr
    rows = ast.literal_eval(result.stdout)
    assert {row["label_names"][0] for row in rows} <= {"nobody", "someone"}
    assert all(len(row["scores"]) == 1 and row["scores"][0] >= 0.5 for row in rows)
    ppxcls.export(ppxcls.load_config(run, [f"Global.save_inference_dir={tmp_path}/inference"]), ["paddle"])
    exported = ppxcls.infer(None, str(data / "val"), exported=tmp_path / "inference")
    assert [p.class_ids for p in exported] == [row["class_ids"] for row in rows]
    assert [p.label_names for p in exported] == [row["label_names"] for row in rows]
    config = ppxcls.load_config(run, ["Infer.PostProcess.threshold=1.0"])
    assert [p.label_names for p in ppxcls.infer(config, str(data / "val"))] == [["nobody"]] * 4


@pytest.fixture(scope="module")
def calibrated_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a small network with 60 evaluation images, which calibrate it."""
    folder = tmp_path_factory.mktemp("calibrated")
    write_images(folder, 12)
    write_images(folder, 60, seed=1, name="val")
    arch = {"Arch": {"name": "SmallNetwork"}, "Global.plugins": [SMALL_NETWORK]}
    (folder / "config.yaml").write_text(yaml.safe_dump(small_config(folder, folder / "output", **arch)))
    trainer = ppxcls.build_trainer(ppxcls.load_config(folder / "config.yaml"))
    trainer.fit()
    return Path(trainer.output_dir)


def test_a_run_its_export_and_its_server_say_the_same(calibrated_run: Path, tmp_path: Path) -> None:
    testclient = pytest.importorskip("starlette.testclient")
    pytest.importorskip("httpx")
    photos = calibrated_run.parents[1] / "val"
    cv2.imwrite(str(tmp_path / "white.png"), np.full((80, 80, 3), 255, np.uint8))
    files = [str(tmp_path / "white.png"), *map(str, sorted(photos.iterdir())[:20])]
    wish = {"unknown_share": 0.2, "coverage": 0.8}
    expected = ppxcls.load(calibrated_run).with_limits(**wish).predict(files)
    assert {prediction.is_known for prediction in expected} == {True, False}
    words = [
        word for name, share in wish.items() for word in (f"--{name.removesuffix('_share')}", str(share))
    ]
    result = run_tool("tools/infer.py", "-c", calibrated_run, *files, "--format", "jsonl", *words)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["known"] for row in rows] == [prediction.is_known for prediction in expected]
    assert [row["class_set"] for row in rows] == [prediction.class_set for prediction in expected]
    assert "at most 0.2 of known images are turned away" in result.stderr
    assert "by 60 images of val_list.txt, whose images chose the weights" in result.stderr
    assert f"{sum(p.is_known is False for p in expected)} turned away as unknown" in result.stderr
    asked = ["Infer.PostProcess={unknown_share: 0.2, coverage: 0.8}"]
    config = ppxcls.load_config(calibrated_run, asked)
    assert ppxcls.infer(config, files) == ppxcls.load(config).predict(files) == expected
    for kind, words in (("logits", asked), ("scores", [])):
        target = [f"Global.save_inference_dir={tmp_path}/{kind}"]
        config = ppxcls.load_config(calibrated_run, [*target, *words])
        ppxcls.export(config, ["paddle"], softmax=kind == "scores")
    exported = ppxcls.load(tmp_path / "logits")  # the limits of the YAML are in the file
    assert exported.limits == ppxcls.load(calibrated_run).with_limits(**wish).limits
    received = exported.predict(files)
    assert [(p.is_known, p.class_set) for p in received] == [(p.is_known, p.class_set) for p in expected]
    sets = ppxcls.load(tmp_path / "scores").with_limits(coverage=0.8).predict(files)
    assert [p.class_set for p in sets] == [p.class_set for p in expected]
    with testclient.TestClient(build_app(exported)) as client:
        answers = [client.post("/predict", content=Path(file).read_bytes()).json() for file in files]
        page = client.get("/").text
    assert [answer["known"] for answer in answers] == [p.is_known for p in expected]
    assert [answer["class_set"] for answer in answers] == [p.class_set for p in expected]
    assert "At most 0.2 of known images are turned away." in page


def test_options_override_the_limits_of_the_yaml(calibrated_run: Path) -> None:
    """Also limits of the YAML that the calibration has too few images for."""
    config = ppxcls.load_config(calibrated_run, ["Infer.PostProcess={unknown_share: 0.001, coverage: 0.8}"])
    (photo, *_) = sorted((calibrated_run.parents[1] / "val").iterdir())
    with pytest.raises(ppxcls.DataError, match="needs at least 999 calibration images"):
        ppxcls.load(config)
    predictor = load_with_shares(config, shares=AnswerShares(unknown_share=0.1))
    assert predictor.limits.shares == AnswerShares(0.1, 0.8)
    assert predictor.with_limits(coverage=0.9).limits.shares == AnswerShares(0.1, 0.9)
    assert ppxcls.infer(config, str(photo), unknown_share=0.1) == predictor.predict(photo)
    with pytest.raises(ppxcls.ConfigError, match=r"unknown_share: .* probabilities, .* export with --logits"):
        ppxcls.export(config, ["paddle"])


def test_refusals_say_how_to_get_an_answer(calibrated_run: Path, tmp_path: Path, small: Any) -> None:
    (photo, *_) = sorted((calibrated_run.parents[1] / "val").iterdir())
    predictor = ppxcls.load(calibrated_run)
    with pytest.raises(ppxcls.DataError, match="predicted without other views"):
        predictor.with_limits(unknown_share=0.1).predict(photo, tta="flip")
    with pytest.raises(
        ppxcls.DataError, match=r"needs at least 99 calibration images, .* has 60, of val_list"
    ):
        predictor.with_limits(unknown_share=0.01)
    run = small_run(small, tmp_path)
    config = ppxcls.load_config(run, ["Infer.PostProcess.coverage=0.9"])
    for use in (ppxcls.load, lambda config: ppxcls.export(config, ["paddle"])):
        with pytest.raises(ppxcls.DataError, match="no record of a calibration; get one by: ppxcls eval"):
            use(config)
    result = run_tool("infer", "-c", run, photo, "--unknown", "0.05")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        f"error: {run}: there is no record of a calibration; get one by: "
        f"ppxcls eval -c {run} --calibrate LIST"
    )
    ppxcls.export(ppxcls.load_config(run, [f"Global.save_inference_dir={tmp_path}/inference"]), ["paddle"])
    with pytest.raises(ppxcls.DataError, match="calibrate the run, by: ppxcls eval .* and export it again"):
        ppxcls.load(tmp_path / "inference").with_limits(coverage=0.9)
    with pytest.raises(ppxcls.DataError, match="exported files give no features; predict with the run"):
        ppxcls.load(tmp_path / "inference", features=True)
