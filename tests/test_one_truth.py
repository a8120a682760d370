"""After training, every tool uses the run's weights, image transforms and class names, and reports them."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

import ppxcls
from ppxcls.build.choices import Purpose, class_names_for, transforms_for
from ppxcls.data.list_index import ListIndex
from tests.conftest import run_tool
from tests.deploy.test_deploy import HAS_ONNX, pictures

PLAIN_SCRIPT = """
import json, sys
import cv2, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
about = json.loads(session.get_modelmeta().custom_metadata_map["ppxcls"])
steps = {name: arguments or {} for step in about["transforms"] for name, arguments in step.items()}
short, size = steps["ResizeImage"]["resize_short"], steps["CropImage"]["size"]
rows = {}
for file in sys.argv[2:]:
    image = cv2.imread(file)[:, :, ::-1]
    factor = short / min(image.shape[:2])
    image = cv2.resize(image, (round(image.shape[1] * factor), round(image.shape[0] * factor)), interpolation=cv2.INTER_LINEAR)
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    image = image[top : top + size, left : left + size]
    scores = session.run(None, {"images": numpy.ascontiguousarray(image[None])})[0][0]
    rows[file] = {about["class_names"][str(i)]: float(score) for i, score in enumerate(scores)}
print(json.dumps(rows))
"""


def train(file: Path, *overrides: str) -> Any:
    trainer = ppxcls.build_trainer(ppxcls.load_config(file, list(overrides)))
    trainer.fit()
    return trainer


def config_of(path: Path, *overrides: str) -> Any:
    return ppxcls.load_config(path, list(overrides))


def rows_of(text: str) -> list[dict[str, Any]]:
    return [row for line in text.splitlines() if line.startswith("[{") for row in ast.literal_eval(line)]


def by_name(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    return {row["file_name"]: dict(zip(row["label_names"], row["scores"], strict=True)) for row in rows}


def fine_tuned(tmp_path: Path) -> tuple[Path, dict[str, int]]:
    """Fine-tunes the reference YAML as a user would. Returns the run's folder and labels by image file.

    The run has other weights, another size, other classes, and averaged weights.
    """
    data = pictures(tmp_path / "pictures", ("ant", "bee", "élan"), count=8)
    ppxcls.make_lists(data, tmp_path / "lists", val_share=0.5)
    paddle.seed(7)
    paddle.save(ppxcls.build_model("Xception41", class_num=5).state_dict(), str(tmp_path / "start.pdparams"))
    overrides = [
        "Arch.class_num=3",
        f"Global.pretrained_model={tmp_path}/start",
        "EMA.decay=0.5",
        "EMA.warmup=True",
    ]
    overrides += [
        f"Global.output_dir={tmp_path}/output",
        "Global.device=cpu",
        "Global.epochs=2",
        "Optimizer.lr.learning_rate=0.02",
    ]
    for mode, name in (("Train", "train"), ("Eval", "val")):
        overrides += [
            f"DataLoader.{mode}.dataset.image_root={data}",
            f"DataLoader.{mode}.sampler.batch_size=3",
        ]
        overrides += [f"DataLoader.{mode}.dataset.cls_label_path={tmp_path}/lists/{name}_list.txt"]
    overrides += ["DataLoader.Train.dataset.transform_ops.RandCropImage.size=71"]
    overrides += [
        f"DataLoader.Eval.dataset.transform_ops.{step}"
        for step in ("ResizeImage.resize_short=75", "CropImage.size=71")
    ]
    options = [word for override in overrides for word in ("-o", override)]
    result = run_tool(
        "tools/train.py", "-c", "configs/Xception41.yaml", *options, processes=2, log_dir=tmp_path / "log"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    index = ListIndex(tmp_path / "lists/val_list.txt")
    return tmp_path / "output/Xception41", {
        str(data / index.path(i)): int(index.labels[i]) for i in range(len(index))
    }


@pytest.mark.every_paddle
def test_one_set_of_numbers_from_training_to_a_plain_script(tmp_path: Path) -> None:
    folder, labels = fine_tuned(tmp_path)
    assert (folder / "class_names.txt").read_text(encoding="utf-8") == "0 ant\n1 bee\n2 élan\n"
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    best = max((row for row in logged if row["kind"] == "eval"), key=lambda row: (row["top1"], -row["loss"]))
    assert json.loads((folder / "best_model.json").read_text())["started_from"] == f"{tmp_path}/start"

    evaluated = run_tool("tools/eval.py", "-c", folder)
    assert evaluated.returncode == 0, evaluated.stderr
    about = (
        f"{folder}/best_model (epoch {best['epoch']}, top1 "
        f"{best['top1']:.4g}, averaged weights), 71 px bilinear from 75"
    )
    about = f"Xception41 with {about}, 3 classes: ant, bee, élan"
    assert evaluated.stdout.count(about) == 1
    results = json.loads((folder / "eval.json").read_text())
    assert (results["top1"], results["num_samples"]) == (best["top1"], 12)
    assert results["loss"] == pytest.approx(best["loss"], rel=1e-5)

    predicted = run_tool("tools/infer.py", "-c", folder, *labels)
    assert predicted.returncode == 0, predicted.stderr
    assert predicted.stderr.count(about) == 1
    assert "size: 71, and 299; short: 75, and 320" in predicted.stderr
    expected = by_name(rows_of(predicted.stdout))
    names = ["ant", "bee", "élan"]
    right = [
        max(expected[file], key=expected[file].__getitem__) == names[label] for file, label in labels.items()
    ]
    assert np.mean(right) == results["top1"]
    loss = -np.mean([np.log(expected[file][names[label]]) for file, label in labels.items()])
    assert loss == pytest.approx(results["loss"], abs=1e-3)  # the scores are rounded to 5 decimals

    def same(scores: dict[str, dict[str, float]]) -> None:
        assert scores.keys() == expected.keys()
        for file, wanted in expected.items():
            assert scores[file] == pytest.approx(wanted, abs=3e-5)

    predictions = ppxcls.load(folder).predict(list(labels))
    assert [p.error for p in predictions] == [""] * 12
    same({p.file: dict(zip(p.label_names, p.scores, strict=True)) for p in predictions})

    target = tmp_path / "inference"
    kind = "both" if HAS_ONNX else "paddle"
    exported = run_tool(
        "tools/export_model.py", "-c", folder, "-o", f"Global.save_inference_dir={target}", "--format", kind
    )
    assert exported.returncode == 0, exported.stderr
    assert exported.stdout.count(about) == 1
    files = [target, *([target / "inference.onnx"] if HAS_ONNX else [])]
    for file in files:
        again = run_tool("tools/infer.py", "--exported", file, *labels)
        assert again.returncode == 0, again.stderr
        assert f"exported from {folder}/best_model (epoch {best['epoch']}" in again.stderr
        same(by_name(rows_of(again.stdout)))
        same(
            {
                p.file: dict(zip(p.label_names, p.scores, strict=True))
                for p in ppxcls.load(file).predict(list(labels))
            }
        )
    if HAS_ONNX:
        alone = shutil.copy(target / "inference.onnx", tmp_path / "alone.onnx")
        plain = subprocess.run(
            [sys.executable, "-c", PLAIN_SCRIPT, alone, *labels], check=True, capture_output=True, text=True
        )
        same(json.loads(plain.stdout))
        same(by_name(rows_of(run_tool("tools/infer.py", "--exported", alone, *labels).stdout)))


def test_averaged_or_raw_weights(small: Callable[..., Path], tmp_path: Path) -> None:
    """Averaged weights are used unless the config or the command line says otherwise.

    They are also used as initial weights. The log reports which weights are used.
    """
    trainer = train(small(EMA={"decay": 0.9}))
    folder = tmp_path / "output/SmallNetwork"
    raw = trainer.learner.network.state_dict()["fc.weight"].numpy()
    averaged = trainer.learner.average.state_dict()["fc.weight"]
    assert not np.array_equal(raw, averaged)

    def used(*overrides: str) -> str:
        result = run_tool("tools/eval.py", "-c", folder, *[word for o in overrides for word in ("-o", o)])
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert "averaged weights)" in used()
    for raw_wish in ("EMA.use_ema=False", "EMA=null"):
        assert "raw weights)" in used(raw_wish)
    started = ppxcls.build_trainer(
        ppxcls.load_config(
            small(), [f"Global.pretrained_model={folder}/latest", "Global.output_dir=" + str(tmp_path / "b")]
        )
    )
    assert np.array_equal(started.learner.network.state_dict()["fc.weight"].numpy(), averaged)
    assert started.run.facts.started_from.endswith("averaged weights)")
    wish = [
        f"Global.pretrained_model={folder}/latest",
        "EMA.use_ema=False",
        f"Global.output_dir={tmp_path}/c",
    ]
    started = ppxcls.build_trainer(ppxcls.load_config(small(EMA={}), wish))
    assert np.array_equal(started.learner.network.state_dict()["fc.weight"].numpy(), raw)


def test_an_evaluation_of_other_weights_is_kept_apart(small: Callable[..., Path], tmp_path: Path) -> None:
    file = small()
    train(file)
    ppxcls.evaluate(ppxcls.load_config(file))
    folder = tmp_path / "output/SmallNetwork"
    own = (folder / "eval.json").read_bytes()
    paddle.save(ppxcls.build_model("SmallNetwork").state_dict(), str(tmp_path / "other.pdparams"))
    ppxcls.evaluate(ppxcls.load_config(folder, [f"Global.pretrained_model={tmp_path}/other"]))
    assert (folder / "eval.json").read_bytes() == own
    assert json.loads((folder / "eval_other.json").read_text())["weights"] == f"{tmp_path}/other"
    listed = config_of(folder).DataLoader.Train.dataset.cls_label_path
    for other in (
        f"Global.pretrained_model={folder}/epoch_1",
        f"DataLoader.Eval.dataset.cls_label_path={listed}",
    ):
        (folder / "eval_other.json").unlink()
        ppxcls.evaluate(config_of(folder, other))
        assert (folder / "eval.json").read_bytes() == own
        assert (folder / "eval_other.json").exists()


def test_which_preparation_is_used(small: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    other = [
        {"DecodeImage": {}},
        {"ResizeImage": {"resize_short": 80, "interpolation": "bicubic"}},
        {"CropImage": {"size": 60}},
        {"NormalizeImage": {"mean": [0, 0, 0], "std": [1, 1, 1], "order": ""}},
    ]
    file = small(Infer={"transforms": other}, **{"Global.image_shape": [3, 60, 60]})
    ppxcls.system.logs.logger.propagate = True
    try:
        assert transforms_for(ppxcls.load_config(file))[1].ResizeImage.resize_short == 75
        (line,) = {r.message for r in caplog.records if "prepare images differently" in r.message}
        for difference in (
            "size: 71, and 60",
            "short: 75, and 80",
            "interpolation: bilinear, and bicubic",
            "mean: ",
            "std: ",
        ):
            assert difference in line
        assert line.endswith("DataLoader.Eval's are used; -o Infer.transforms=... overrides them")
        assert (
            "Global.image_shape is [3, 60, 60], but the images "
            "are prepared as 71 x 71; the transforms take precedence" in caplog.text
        )
        caplog.clear()
        given = f"Infer.transforms={json.dumps(other)}"
        assert transforms_for(ppxcls.load_config(file, [given]))[1].ResizeImage.resize_short == 80
        assert "Infer.transforms is used" in caplog.text
        assert "image_shape" not in caplog.text
        caplog.clear()
        transforms_for(ppxcls.load_config(file, ["Infer.transforms.CropImage.size=61"]))
        assert "Infer.transforms is used" in caplog.text
    finally:
        ppxcls.system.logs.logger.propagate = False


def test_where_class_names_come_from(small: Callable[..., Path], tmp_path: Path, images: Path) -> None:
    lists = tmp_path / "lists"
    shutil.copytree(images, lists)
    own = {
        f"DataLoader.{mode}.dataset.cls_label_path": str(lists / f"{name}_list.txt")
        for mode, name in (("Train", "train"), ("Eval", "val"))
    }
    named = tmp_path / "named.txt"
    named.write_text("0 x\n1 y\n2 z\n")
    process = {"PostProcess": {"class_id_map_file": str(named)}}
    file = small(Infer=process, **own)

    def names(path: Path, overrides: Sequence[str] = (), purpose: Purpose = "infer") -> list[str]:
        return class_names_for(ppxcls.load_config(path, overrides), purpose)

    assert names(file) == ["x", "y", "z"]
    (lists / "class_names.txt").write_text("0 ant\n1 bee\n2 cat\n")
    assert names(file) == ["ant", "bee", "cat"]
    override = [f"Infer.PostProcess.class_id_map_file={named}"]
    assert names(file, override) == ["x", "y", "z"]
    train(file)
    (lists / "class_names.txt").write_text("0 dog\n1 eel\n2 fox\n")
    assert names(file) == ["ant", "bee", "cat"]
    assert names(file, purpose="train") == ["dog", "eel", "fox"], (
        "an earlier run in the folder has no say in a new one"
    )
    (lists / "class_names.txt").unlink()
    assert names(tmp_path / "output/SmallNetwork") == ["ant", "bee", "cat"]
    assert names(file, ["Global.output_dir=elsewhere", "Infer=null"]) == []
    thousand = names(file, ["Global.output_dir=elsewhere", "Arch.class_num=1000", "Infer=null"])
    assert thousand[0] == "tench, Tinca tinca"
    with pytest.raises(ppxcls.DataError, match=r"named.txt: expected the names of 4 classes, received 3$"):
        names(file, ["Global.output_dir=elsewhere", "Arch.class_num=4"])


def test_more_classes_than_labels_is_one_line(small: Callable[..., Path], tmp_path: Path) -> None:
    result = run_tool("tools/train.py", "-c", small(), "-o", "Arch.class_num=1000")
    assert result.returncode == 0, result.stderr
    line = "Arch.class_num is 1,000, but the labels of "
    assert result.stdout.count(line) == 1
    assert "end at 2: expected 3?" in result.stdout


def test_weights_from_elsewhere_that_guess_are_pointed_out(
    small: Callable[..., Path], tmp_path: Path
) -> None:
    """60 samples of 3 classes, and weights that always predict the first class: a third is correct."""
    data = tmp_path / "data"
    (data / "val").mkdir(parents=True)
    shutil.copy(pictures(tmp_path / "p", ("a",), 1) / "a/0.jpg", data / "val/0.jpg")
    (data / "val_list.txt").write_text("".join(f"val/0.jpg {i % 3}\n" for i in range(60)))
    keys = {
        "DataLoader.Eval.dataset.image_root": str(data),
        "DataLoader.Eval.dataset.cls_label_path": str(data / "val_list.txt"),
    }
    paddle.save(ppxcls.build_model("SmallNetwork").state_dict(), str(tmp_path / "w.pdparams"))
    result = run_tool("tools/eval.py", "-c", small(**keys), "-o", f"Global.pretrained_model={tmp_path}/w")
    assert result.returncode == 0, result.stderr
    assert (
        "top1 0.3333 is chance for 3 classes: the list's class order is probably not that of the weights"
        in result.stdout
    )


def test_images_of_two_shapes_in_a_batch(small: Callable[..., Path], tmp_path: Path) -> None:
    """Without a crop, images keep their shapes. Each is predicted as if it were alone."""
    steps = [{"DecodeImage": {}}, {"ResizeImage": {"resize_short": 40}}, {"NormalizeImage": {"order": ""}}]
    file = small(**{"DataLoader.Eval": None})
    train(file)
    config = ppxcls.load_config(tmp_path / "output/SmallNetwork", [f"Infer.transforms={json.dumps(steps)}"])
    predictor = ppxcls.load(config)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (50 + 10 * i, 60, 3), np.uint8) for i in range(4)]
    together = predictor.predict(images)
    assert [p.error for p in together] == [""] * 4
    for image, prediction in zip(images, together, strict=True):
        (alone,) = predictor.predict(image)
        assert alone.scores == pytest.approx(prediction.scores, abs=1e-5)


@pytest.mark.every_paddle
@pytest.mark.skipif(not HAS_ONNX, reason="onnx or onnxruntime is not installed")
def test_an_export_gives_the_same_bytes_twice(small: Callable[..., Path], tmp_path: Path) -> None:
    file = small(Infer={"infer_imgs": str(pictures(tmp_path / "p", ("a",), 2))})
    train(file)
    written = []
    for number in range(2):
        target = tmp_path / f"inference_{number}"
        result = run_tool(
            "tools/export_model.py",
            "-c",
            file,
            "-o",
            f"Global.save_inference_dir={target}",
            "--format",
            "onnx",
            is_own_process=True,
        )
        assert result.returncode == 0, result.stderr
        assert {f.name for f in target.iterdir()} == {"inference.onnx", "inference_config.json"}
        written.append((target / "inference.onnx").read_bytes())
    assert written[0] == written[1]


@pytest.mark.skipif(not HAS_ONNX, reason="onnx or onnxruntime is not installed")
def test_an_export_replaces_the_earlier_one_whole(
    small: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder never contains files of two networks, or an ONNX file with another network's metadata.

    A failed export changes nothing.
    """
    file = small(Infer={"infer_imgs": str(pictures(tmp_path / "p", ("a",), 2))})
    target = tmp_path / "inference"
    images = sorted(map(str, (tmp_path / "p/a").iterdir()))

    def scores(path: Path) -> list[float]:
        return [score for p in ppxcls.load(path).predict(images) for score in p.scores]

    def export(*formats: str, **options: Any) -> None:
        ppxcls.export(config_of(file, f"Global.save_inference_dir={target}"), formats=formats, **options)

    train(file)
    export("paddle", "onnx")
    train(file, "Global.seed=1")
    expected = scores(tmp_path / "output/SmallNetwork")
    export("onnx")
    assert {f.name for f in target.iterdir()} == {"inference.onnx", "inference_config.json"}
    for path in (target, target / "inference.onnx"):
        assert scores(path) == pytest.approx(expected, abs=3e-5)
    before = {f.name: f.read_bytes() for f in target.iterdir()}
    train(file, "Global.seed=2")
    monkeypatch.setattr("ppxcls.deploy.export._TOLERANCE", -1.0)
    with pytest.raises(ppxcls.CheckpointError, match="differs"):
        export("paddle", "onnx", softmax=False)
    assert {f.name: f.read_bytes() for f in target.iterdir()} == before


@pytest.mark.parametrize(
    "override",
    [
        "Infer.transforms=[{DecodeImage: {}}]",
        "Infer.transforms.DecodeImage.to_rgb=False",
        "Arch.class_num=3",
        "Infer.PostProcess.class_id_map_file=x",
    ],
)
def test_exported_files_refuse_what_they_can_not_follow(
    override: str, small: Callable[..., Path], tmp_path: Path
) -> None:
    data = pictures(tmp_path / "p", ("a",), 2)
    file = small(
        Infer={"infer_imgs": str(data), "transforms": [{"DecodeImage": {}}, {"ResizeImage": {"size": 71}}]}
    )
    train(file)
    ppxcls.export(
        ppxcls.load_config(file, [f"Global.save_inference_dir={tmp_path}/inference"]), formats=["paddle"]
    )
    (tmp_path / "x").write_text("0 a\n1 b\n2 c\n")
    override = override.replace("=x", f"={tmp_path}/x")
    result = run_tool("tools/infer.py", "-c", file, "--exported", tmp_path / "inference", "-o", override)
    assert result.returncode == 2
    assert (
        "exported files have their own; export again to change it, or leave out --exported" in result.stderr
    )
    kept = ["-o", "Infer.PostProcess.topk=1", "-o", "Infer.batch_size=1"]
    result = run_tool("tools/infer.py", "-c", file, "--exported", tmp_path / "inference", *kept)
    assert result.returncode == 0, result.stderr
    assert [len(row["class_ids"]) for row in rows_of(result.stdout)] == [1, 1]
