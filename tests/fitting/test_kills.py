"""A ``fit`` with weights that is killed anywhere ends as one that was not killed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ppxcls
from ppxcls.checkpoints.files import read_state
from ppxcls.fitting import all_layers, classifiers, stage_results, training
from ppxcls.fitting.plan import AllLayersChoice
from tests.fitting import networks
from tests.fitting.small_fits import OPTIONS

pytest.importorskip("scipy")

# Function and number of its call in one command. Each kill continues the command before it, in this order.
KILLS: list[tuple[Any, str, int]] = [
    (classifiers, "compute_features", 1),
    (classifiers, "chosen_problem", 1),
    (stage_results, "write_result", 1),
    (stage_results, "write_start", 1),
    (stage_results, "write_stages", 1),
    (classifiers, "compute_features", 1),
    (all_layers, "write_start", 1),
    (all_layers, "write_start", 2),
    (training, "build_trainer", 1),
    (all_layers, "read_manifest", 1),
    (training, "build_trainer", 2),
    (stage_results, "write_result", 1),
    (stage_results, "write_stages", 1),
]


def killed_at(original: Callable[..., Any], number: int, *, is_after: bool) -> Callable[..., Any]:
    """Returns a function that is interrupted in one of its calls, after or before its work."""
    calls = []

    def function(*arguments: Any, **keys: Any) -> Any:
        calls.append(1)
        if len(calls) < number:
            return original(*arguments, **keys)
        if is_after:
            original(*arguments, **keys)
        raise KeyboardInterrupt

    return function


def content(run: Path) -> dict[str, Any]:
    """Returns what a user has in the end, without times."""
    record = json.loads((run / "stages.json").read_text())
    for stage in record["stages"]:
        del stage["seconds"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluation = json.loads((run / "eval.json").read_text())
    del evaluation["weights"], evaluation["data"]  # paths
    return {
        "stages": record["stages"],
        "rows": rows,
        "evaluation": evaluation,
        "predictions": (run / "predictions.csv").read_text(),
        "files": sorted(str(file.relative_to(run.parent)) for file in run.parent.rglob("*")),
    }


def test_a_kill_at_any_place_changes_nothing(
    weights: str,
    speeds: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {**OPTIONS, "overrides": ["Global.epochs=1"]}
    monkeypatch.setattr(
        all_layers, "all_layers_choice", lambda *_, **__: AllLayersChoice(networks.SIZE // 2, 1)
    )
    monkeypatch.setattr(stage_results, "is_better_score", lambda *_: True)
    whole_run = ppxcls.fit("photos", weights, **options)
    options["output"] = "killed"
    for owner, name, number in KILLS:
        for is_after in (False, True):
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, killed_at(getattr(owner, name), number, is_after=is_after))
                with pytest.raises(KeyboardInterrupt):
                    ppxcls.fit("photos", weights, **options)
    run = ppxcls.fit("photos", weights, **options)
    assert content(run) == content(whole_run)
    for file in ("{}/best_model.pdparams", "stages/held_out.pdparams"):
        expected = read_state(whole_run.parent / file.format(run.name))
        state = read_state(run.parent / file.format(run.name))
        for key, value in expected.items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(state[key], value, err_msg=key)
