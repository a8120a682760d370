"""Grey, RGBA and 16-bit pictures with a letterbox, from training to exported files, as a user runs it."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import ppxcls
from ppxcls.deploy.build_export import export
from tests.conftest import ROOT, SMALL_NETWORK, run_tool


def write_pictures(folder: Path, channels: int, bits: int) -> None:
    rng, dtype = np.random.default_rng(0), np.uint8 if bits == 8 else np.uint16
    for name, count in (("train", 12), ("val", 6)):
        (folder / name).mkdir(parents=True)
        lines = []
        for i in range(count):
            values = rng.integers(0, 60, (50, 44 + i % 3, channels)) + 60 * (i % 3)
            pixels = (values * (257 if bits == 16 else 1)).astype(dtype)
            cv2.imwrite(str(folder / name / f"{i}.png"), pixels)
            lines.append(f"{name}/{i}.png {i % 3}\n")
        (folder / f"{name}_list.txt").write_text("".join(lines))


def settings(folder: Path, channels: int, bits: int) -> dict[str, Any]:
    constants = {"mean": [0.5] * channels, "std": [0.25] * channels, "order": ""}
    normalize = {"NormalizeImage": {"scale": f"1.0/{(1 << bits) - 1}.0", **constants}}
    preparation = [
        {"DecodeImage": {"channels": channels, "bits": bits}},
        {"ResizeImage": {"size": 40, "keep_ratio": True, "fill_value": 9}},
    ]
    augmentation = [{"RandomRotation": {"degrees": 10}}, {"BlurImage": {}}, {"RandFlipImage": {}}]
    keys: dict[str, Any] = {
        "Arch": {"name": "SmallNetwork", "in_channels": channels},
        "DataLoader.Train.dataset.transform_ops": [*preparation, *augmentation, normalize],
        "DataLoader.Eval.dataset.transform_ops": [*preparation, normalize],
        "DataLoader.Train.loader": {"num_workers": 2, "num_processes": 1 if bits == 16 else 0},
    }
    for mode, name in (("Train", "train"), ("Eval", "val")):
        keys[f"DataLoader.{mode}.dataset.image_root"] = str(folder)
        keys[f"DataLoader.{mode}.dataset.cls_label_path"] = str(folder / f"{name}_list.txt")
    return keys


@pytest.mark.parametrize(("channels", "bits"), [(1, 8), (4, 16)])
def test_from_training_to_exported_files(
    channels: int, bits: int, small: Callable[..., Path], tmp_path: Path
) -> None:
    """A process of the loader reads the 16 bits. The report has pictures, and an export is the run itself."""
    write_pictures(tmp_path / "data", channels, bits)
    file = small(**settings(tmp_path / "data", channels, bits))
    result = run_tool("train", "-c", file)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "output/SmallNetwork"
    assert cv2.imread(str(run / "first_batch.png")).any()
    assert (run / "report.html").read_text().count("data:image/jpeg;base64,") >= 2
    config = ppxcls.load_config(run / "config.yaml", [f"Global.save_inference_dir={tmp_path / 'inference'}"])
    differences = export(config, ["paddle", "onnx"])
    assert max(differences.values()) < 1e-5
    pictures = sorted((tmp_path / "data/val").iterdir())
    with open(run / "predictions.csv", newline="") as stream:
        rows = {Path(row["file"]).name: row for row in csv.DictReader(stream)}
    arrays = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in pictures]
    if channels == 4:
        arrays = [array[:, :, [2, 1, 0, 3]] for array in arrays]
    scores = []
    for place in (run, tmp_path / "inference", tmp_path / "inference/inference.onnx"):
        predictor = ppxcls.load(place)
        assert (
            f"40 px bilinear letterbox {'grey' if channels == 1 else 'RGBA 16 bits'}" in predictor.description
        )
        for sources in (pictures, arrays):
            predictions = predictor.predict(sources, topk=3)
            assert not any(prediction.error for prediction in predictions)
            scores.append([dict(zip(p.class_ids, p.scores, strict=True)) for p in predictions])
    assert all(
        values[class_id] == pytest.approx(scores[0][i][class_id], abs=2e-5)
        for others in scores
        for i, values in enumerate(others)
        for class_id in range(3)
    )
    for path, values in zip(pictures, scores[0], strict=True):
        assert float(rows[path.name]["score"]) == pytest.approx(max(values.values()), abs=2e-5)


def test_the_yaml_of_the_page_trains(
    small: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On pictures of 16 bits, with a small network, and the page's own lists and transforms."""
    page = (ROOT / "docs/pictures.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```yaml\n(.+?)^```", page, re.MULTILINE | re.DOTALL)
    write_pictures(tmp_path / "xrays", 1, 16)
    (tmp_path / "xrays.yaml").write_text(text.replace("299", "40"))
    monkeypatch.chdir(tmp_path)
    config = ppxcls.load_config("xrays.yaml")
    assert config.Arch.in_channels == 1
    overrides = [
        "Arch={name: SmallNetwork, class_num: 3, in_channels: 1}",
        f"Global.plugins=[{SMALL_NETWORK}]",
    ]
    config = ppxcls.load_config("xrays.yaml", [*overrides, "Global.epochs=1"])
    ppxcls.build_trainer(config).fit()
    assert ppxcls.evaluate(config)["num_samples"] == 6


def test_paddlex_can_not_prepare_a_letterbox(
    small: Callable[..., Path], tmp_path: Path, new_warnings: Callable[[], list[str]]
) -> None:
    write_pictures(tmp_path / "data", 3, 8)
    file = small(**settings(tmp_path / "data", 3, 8))
    ppxcls.build_trainer(ppxcls.load_config(file)).fit()
    config = ppxcls.load_config(file, [f"Global.save_inference_dir={tmp_path / 'inference'}"])
    export(config, ["paddle"], preprocess=False)
    assert "inference.yml is not written, because PaddleX has no ResizeImage: keep_ratio" in new_warnings()
    assert not (tmp_path / "inference/inference.yml").exists()
