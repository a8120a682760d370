"""One data set from its table to an answer over HTTP, with all that unbalanced and grouped images need at once.

It is trained in two processes, killed, and resumed to the bits of a run that was not killed.
"""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from sklearn.metrics import roc_auc_score, roc_curve

import ppxcls
from ppxcls.checkpoints.files import read_manifest, read_state
from ppxcls.system.arrays import Array
from tests.conftest import SMALL_NETWORK, run_tool, small_config
from tests.test_resume import TIMES

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

PATIENTS, IMAGES = 24, 8  # images of each patient
EPOCHS, KILLED_STEP = 12, 12  # a checkpoint is written every second step, and an epoch has eight
# Kills the first process once, in the middle of an epoch, as a machine that goes down.
TRACKER = '''
import os
import signal
from pathlib import Path

import ppxcls


@ppxcls.TRACKERS.register
class KillOnce(ppxcls.Tracker):
    """Kills the process at a step, unless a file exists, which it creates."""

    def __init__(self, file: str, step: int) -> None:
        self.mark, self.step = file, step

    def log(self, kind: str, place: dict, figures: dict) -> None:
        if kind == "train" and place["step"] == self.step and not os.path.exists(self.mark):
            Path(self.mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
'''


def write_table(folder: Path) -> Path:
    """Writes the images of patients, of whom a quarter is ill, and their table."""
    rng = np.random.default_rng(0)
    rows = ["path,diagnosis,patient"]
    (folder / "images").mkdir()
    for patient in range(PATIENTS):
        is_ill = patient % 4 == 0
        for i in range(IMAGES):
            image = rng.integers(0, 60, (32, 32, 3)).astype(np.uint8)
            image[..., 2] += np.uint8(rng.integers(0, 80) + 40 * is_ill)
            name = f"images/{patient}_{i}.png"
            cv2.imwrite(str(folder / name), image)
            rows.append(f"{name},{'ill' if is_ill else 'healthy'},{patient}")
    (folder / "table.csv").write_text("\n".join(rows))
    return folder / "table.csv"


def write_lists(table: Path) -> Path:
    """Runs ``ppxcls lists``, and checks that no patient is on both sides."""
    folder = table.parent / "lists"
    words = ["--image", "path", "--label", "diagnosis", "--group", "patient", "--val-share", "0.34"]
    result = run_tool("lists", table, "-o", folder, *words)
    assert result.returncode == 0, result.stderr
    names = ("train_list.txt", "val_list.txt")
    sides = [
        {Path(line.split()[0]).name for line in (folder / name).read_text().splitlines()} for name in names
    ]
    patients = [{file.split("_")[0] for file in side} for side in sides]
    assert not patients[0] & patients[1]
    assert sum(map(len, sides)) == PATIENTS * IMAGES
    assert (folder / "groups.csv").is_file()
    return folder


def write_config(lists: Path) -> Path:
    folder = lists.parent
    keys = {
        "Arch": {"name": "SmallNetwork", "class_num": 2},
        "Loss": {"Train": [{"CELoss": {"class_weight": "balanced"}}], "Eval": [{"CELoss": {}}]},
        "Optimizer.lr": {"name": "ConstLR", "learning_rate": 0.05},
        "Metric": {"Eval": [{"TopkAcc": {"topk": [1]}}, {"AUC": {"positive": "ill"}}, {"EER": {}}]},
    }
    config = small_config(folder, folder / "output", **keys)
    config["Global"] |= {"epochs": EPOCHS, "best_metric": "AUC", "early_stop": {"patience": 2}}
    config["Global"] |= {"checkpoints": "auto", "save_interval_steps": 2}
    config["Global"]["plugins"] = [SMALL_NETWORK, str(folder / "kill_once.py")]
    for mode, name in (("Train", "train"), ("Eval", "val")):
        config["DataLoader"][mode]["dataset"]["cls_label_path"] = str(lists / f"{name}_list.txt")
        config["DataLoader"][mode]["sampler"]["batch_size"] = 8
    (folder / "kill_once.py").write_text(TRACKER)
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def train(config: Path, name: str) -> subprocess.CompletedProcess[str]:
    """Trains in two processes into ``output/NAME``. The first start is killed unless ``NAME.mark`` exists."""
    folder = config.parent
    tracker = f"[{{KillOnce: {{file: {folder}/{name}.mark, step: {KILLED_STEP}}}}}]"
    overrides = [f"Global.output_dir={folder}/{name}", f"Global.trackers={tracker}"]
    words = [word for text in overrides for word in ("-o", text)]
    return run_tool(
        "tools/train.py", "--trust", "-c", config, *words, processes=2, log_dir=folder / f"{name}_log"
    )


def figures(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def check_same_bits(whole: Path, resumed: Path) -> None:
    for name in ("latest.pdparams", "latest.pdopt", "best_model.pdparams"):
        states = [read_state(run / name) for run in (whole, resumed)]
        arrays = [[v for v in state.values() if isinstance(v, np.ndarray)] for state in states]
        assert len(arrays[0]) > 3
        assert all(np.array_equal(*pair) for pair in zip(*arrays, strict=True)), name
    assert figures(whole) == figures(resumed)
    assert (whole / "calibration.json").read_bytes() == (resumed / "calibration.json").read_bytes()
    progress = [read_manifest(run / "latest")["progress"] for run in (whole, resumed)]
    for values in progress:
        del values["started"]
    assert progress[0] == progress[1]
    starts = (resumed / "starts.jsonl").read_text().splitlines()
    assert [json.loads(line)["processes"] for line in starts] == ["2", "2"]


def check_training(run: Path) -> None:
    """It has stopped early, with weights of the classes, and AUC has chosen the best model."""
    progress = read_manifest(run / "latest")["progress"]
    assert progress["epoch"] - 1 < EPOCHS
    assert progress["best"]["metric"] == "AUC"
    assert progress["stale_evaluations"] == 2
    log = (run / "train.log").read_text()
    assert "CELoss: class weights from" in log
    assert "Resumed " in log


def scores_of(run: Path, *overrides: str) -> tuple[Array, Array, list[str]]:
    """Returns whether each evaluation image is ill, its score for that, and its patient."""
    folder = run.parents[1]
    rows = [line.rsplit(" ", 1) for line in (folder / "lists/val_list.txt").read_text().splitlines()]
    predictor = ppxcls.load(ppxcls.load_config(run, list(overrides)))
    predictions = predictor.predict([str(folder / path) for path, _ in rows])
    scores = [dict(zip(p.class_ids, p.scores, strict=True))[1] for p in predictions]
    patients = [Path(path).name.split("_")[0] for path, _ in rows]
    return np.array([label == "1" for _, label in rows]), np.array(scores), patients


def tied_share(is_ill: Array, scores: Array) -> float:
    """Returns the share of pairs that the rounding of logits may order in either way."""
    return float(np.mean(np.abs(scores[is_ill][:, None] - scores[~is_ill][None]) < 1e-6))


def check_figures(run: Path) -> None:
    """``eval`` gives the figures of the training, and they are scikit-learn's."""
    result = run_tool("eval", "-c", run)
    assert result.returncode == 0, result.stderr
    results = json.loads((run / "eval.json").read_text())
    is_ill, scores, _ = scores_of(run)
    assert results["AUC"] == pytest.approx(
        roc_auc_score(is_ill, scores), abs=1e-6 + tied_share(is_ill, scores)
    )
    assert results["AUC"] == read_manifest(run / "best_model")["progress"]["best"]["value"]
    false_alarms, recalls, _ = roc_curve(is_ill, scores)
    gaps = np.abs(1 - recalls - false_alarms)
    assert abs(results["EER"] - false_alarms[gaps.argmin()]) <= gaps.min() + 1e-6


def check_groups(run: Path) -> None:
    """The figures of patients are scikit-learn's, of the means of their images' scores."""
    results = json.loads((run / "eval.json").read_text())
    is_ill, scores, patients = scores_of(run, "Global.calibrate=False")
    names = sorted(set(patients))
    rows = [np.array(patients) == name for name in names]
    labels, means = (np.array([values[row].mean() for row in rows]) for values in (is_ill, scores))
    tolerance = 1e-6 + tied_share(labels == 1, means)
    assert results["num_groups"] == len(names)
    assert results["group_AUC"] == pytest.approx(roc_auc_score(labels, means), abs=tolerance)


def check_certainty(run: Path) -> None:
    """As many images are turned away, and as many sets have the true class, as the ranks of the limits say."""
    record = json.loads((run / "calibration.json").read_text())
    is_ill, _, _ = scores_of(run)
    count = len(is_ill)
    assert record["images"] == count
    assert record["temperature"] > 0
    folder = run.parents[1]
    lines = (folder / "lists/val_list.txt").read_text().splitlines()
    images = [folder / line.rsplit(" ", 1)[0] for line in lines]
    output = folder / "answers.jsonl"
    words = ["--format", "jsonl", "--output", output, "--unknown", "0.05", "--coverage", "0.9"]
    result = run_tool("infer", "-c", run, *images, *words)
    assert result.returncode == 0, result.stderr
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    known_rank, set_rank = (math.ceil((count + 1) * share) for share in (0.95, 0.9))
    assert sum(answer["known"] for answer in answers) == known_rank
    has_label = [int(label) in answer["class_set"] for label, answer in zip(is_ill, answers, strict=True)]
    assert sum(has_label) == set_rank


def check_repeated(run: Path) -> None:
    """Two processes repeat the end of the run to the bit. One process has other steps, and says so."""
    words = ["launch", "--nproc_per_node", "2", "--log_dir", run.parents[1] / "verify_log"]
    result = run_tool(*words, "verify", run, "--steps", "0")
    assert result.returncode == 0, result.stdout + result.stderr
    output = (run.parents[1] / "verify_log/workerlog.0").read_text()
    assert "same bits: " in output
    with pytest.raises(
        ppxcls.VerificationError, match="16 images a step in 2 processes, .*--nproc_per_node 2"
    ):
        ppxcls.verify(run)


def check_answers(run: Path) -> None:
    """The exported files answer over HTTP as the run predicts."""
    from tests.serving.test_serve import Server

    exported = run.parents[1] / "exported"
    result = run_tool(
        "export", "-c", run, "--format", "paddle", "-o", f"Global.save_inference_dir={exported}"
    )
    assert result.returncode == 0, result.stderr
    record = json.loads((exported / "inference_config.json").read_text())["calibration"]
    assert record["temperature"] == json.loads((run / "calibration.json").read_text())["temperature"]
    images = sorted((run.parents[1] / "images").glob("0_*.png"))
    (expected, *_) = ppxcls.load(run).predict([str(images[0])])
    server = Server(exported)
    try:
        status, text = server.ask(images[0].read_bytes())
    finally:
        server.process.kill()
        server.process.communicate()
    assert status == 200
    answer = json.loads(text)
    assert answer["label_names"] == expected.label_names == ["ill", "healthy"]
    assert answer["scores"] == pytest.approx(expected.scores, abs=1e-4)


def test_from_a_table_to_an_answer(tmp_path: Path) -> None:
    config = write_config(write_lists(write_table(tmp_path)))
    (tmp_path / "whole.mark").touch()
    whole, resumed = (tmp_path / f"{name}/SmallNetwork" for name in ("whole", "killed"))
    results = [train(config, name) for name in ("whole", "killed", "killed")]
    assert [result.returncode == 0 for result in results] == [True, False, True], results[-1].stdout
    check_same_bits(whole, resumed)
    check_training(resumed)
    check_figures(resumed)
    check_groups(resumed)
    check_certainty(resumed)
    check_repeated(resumed)
    check_answers(resumed)
