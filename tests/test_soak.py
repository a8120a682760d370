"""Runs ``scripts/soak.py`` for 1.5 minutes. A run of one hour is started manually."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("unshare") is None, reason="no small disk can be mounted here")
def test_a_job_under_faults_ends_as_one_without() -> None:
    command = [
        sys.executable,
        "scripts/soak.py",
        "--minutes",
        "1.5",
        "--seed",
        "4",
        "--network",
        "SmallNetwork",
        "--disk",
        "20m",
    ]
    result = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "equal to the undisturbed run, bit by bit" in result.stdout
    assert "faults in 1.5 minutes" in result.stdout
