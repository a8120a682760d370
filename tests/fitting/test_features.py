"""Features of photographs: how many images are computed at once, and what is stored of them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ppxcls
from ppxcls.checkpoints.files import read_state
from ppxcls.fitting import features, stages
from ppxcls.fitting.features import FeatureComputer, Features, read_features
from ppxcls.train.fast_forward import FastForward
from tests.fitting.networks import SIZE, Parts
from tests.fitting.small_fits import OPTIONS, chosen, only_linear

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
        patch.setattr(stages, "compute_features", interruption)
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


@pytest.mark.parametrize(("factor", "scale"), [(1.0, 1.0), (1e6, 256.0)])
def test_large_activations_are_stored_in_two_bytes(factor: float, scale: float, tmp_path: Path) -> None:
    """65,504 is the largest number of float16. Ten times the largest activation has room."""
    values = factor * np.random.default_rng(0).random((4, 8, 5, 5)).astype(np.float32)
    store = features._ActivationStore(tmp_path, (4, 2), values)
    for copy in (0, 1):
        store.write(np.arange(4), copy, values * (1 + 8 * copy))
    activations = store.finished()
    assert activations is not None
    assert activations.dtype == np.float16
    assert store.scale == scale
    stored = Features(np.zeros((2, 4, 1)), np.zeros(4), activations, scale=store.scale)
    np.testing.assert_allclose(
        stored.inputs(np.arange(4), np.ones(4, int)), 9 * values, rtol=1e-3, atol=factor / 1e4
    )
    assert (tmp_path / "activations.npy").stat().st_size < features.activation_bytes((8, 5, 5), 8) + 1000


@pytest.mark.parametrize("has_fallocate", [True, False])
def test_a_file_of_activations_is_not_sparse(
    has_fallocate: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_fallocate:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
        monkeypatch.setattr(features, "_CHUNK_BYTES", 100_000)
    store = features._ActivationStore(tmp_path, (10, 2), np.ones((3, 8, 50, 50), np.float32))
    file = tmp_path / "activations.npy"
    assert 512 * getattr(file.stat(), "st_blocks", 1 << 20) >= file.stat().st_size
    store.write(np.arange(3), 1, np.ones((3, 8, 50, 50), np.float32))
    assert store.finished() is not None
    assert np.load(file)[:, :, 0, 0, 0].tolist() == [[0, 1]] * 3 + [[0, 0]] * 7


def test_a_full_disk_leaves_the_exit_flow_as_it_is(
    weights: str,
    speeds: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(features, "_allocate", full)
    monkeypatch.setattr("ppxcls.fitting.all_layers.all_layers_choice", lambda *_: (SIZE, 0))
    run = ppxcls.fit("photos", weights, **OPTIONS)
    assert "so the exit flow is not trained: No space left on device" in capsys.readouterr().out
    assert chosen(run) == {stages.LINEAR: True}
    assert not Path("out/stages/activations.npy").exists()
    start, state = read_state("weights.pdparams"), read_state(run / "best_model.pdparams")
    assert np.array_equal(state["conv2.weight"], start["conv2.weight"])


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
        patch.setattr(stages, "chosen_problem", interruption)
        with pytest.raises(KeyboardInterrupt):
            ppxcls.fit("photos", weights, **OPTIONS)
    stored = read_features(Path("out/stages"))
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
    note = Features(pooled, np.zeros(3), None, exact=exact).precision_note(lambda values: values)
    assert "2 photographs" in note
    assert "up to 1; 1 have the same best class" in note
    assert Features(pooled, np.zeros(3), None).precision_note(lambda values: values) == ""
