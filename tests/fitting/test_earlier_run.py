"""``fit --from RUN``: a new training of photographs that starts from an earlier run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ppxcls
from ppxcls.checkpoints.files import WEIGHTS, read_state, write_checkpoint
from tests.fitting import networks
from tests.fitting.small_fits import OPTIONS, only_linear, photographs

pytest.importorskip("scipy")


def test_a_class_is_added_and_one_is_left_out(
    weights: str,
    speeds: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    new_warnings: Callable[[], list[str]],
) -> None:
    only_linear(monkeypatch)
    first = ppxcls.fit("photos", weights, **OPTIONS)
    photographs(Path("new"), {"ant": 9, "bee": 8, "dog": 8})
    new_warnings()
    second = ppxcls.fit("new", from_run=first, output="second", device="cpu")
    (line,) = [text for text in new_warnings() if "left out" in text]
    assert line.startswith(f"2 classes of {first}/best_model have photographs; 1 are new (dog); 1 have none")
    assert "left out (cow)" in line
    assert second == Path("second") / networks.NAME
    assert ppxcls.load(second).names == ["ant", "bee", "dog"]
    state, start = read_state(second / "best_model.pdparams"), read_state(first / "best_model.pdparams")
    assert np.array_equal(state["conv1.weight"], start["conv1.weight"])
    config = ppxcls.load_config(second)
    assert config.evaluation_transforms == ppxcls.load_config(first).evaluation_transforms
    # With the photographs of the class, it is kept. A link is enough.
    Path("new/cow").symlink_to(Path("photos/cow").resolve())
    third = ppxcls.fit("new", from_run=first, output="third", device="cpu")
    assert ppxcls.load(third).names == ["ant", "bee", "cow", "dog"]
    assert not any("left out" in text for text in new_warnings())


def test_a_network_without_parts_takes_the_rows(
    weights: str,
    speeds: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    new_warnings: Callable[[], list[str]],
) -> None:
    only_linear(monkeypatch)
    first = ppxcls.fit("photos", weights, **OPTIONS)
    monkeypatch.setattr("ppxcls.fitting.stage_settings.split_network", lambda _: None)
    monkeypatch.setattr("ppxcls.fitting.settings._seconds_per_step", lambda *_: 1.0)
    photographs(Path("new"), {"ant": 4, "cow": 4, "dog": 4})
    new_warnings()
    ppxcls.fit("new", from_run=first, output="second", device="cpu", minutes=0.01)
    line = next(text for text in new_warnings() if text.startswith("the classifier of "))
    assert line.endswith(": 2 carried over (ant, cow), 1 with fresh weights (dog), 1 left out (bee)")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"from_run": "photos"}, "--from: expected the folder of a run, with best_model, received photos"),
        ({"from_run": "photos", "weights": "w"}, "expected no --weights, received 'w'"),
        ({"from_run": "photos", "network": "Xception41"}, "expected no --network, received 'Xception41'"),
    ],
)
def test_what_is_refused(arguments: dict[str, str], message: str, weights: str) -> None:
    with pytest.raises(ppxcls.DataError, match=message):
        ppxcls.fit("photos", **arguments)


@pytest.mark.parametrize(
    ("ops", "facts"),
    [
        (
            "[{DecodeImage: {channels: 1, bits: 16}}, {NormalizeImage: {scale: 1.0/65535.0}}]",
            "1 channels, 16 bits",
        ),
        ("[{DecodeImage: {channels: 4}}, {ResizeImage: {size: 32}}]", "4 channels"),
        ("[{NormalizeImage: {mean: [0.5], std: [0.5]}}]", "1 channels"),
        ("[{DecodeImage: {}}, {ResizeImage: {size: 32, keep_ratio: true}}]", "a letterbox"),
    ],
)
def test_images_that_fit_can_not_prepare_are_refused(ops: str, facts: str, weights: str) -> None:
    config = f"DataLoader: {{Eval: {{dataset: {{transform_ops: {ops}}}}}}}"
    state = read_state(weights)
    write_checkpoint([Path("run")], {WEIGHTS: state}, manifest={"config": config, "progress": {}})
    with pytest.raises(ppxcls.DataError, match=f"received those of a run with {facts}: train with"):
        ppxcls.fit("photos", "run.pdparams", **OPTIONS)
    assert not Path("out").exists()
