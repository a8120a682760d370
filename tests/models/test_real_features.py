"""Real weights and photographs in ppxcls, Keras and timm. Needs files and packages that are not in the project.

    PPXCLS_REAL_WEIGHTS=xception.keras PPXCLS_PEERS_PYTHON=PEERS/bin/python python -m pytest tests/models

PPXCLS_REAL_WEIGHTS is a file of Keras's Xception. PPXCLS_PEERS_PYTHON is an interpreter with keras,
tensorflow, timm and torch. The photographs are those of PPXCLS_SHARED.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import SHARED, load_script

WEIGHTS = os.environ.get("PPXCLS_REAL_WEIGHTS", "")
PEERS = os.environ.get("PPXCLS_PEERS_PYTHON", "")
PHOTOGRAPHS = SHARED / "photos/flowers12/test"


@pytest.mark.timeout(3600)
@pytest.mark.skipif(not WEIGHTS, reason="PPXCLS_REAL_WEIGHTS names no file of published weights")
@pytest.mark.skipif(not PEERS, reason="PPXCLS_PEERS_PYTHON names no interpreter with keras and timm")
@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="shared/photos/flowers12 is not there")
def test_features_equal_those_of_keras_and_timm() -> None:
    """Same input, four sizes and real photographs: equal to 1e-5 of the largest feature."""
    script = load_script("compare_features")
    rows = script.compare(PHOTOGRAPHS, Path(WEIGHTS), Path(PEERS))
    same_input = {kind: row for kind, row in rows.items() if kind.startswith("same input")}
    assert len(same_input) == 3
    for kind, row in same_input.items():
        assert set(row) >= {f"random {size}" for size in script.SIZES} | set(script.PREPARATIONS)
        for name, difference in row.items():
            assert difference < 1e-5, f"{kind}, {name}: {difference}"
