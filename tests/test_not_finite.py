"""Weights and outputs that are not finite: an error on every road, and never NaN in JSON."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ppxcls
from ppxcls.checkpoints.files import read_state, write_checkpoint, write_state
from ppxcls.checkpoints.progress import Progress, Snapshot, read_snapshot
from ppxcls.system.json_text import json_text
from tests.conftest import ROOT, run_tool

NO_OUTPUT = "the network's output has numbers that are not finite (NaN or infinity)"


@pytest.fixture
def run(small: Callable[..., Path]) -> Path:
    """The folder of a run whose weights are finite."""
    trainer = ppxcls.build_trainer(ppxcls.load_config(small()))
    trainer.fit()
    return trainer.output_dir


def with_changed_weights(run: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    state = read_state(run / "latest.pdparams")
    state = {key: value.copy() if isinstance(value, np.ndarray) else value for key, value in state.items()}
    change(state)
    file = run.parent / "changed.pdparams"
    write_state(file, state)
    return file


def set_nan(state: dict[str, Any]) -> None:
    state["fc.bias"][1] = np.nan


def set_huge(state: dict[str, Any]) -> None:
    """Finite weights whose products overflow."""
    state["fc.weight"][:] = 3e38
    state["norm.bias"][:] = 30.0


@pytest.mark.parametrize("verb", ["eval", "infer", "export", "train", "serve"])
def test_weights_that_are_not_finite_stop_every_verb(verb: str, run: Path, tmp_path: Path) -> None:
    file = with_changed_weights(run, set_nan)
    image = next(Path(run_images(run)).rglob("*.png"))
    words = {
        "eval": ["eval", "-c", run, "-o", f"Global.pretrained_model={file}"],
        "infer": ["infer", "-c", run, "-o", f"Global.pretrained_model={file}", "--format", "jsonl", image],
        "export": ["export", "-c", run, "-o", f"Global.pretrained_model={file}"],
        "train": [
            *("train", "-c", tmp_path / "config.yaml"),
            *("-o", f"Global.pretrained_model={file}", "-o", f"Global.output_dir={tmp_path}/other"),
        ],
        "serve": ["serve", run],
    }[verb]
    if verb == "serve":  # a run whose file was replaced; its manifest would notice that
        file = file.replace(run / "latest.pdparams")
        for name in ("best_model.pdparams", "best_model.json", "latest.json"):
            (run / name).unlink()
    result = run_tool(*words)
    assert result.returncode == 1, result.stdout + result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    reason = "1 of 8 tensors have values that are not finite (NaN or infinity): fc.bias"
    assert errors == [f"error: {file}: {reason}"]
    assert "nan" not in result.stdout.lower().replace("nan or infinity", "")
    assert not (tmp_path / "inference").exists()


def run_images(run: Path) -> str:
    config = ppxcls.load_config(run)
    assert config.DataLoader
    assert config.DataLoader.Train
    return str(config.DataLoader.Train.dataset["image_root"])


def test_a_checkpoint_that_is_not_finite_is_not_resumed(run: Path, small: Callable[..., Path]) -> None:
    snapshot, manifest = read_snapshot(run / "latest")
    weights = {
        key: np.array(v) if key != "StructuredToParameterName@@" else v
        for key, v in snapshot.parts[".pdparams"].items()
    }
    weights["norm._variance"][2] = np.inf
    facts = {key: value for key, value in manifest.items() if key not in ("parts", "format", "progress")}
    states = {**snapshot.parts, ".pdparams": weights}
    write_checkpoint([run.parent / "broken"], states, manifest=snapshot.manifest(facts))
    file = small(**{"Global.checkpoints": str(run.parent / "broken"), "Global.epochs": 9})
    with pytest.raises(ppxcls.CheckpointError, match=r"broken.pdparams: 1 of 8 tensors .*: norm._variance$"):
        ppxcls.build_trainer(ppxcls.load_config(file, ["Global.output_dir=" + str(run.parent / "other")]))


def test_outputs_that_overflow(run: Path, tmp_path: Path) -> None:
    file = with_changed_weights(run, set_huge)
    image = next(Path(run_images(run)).rglob("*.png"))
    predictor = ppxcls.load(ppxcls.load_config(run, [f"Global.pretrained_model={file}"]))
    (prediction,) = predictor.predict(image)
    assert prediction.error == NO_OUTPUT
    assert prediction.scores == []
    options = ("-c", run, "-o", f"Global.pretrained_model={file}")
    for kind in ("jsonl", "csv", "paddleclas"):
        result = run_tool("infer", *options, "--format", kind, image)
        assert result.returncode == 1
        assert f"{image}: {NO_OUTPUT}" in result.stderr
        assert result.stderr.splitlines()[-1].endswith("1 could not be predicted")
        assert result.stdout in ("", "file_name,rank,class_id,label_name,score\n")
    evaluation = (run / "eval.json").read_text() if (run / "eval.json").exists() else None
    result = run_tool("eval", *options)
    assert result.returncode == 1
    assert f"error: {file}: {NO_OUTPUT} for " in result.stderr
    assert not (run / "eval_other.json").exists()
    assert evaluation == ((run / "eval.json").read_text() if (run / "eval.json").exists() else None)
    result = run_tool("export", *options, "-o", f"Global.save_inference_dir={tmp_path}/inference")
    assert result.returncode == 1
    assert f"error: {file}: {NO_OUTPUT}, so nothing is written" in result.stderr


def test_the_server_answers_an_overflow_with_500_and_json(run: Path) -> None:
    testclient = pytest.importorskip("starlette.testclient")
    pytest.importorskip("httpx")
    from ppxcls.serving.app import build_app

    file = with_changed_weights(run, set_huge)
    predictor = ppxcls.load(ppxcls.load_config(run, [f"Global.pretrained_model={file}"]))
    image = next(Path(run_images(run)).rglob("*.png"))
    with testclient.TestClient(build_app(predictor)) as client:
        answer = client.post("/predict", content=image.read_bytes())
    assert answer.status_code == 500
    assert json.loads(answer.text, parse_constant=pytest.fail) == {"error": NO_OUTPUT}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, float(np.float64("nan"))])
def test_json_has_no_nan(value: float) -> None:
    text = json_text({"a": [1.5, {"b": (value, 2)}], "c": value, "d": "é"})
    assert json.loads(text, parse_constant=pytest.fail) == {"a": [1.5, {"b": [None, 2]}], "c": None, "d": "é"}
    assert json_text("é", is_ascii=True) == '"\\u00e9"'


def test_a_manifest_with_nan_is_json_and_can_be_read(run: Path) -> None:
    snapshot, manifest = read_snapshot(run / "latest")
    facts = {key: value for key, value in manifest.items() if key not in ("parts", "format", "progress")}
    best = {"metric": "loss", "value": math.nan, "epoch": 1}
    progress = Progress(epoch=2, best=best, totals={"loss": math.inf, "samples": 3.0})
    prefix = run.parent / "copy"
    write_checkpoint([prefix], snapshot.parts, manifest=Snapshot({}, progress).manifest(facts))
    json.loads(prefix.with_suffix(".json").read_text(), parse_constant=pytest.fail)
    again = read_snapshot(prefix)[0].progress
    assert again.best == {}, "any later evaluation is better"
    assert math.isnan(again.totals["loss"])
    assert again.totals["samples"] == 3.0


def test_one_function_writes_json() -> None:
    """Python's own writer writes NaN, which no other reader accepts."""
    allowed = {"system/json_text.py", "cli/device_facts.py", "tuning/build.py", "checkpoints/safe_states.py"}
    files = sorted((ROOT / "ppxcls").rglob("*.py"))
    assert len(files) > 100
    writers = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if is_call and ast.unparse(node.func) in ("json.dumps", "json.dump"):
                writers.add(file.relative_to(ROOT / "ppxcls").as_posix())
    assert writers <= allowed
