"""Photographs and options of a ``fit`` of the small network, and what it chose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from ppxcls.fitting.plan import AllLayersChoice
from ppxcls.reports.result_files import FitStage, read_stages
from tests.fitting import networks

OPTIONS: dict[str, Any] = {"network": networks.NAME, "output": "out", "device": "cpu"}


def photographs(root: Path, counts: dict[str, int], side: int = 40) -> Path:
    """Writes folders of photographs whose colour depends on the class."""
    rng = np.random.default_rng(0)
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            image = rng.integers(0, 120, (side, side + i, 3)).astype(np.uint8)
            image[..., label % 3] += 90
            cv2.imwrite(str(root / name / f"{i}.png"), image)
    return root


def records(run: Path) -> list[FitStage]:
    """Returns the records of the stages of a run; empty if there are none."""
    content = read_stages(run / "stages.json")
    return content.stages if content else []


def chosen(run: Path) -> dict[str, bool]:
    return {stage.name: stage.is_chosen for stage in records(run)}


def only_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves no time for all layers."""
    monkeypatch.setattr(
        "ppxcls.fitting.all_layers.all_layers_choice", lambda *_, **__: AllLayersChoice(networks.SIZE, 0)
    )


def interrupted(original: Callable[..., None]) -> Callable[..., None]:
    """Returns a function that does its work and is then interrupted."""

    def function(*arguments: Any, **keys: Any) -> None:
        original(*arguments, **keys)
        raise KeyboardInterrupt

    return function
