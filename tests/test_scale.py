"""The formulas for many GPUs against closed forms, and the page with the results."""

from __future__ import annotations

import math

import pytest

import ppxcls
from tests.conftest import ROOT, load_script

scale = load_script("scale")


def test_a_ring() -> None:
    assert scale.ring(1e9, 1, 1e9) == 0
    assert scale.ring(1e9, 2, 1e9) == 1.0
    assert scale.ring(1e9, 4, 1e9, 0.01) == pytest.approx(1.5 + 6 * 0.01)
    assert scale.ring(1e9, 10**6, 1e9) == pytest.approx(2.0, rel=1e-5)


def test_the_slowest_of_several() -> None:
    """Expected maxima of normal variables, in standard deviations.

    They are 1 / sqrt(pi) for two variables, and 3 / (2 sqrt(pi)) for three.
    """
    assert scale.slowest(1) == 1.0
    assert scale.slowest(2, 0.1, 40_000) == pytest.approx(1 + 0.1 / math.sqrt(math.pi), abs=1e-3)
    assert scale.slowest(3, 0.1, 40_000) == pytest.approx(1 + 0.15 / math.sqrt(math.pi), abs=1e-3)
    assert scale.slowest(8) < scale.slowest(512)


def test_a_step() -> None:
    alone = scale.Cluster(640.0, 1, 1)
    assert scale.step(1e6, alone) == pytest.approx(0.1)
    assert scale.efficiency(1e6, alone) == pytest.approx(1.0)
    slow = scale.Cluster(640.0, 1, 2, link=1e6)
    compute = 0.1 * scale.slowest(2)
    sent = 4e6 / 1e6 + 2 * scale.LATENCY_SECONDS
    assert scale.step(1e6, slow) == pytest.approx(compute + sent - scale.BACKWARD_SHARE * compute)
    fast = scale.Cluster(640.0, 1, 2, link=1e12)
    assert scale.step(1e6, fast) == pytest.approx(compute), "hidden behind the backward pass"


def test_the_parameters_are_the_networks() -> None:
    for name, count in scale.NETWORKS.items():
        model = ppxcls.build_model(name, class_num=1000)
        trained = sum(math.prod(p.shape) for p in model.parameters() if not p.stop_gradient)
        assert trained == pytest.approx(count, rel=1e-3), name


def test_the_page_is_current() -> None:
    page = (ROOT / "docs/scale.md").read_text(encoding="utf-8")
    assert scale.table(scale.NETWORKS["Xception41"]) in page
    assert scale.all_reduce_table() in page
