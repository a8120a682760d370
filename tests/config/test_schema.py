"""The JSON Schema of the YAML is current, valid, and agrees with the loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ppxcls
from ppxcls.config.yaml_values import read_yaml
from tests.conftest import ROOT, SHARED, load_script, needs_shared

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("docstring_parser")

FILE = ROOT / "docs/schema.json"
SHIPPED = sorted((ROOT / "configs").rglob("*.yaml"))
BASES = sorted((ROOT / "ppxcls/config/bases").glob("*.yaml"))


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json.loads(FILE.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def read(file: Path) -> Any:
    return read_yaml(file.read_text(encoding="utf-8"), str(file))


def test_it_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """``python scripts/write_schema.py`` writes the schema."""
    module = load_script("write_schema")
    assert FILE.read_text(encoding="utf-8") == module.text()


@pytest.mark.parametrize("file", SHIPPED + BASES, ids=lambda f: f.stem)
def test_shipped_yamls_are_valid_and_name_it(file: Path, validator: Any) -> None:
    assert [error.message for error in validator.iter_errors(read(file))] == []
    if file in SHIPPED:
        first = file.read_text().splitlines()[0]
        assert first.startswith("# yaml-language-server: $schema=")
        assert (file.parent / first.partition("=")[2]).resolve() == FILE


@needs_shared
@pytest.mark.parametrize("file", sorted((SHARED / "paddleclas-configs").glob("*.yaml")), ids=lambda f: f.stem)
def test_paddleclas_yamls_are_valid(file: Path, validator: Any) -> None:
    assert [error.message for error in validator.iter_errors(read(file))] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("Global.epochz", 3),
        ("Global.epochs", 0),
        ("Global.epochs", "many"),
        ("Global.device", 3),
        ("Globall", {}),
        ("Arch.class_nums", 7),
        ("Arch.name", "Xception42"),
        ("Arch.name", None),
        ("Optimizer.momentun", 0.9),
        ("Optimizer.lr.learning_rate", "fast"),
        ("Optimizer.lr.name", "Cosin"),
        ("Loss.Train", [{"CELos": {}}]),
        ("Loss.Train", {"CELoss": {}}),
        ("DataLoader.Train.dataset.transform_ops", [{"DecodeImage": {}}, {"RandCropImage": {"sice": 3}}]),
        ("DataLoader.Train.sampler.batch_size", -1),
        ("Metric.Eval", [{"TopkAcc": {"topk": "five"}}]),
    ],
)
def test_what_the_loader_refuses_is_refused(path: str, value: Any, validator: Any) -> None:
    config = read(ROOT / "configs/quickstart.yaml")
    *parents, last = path.split(".")
    target = config
    for key in parents:
        target = target[key]
    target[last] = value
    assert list(validator.iter_errors(config))
    with pytest.raises(ppxcls.ConfigError):
        ppxcls.load_config(config)


def test_a_yaml_with_a_base_may_leave_things_out(validator: Any) -> None:
    assert list(validator.iter_errors({"base": "photographs", "Global": {"epochs": 3}})) == []
    assert list(validator.iter_errors({"base": "photographs", "Globall": {"epochs": 3}}))
