"""The page and the recipe for users of DeepfakeBench, on made frames of videos."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

import ppxcls
from ppxcls.system.arrays import Array
from tests.conftest import ROOT, SMALL_NETWORK, run_tool

PAGE = (ROOT / "docs/deepfakebench.md").read_text(encoding="utf-8")
RECIPE = ROOT / "configs/recipes/deepfakebench.yaml"
LABELS = {"FF-real": "original_sequences/youtube", "FF-DF": "manipulated_sequences/Deepfakes"}
FRAMES = 40  # more than are taken
SMALL = [
    "Global.device=cpu",
    f"Global.plugins=[{SMALL_NETWORK}]",
    "Arch={name: SmallNetwork, class_num: 2}",
    "Global.epochs=1",
    "Optimizer.lr.learning_rate=0.01",
    *(f"DataLoader.{mode}.dataset.transform_ops.1.ResizeImage.size=32" for mode in ("Train", "Eval")),
    *(f"DataLoader.{mode}.loader.num_workers=1" for mode in ("Train", "Eval")),
]


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of noise with the layout and the JSON of DeepfakeBench, and the table that the page makes of it."""
    folder = tmp_path_factory.mktemp("deepfakebench")
    rng = np.random.default_rng(0)
    parts = {"train": ["000", "001"], "val": ["002"], "test": ["003"]}
    content: dict[str, dict[str, dict[str, dict[str, dict[str, object]]]]] = {}
    for number, (label, place) in enumerate(LABELS.items()):
        content[label] = {}
        for part, videos in parts.items():
            content[label][part] = {"c23": {}, "c40": {}}
            for video in videos:
                root = folder / f"datasets/rgb/FaceForensics++/{place}/c23/frames/{video}"
                root.mkdir(parents=True)
                paths = [root / f"{i:03d}.png" for i in range(FRAMES)]
                for path in paths:
                    image = rng.integers(0, 120, (24, 24, 3)).astype(np.uint8)
                    image[..., 0] += np.uint8(rng.integers(0, 60) + 30 * number)  # a weak sign
                    cv2.imwrite(str(path), image)
                names = [str(path.relative_to(folder)).replace("/", "\\") for path in rng.permutation(paths)]
                content[label][part]["c23"][video] = {"label": label, "frames": names}
    (folder / "FaceForensics++.json").write_text(json.dumps({"FaceForensics++": content}))
    (script,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (folder / "frames_table.py").write_text(script)
    command = [sys.executable, "frames_table.py", "FaceForensics++.json", "frames.csv"]
    subprocess.run(command, check=True, cwd=folder, timeout=60)
    return folder


def lines_of(file: Path) -> list[list[str]]:
    return [line.rsplit(" ", 1) for line in file.read_text().splitlines()]


def test_their_lists_become_ours(frames: Path) -> None:
    with open(frames / "frames.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 8 * 32
    assert {(row["label"], row["group"].split("/")[0]) for row in rows} == {("0", "FF-real"), ("1", "FF-DF")}
    first_video = [Path(row["image"]).stem for row in rows if row["group"] == "FF-real/000"]
    assert first_video == [f"{i:03d}" for i in range(32)], (
        "in the order of the frames, whatever that of the JSON"
    )
    output = frames / "lists"
    result = run_tool(
        "lists",
        frames / "frames.csv",
        "-o",
        output,
        "--group",
        "group",
        "--image-root",
        frames / "datasets/rgb",
    )
    assert result.returncode == 0, result.stderr
    assert [len(lines_of(output / f"{name}_list.txt")) for name in ("train", "val", "test")] == [128, 64, 64]
    assert all((frames / "datasets/rgb" / path).is_file() for path, _ in lines_of(output / "train_list.txt"))


def near_ties(labels: Array, scores: Array) -> Array:
    """Returns which pairs of a positive and a negative score the rounding of logits may order in either way."""
    return np.abs(scores[labels == 1][:, None] - scores[labels == 0][None]) < 1e-6


def test_the_recipe_trains_on_frames_and_its_figures_are_those_of_scikit_learn(
    frames: Path, tmp_path: Path
) -> None:
    lists = ppxcls.make_lists(
        frames / "frames.csv", tmp_path / "lists", group="group", image_root=frames / "datasets/rgb"
    )
    assert lists
    overrides = [*SMALL, f"Global.output_dir={tmp_path}/output"]
    for mode, name in (("Train", "train"), ("Eval", "val")):
        dataset = f"DataLoader.{mode}.dataset"
        overrides += [
            f"{dataset}.cls_label_path={tmp_path}/lists/{name}_list.txt",
            f"{dataset}.image_root={frames}/datasets/rgb",
        ]
    words = [word for override in overrides for word in ("-o", override)]
    result = run_tool("train", "-c", RECIPE, *words)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "output/SmallNetwork"
    results = ppxcls.evaluate(ppxcls.load_config(run))
    rows = lines_of(tmp_path / "lists/val_list.txt")
    labels = np.array([int(label) for _, label in rows])
    predictions = ppxcls.load(run).predict([str(frames / "datasets/rgb" / path) for path, _ in rows])
    scores = np.array([dict(zip(p.class_ids, p.scores, strict=True))[1] for p in predictions])
    assert 0.5 < results["AUC"] < 1
    tied_pairs = near_ties(labels, scores)
    assert abs(results["AUC"] - roc_auc_score(labels, scores)) <= tied_pairs.mean() + 1e-6
    precision = average_precision_score(labels, scores)
    assert abs(results["AveragePrecision"] - precision) <= tied_pairs.sum() / labels.sum() + 1e-6
    false_alarms, recalls, _ = roc_curve(labels, scores, drop_intermediate=False)
    gaps = np.abs(1 - recalls - false_alarms)
    nearest = int(np.argmin(gaps))
    tolerance = gaps[nearest] + tied_pairs.sum() / labels.sum() + 1e-6
    assert abs(results["EER"] - false_alarms[nearest]) <= tolerance, "theirs, at the nearest threshold"


def test_the_recipe_has_their_values() -> None:
    """The values of their YAML that a model depends on most."""
    config = ppxcls.load_config(RECIPE)
    train, optimizer = config.DataLoader.Train, config.Optimizer
    ops = {name: dict(op) for block in train.dataset.transform_ops for name, op in dict(block).items()}
    assert (train.sampler.batch_size, config.Global.epochs, config.Global.seed) == (32, 10, 1024)
    assert (optimizer.name, optimizer.lr.learning_rate, optimizer.regularizer.coeff) == ("Adam", 2e-4, 5e-4)
    assert (optimizer.beta1, optimizer.beta2, optimizer.epsilon) == (0.9, 0.999, 1e-8)
    assert ops["ResizeImage"] == {"size": 256, "interpolation": "bicubic"}
    assert (ops["ImageCompression"]["quality_lower"], ops["ImageCompression"]["quality_upper"]) == (40, 100)
    assert ops["NormalizeImage"]["mean"] == ops["NormalizeImage"]["std"] == [0.5, 0.5, 0.5]
    assert config.Global.best_metric == "AUC"


@pytest.mark.parametrize("piece", sorted(set(re.findall(r"`((?:Arch|Optimizer): \{[^`]+\})`", PAGE))))
def test_the_yaml_of_the_table_is_valid(piece: str) -> None:
    config = yaml.safe_load(piece)
    ppxcls.load_config({"base": str(RECIPE), **config})


def test_their_own_yaml_is_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "xception.yaml"
    file.write_text("pretrained: ./xception-b5690688.pth\nmodel_name: xception\nnEpochs: 10\n")
    with pytest.raises(ppxcls.ConfigError) as error:
        ppxcls.load_config(file)
    assert "unknown key 'pretrained'; allowed: Arch, Global" in str(error.value)
