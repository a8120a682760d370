"""Tests of ``fit`` find no published weights on this machine. Fixtures of the stages with a small network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from paddle import nn

import ppxcls
from ppxcls.fitting import all_layers, features, folder, plan
from ppxcls.models.weights import save_weights
from tests.fitting import networks
from tests.fitting.small_fits import photographs
from tests.published.conftest import VARIABLES


@pytest.fixture(autouse=True, scope="package")
def _no_published_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(folder))
        patch.setenv("PPXCLS_OFFLINE", "1")
        patch.setenv("PPXCLS_CACHE", str(folder / "cache"))
        yield


@pytest.fixture(autouse=True, scope="package")
def _registered_network() -> Iterator[None]:
    with networks.registered_network():
        yield


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Weights of the small network with another classifier. The current folder has the photographs.

    They are easy, so that the linear classifier finds them all. All layers are trained nevertheless.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(all_layers, "_HIGH_RECALL", 2.0)
    monkeypatch.setattr(folder, "judge", lambda *_, **__: None)
    photographs(tmp_path / "photos", {"ant": 12, "bee": 10, "cow": 8})
    save_weights(ppxcls.build_model(networks.NAME, class_num=5), tmp_path / "weights.pdparams")
    return "weights.pdparams"


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Returns a function that sets the times of this machine, in seconds for an image."""

    def set_speeds(feature: float = 1e-4, step: float = 1e-4) -> None:
        def measured(computer: features.FeatureComputer, images: np.ndarray, _: nn.Layer) -> plan.Speeds:
            computer(images)
            return plan.Speeds(size=images.shape[-1], feature=feature, step=step)

        monkeypatch.setattr("ppxcls.fitting.stage_settings.measured_speeds", measured)

    set_speeds()
    return set_speeds
