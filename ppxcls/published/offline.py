"""Tells whether the user has forbidden to ask servers."""

from __future__ import annotations

import os

_VARIABLES = ("PPXCLS_OFFLINE", "HF_HUB_OFFLINE")
_TRUE_VALUES = ("1", "on", "yes", "true")


def offline_variable() -> str | None:
    """Returns the environment variable that forbids to ask servers; None if there is none."""
    return next(
        (name for name in _VARIABLES if os.environ.get(name, "").strip().lower() in _TRUE_VALUES), None
    )
