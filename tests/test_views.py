"""Test-time augmentation: the mean of probabilities over the mirror image and five crops."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ppxcls
from ppxcls.data.transforms import build_transforms
from ppxcls.data.views import parse_views, with_views
from ppxcls.system.arrays import Array
from tests.conftest import run_tool

RESIZE = {"ResizeImage": {"resize_short": 75}}
NORMALIZE = {"NormalizeImage": {"order": ""}}


def crops_by_hand(image: Array, size: int) -> list[Array]:
    """Centre, upper left, upper right, lower left, lower right."""
    height, width = image.shape[:2]
    corners = [
        ((height - size) // 2, (width - size) // 2),
        (0, 0),
        (0, width - size),
        (height - size, 0),
        (height - size, width - size),
    ]
    return [image[top : top + size, left : left + size] for top, left in corners]


def views_by_hand(tta: str) -> Callable[[Array], list[Array]]:
    """Returns a function from a resized image to its views."""

    def views(image: Array) -> list[Array]:
        parts = crops_by_hand(image, 71)
        parts = parts if "crops" in tta else parts[:1]
        return [view for part in parts for view in ([part, part[:, ::-1]] if "flip" in tta else [part])]

    return views


@pytest.mark.parametrize("tta", ["flip", "crops", "flip,crops", "crops,flip"])
def test_the_views_lie_below_each_other(tta: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (80, 91, 3)).astype(np.uint8)
    views = parse_views(tta)
    parts = views_by_hand(tta)(image)
    assert len(parts) == views.count
    for ops, is_chw in (([NORMALIZE], False), ([NORMALIZE, {"ToCHWImage": {}}], True)):
        compose, axis = with_views(build_transforms([{"CropImage": {"size": 71}}, *ops]), views)
        later = build_transforms(ops)
        expected = np.concatenate([later(part) for part in parts], axis=1 if is_chw else 0)
        assert np.array_equal(compose(image), expected)
        assert axis == (2 if is_chw else 1)


def test_a_mirror_image_without_a_crop() -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    compose, _ = with_views(build_transforms([NORMALIZE]), parse_views(["flip"]))
    normalize = build_transforms([NORMALIZE])
    assert np.array_equal(compose(image), np.concatenate([normalize(image), normalize(image[:, ::-1])]))


@pytest.mark.parametrize("tta", ["", "flips", "flip,five", [], ["crops", "x"]])
def test_other_words_are_refused(tta: str | list[str]) -> None:
    with pytest.raises(ppxcls.DataError, match="tta: expected flip, crops or flip,crops, received"):
        parse_views(tta)


def test_crops_need_a_crop() -> None:
    with pytest.raises(ppxcls.DataError, match="tta: crops need one CropImage .* received 0"):
        with_views(build_transforms([NORMALIZE]), parse_views("crops"))


@pytest.fixture
def run(small: Callable[..., Path], tmp_path: Path) -> Path:
    ppxcls.build_trainer(ppxcls.load_config(small())).fit()
    return tmp_path / "output/SmallNetwork"


@pytest.mark.parametrize("tta", ["flip", "flip,crops"])
def test_the_figures_are_those_of_averages_by_hand(
    tta: str, run: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By another way: each view is predicted alone, as a picture without any further crop."""
    plain_results = ppxcls.evaluate(ppxcls.load_config(run))
    results = ppxcls.evaluate(ppxcls.load_config(run), tta=tta)
    content = json.loads((run / "eval_tta.json").read_text())
    assert (content["tta"], content["views"]) == (tta, 10 if "crops" in tta else 2)
    assert content["top1"] == results["top1"]
    assert "tta" not in json.loads((run / "eval.json").read_text())
    assert json.loads((run / "eval.json").read_text())["loss"] == plain_results["loss"]
    lines = [line.split() for line in (images / "val_list.txt").read_text().splitlines()]
    files, labels = [str(images / name) for name, _ in lines], [int(label) for _, label in lines]
    resize = build_transforms([{"DecodeImage": {}}, RESIZE])
    single_view = ppxcls.load(
        ppxcls.load_config(run, ["DataLoader.Eval.dataset.transform_ops.ResizeImage.resize_short=71"])
    )
    probabilities = []
    for file in files:
        parts = [np.ascontiguousarray(view) for view in views_by_hand(tta)(resize(Path(file).read_bytes()))]
        scores = np.zeros((len(parts), 3))
        for row, prediction in zip(scores, single_view.predict(parts, topk=3), strict=True):
            row[prediction.class_ids] = prediction.scores
        probabilities.append(scores.mean(0))
    expected = np.array(probabilities)
    assert results["top1"] == (expected.argmax(1) == labels).mean()
    loss = -np.log(expected[np.arange(len(labels)), labels]).mean()
    assert results["loss"] == pytest.approx(loss, abs=1e-4)
    predictions = ppxcls.load(run).predict(files, topk=3, batch_size=2, tta=tta)
    for row, prediction in zip(expected, predictions, strict=True):
        assert prediction.scores == pytest.approx(row[prediction.class_ids].tolist(), abs=2e-5)


def test_the_report_and_the_plain_record_keep_them_apart(run: Path) -> None:
    pytest.importorskip("jinja2")
    config = ppxcls.load_config(run)
    plain = (run / "predictions.csv").read_bytes()
    ppxcls.evaluate(config, tta="flip")
    assert (run / "predictions.csv").read_bytes() == plain
    assert not (run / "eval.json").exists()
    assert not (run / "eval_other.json").exists()
    assert "top-1 with --tta flip" in ppxcls.report(run).read_text(encoding="utf-8")
    content = json.loads((run / "eval_tta.json").read_text())
    (run / "eval_tta.json").write_text(json.dumps({**content, "checkpoint": "0" * 64}))
    assert "--tta" not in ppxcls.report(run).read_text(encoding="utf-8"), "figures of other weights"
    (run / "eval_tta.json").write_text(json.dumps({**content, "views": "2"}))
    with pytest.raises(ppxcls.DataError, match="eval_tta.json: expected a number of views as 'views'"):
        ppxcls.report(run)


def test_images_that_judge_are_counted_with_several_views_too(
    small: Callable[..., Path], images: Path, tmp_path: Path
) -> None:
    section = {"cls_label_path": str(images / "val_list.txt")}
    config = ppxcls.load_config(small(**{"DataLoader.Test": section}))
    ppxcls.build_trainer(config).fit()
    run = ppxcls.load_config(tmp_path / "output/SmallNetwork")
    for tta, name, uses in ((None, "test", 1), ("flip", "test_tta", 2), (None, "test", 3)):
        ppxcls.evaluate(run, test=True, tta=tta)
        assert json.loads((run.run_folder / f"{name}.json").read_text())["uses"] == uses
    pytest.importorskip("jinja2")
    ppxcls.evaluate(run, tta="flip")
    page = ppxcls.report(run.run_folder).read_text(encoding="utf-8")
    assert page.count("means of 2 views, 7 images that judge") == 1
    assert page.count("means of 2 views, 7 images that chose") == 1


def test_other_images_that_judge_are_not_the_runs_own_with_several_views(
    small: Callable[..., Path], images: Path, tmp_path: Path
) -> None:
    section = {"cls_label_path": str(images / "val_list.txt")}
    ppxcls.build_trainer(ppxcls.load_config(small(**{"DataLoader.Test": section}))).fit()
    run = tmp_path / "output/SmallNetwork"
    ppxcls.evaluate(ppxcls.load_config(run), test=True, tta="flip")
    own = (run / "test_tta.json").read_bytes()
    shutil.copytree(images, tmp_path / "other")
    other = ppxcls.load_config(run, [f"DataLoader.Test.image_root={tmp_path}/other"])
    ppxcls.evaluate(other, test=True, tta="flip")
    assert (run / "test_tta.json").read_bytes() == own
    assert (run / "eval_other.json").exists()


def test_exported_files_take_the_same_views(run: Path, images: Path, tmp_path: Path) -> None:
    ppxcls.export(ppxcls.load_config(run, [f"Global.save_inference_dir={tmp_path}/exported"]), ["paddle"])
    files = sorted(map(str, (images / "val").iterdir()))
    expected = ppxcls.load(run).predict(files, topk=3, tta="flip,crops")
    answers = tmp_path / "answers.jsonl"
    words = ["--exported", tmp_path / "exported", images / "val", "--tta", "crops,flip"]
    result = run_tool("infer", *words, "--format", "jsonl", "--output", answers)
    assert result.returncode == 0, result.stderr
    assert "test-time augmentation: flip,crops, the mean of 10 views" in result.stderr
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert len(rows) == len(expected) == 7
    for row, prediction in zip(rows, expected, strict=True):
        assert row["class_ids"] == prediction.class_ids
        assert row["scores"] == pytest.approx(prediction.scores, abs=2e-5)
