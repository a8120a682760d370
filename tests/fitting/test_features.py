"""Features of photographs: how many images are computed at once, and what is stored of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ppxcls
from ppxcls.fitting import classifiers
from ppxcls.fitting.features import FeatureComputer, Features, read_features
from ppxcls.train.fast_forward import FastForward
from tests.fitting.networks import SIZE, Parts
from tests.fitting.small_fits import OPTIONS, only_linear

pytest.importorskip("scipy")


def test_a_run_has_no_empty_places_but_the_last(
    weights: str, speeds: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program always gets the same number of inputs. So the batches of the loader have this number."""
    runs: list[tuple[int, int]] = []
    original = FastForward._run_at_once

    def counted(forward: FastForward, inputs: np.ndarray) -> Any:
        runs.append((len(inputs), forward._at_once))
        return original(forward, inputs)

    monkeypatch.setattr(FastForward, "_run_at_once", counted)
    only_linear(monkeypatch)
    ppxcls.fit("photos", weights, **OPTIONS)
    assert runs
    assert sum(size for _, size in runs) <= 1.2 * sum(count for count, _ in runs), runs


@pytest.mark.parametrize("count", [1, 7, 8, 9, 100, 720])
@pytest.mark.parametrize("size", [71, 128, 160, 224, 299, 600])
def test_batches_are_equal_and_not_too_large(count: int, size: int) -> None:
    number = FeatureComputer(Parts(3), count).images_at_once(size)
    assert 1 <= number <= count
    assert number * size**2 <= 8 * 299**2 or number == 1
    batches = -(-count // number)
    assert batches * number - count < batches, "less than one empty place for each batch"


def test_a_resumed_fit_decides_about_the_precision_as_before(
    weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first images decide. They are photographs, and the same ones after an interruption."""
    decided: list[np.ndarray] = []
    monkeypatch.setattr(FastForward, "_decide", lambda _, inputs: decided.append(inputs))
    only_linear(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(classifiers, "compute_features", interruption)
        with pytest.raises(KeyboardInterrupt):
            ppxcls.fit("photos", weights, **OPTIONS)
    count = len(decided)
    ppxcls.fit("photos", weights, **OPTIONS)
    assert count == 2, "trunk and exit flow"
    assert [inputs.shape[0] for inputs in decided] == [8] * 4
    for first, second in zip(decided[:2], decided[2:], strict=True):
        np.testing.assert_array_equal(first, second)


def interruption(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_features_in_bfloat16_are_compared_with_float32(
    weights: str,
    speeds: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The outputs of both parts get an error of 1 %, as bfloat16 may have."""

    def compiled(forward: FastForward, inputs: np.ndarray) -> Any:
        forward.kind = "bfloat16"
        return 1.01 * forward._plain(inputs)

    monkeypatch.setattr(FastForward, "_run_at_once", compiled)
    only_linear(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(classifiers, "chosen_problem", interruption)
        with pytest.raises(KeyboardInterrupt):
            ppxcls.fit("photos", weights, **OPTIONS)
    assert read_features(Path("out/stages"), SIZE + 1) is None, "those of another size"
    stored = read_features(Path("out/stages"), SIZE)
    assert stored is not None
    assert stored.exact is not None
    np.testing.assert_allclose(1.01**2 * stored.exact, stored.pooled[0, -8:], rtol=0.02, atol=0.02)
    ppxcls.fit("photos", weights, **OPTIONS)
    line = next(line for line in capsys.readouterr().out.splitlines() if "features in bfloat16" in line)
    assert "the logits of 8 photographs differ from those in float32 by up to 0." in line
    assert line.endswith("8 have the same best class")


def test_precision_note_counts_photographs() -> None:
    exact = np.array([[1.0, 0.0], [0.0, 1.0]])
    pooled = np.array([[[9.0, 9.0], [1.5, 0.0], [0.1, 0.0]]])
    note = Features(pooled, np.zeros(3), exact=exact).precision_note(lambda values: values)
    assert "2 photographs" in note
    assert "up to 1; 1 have the same best class" in note
    assert Features(pooled, np.zeros(3)).precision_note(lambda values: values) == ""
