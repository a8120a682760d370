"""Puts a digest of a JSON object into the object, so that damage to it can be recognised."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ppxcls.system.json_text import json_text

SEAL_KEY = "sha256"


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries of a JSON object and, under ``sha256``, their digest."""
    plain_values = json.loads(json_text(values))
    return {**plain_values, SEAL_KEY: _digest(plain_values)}


def is_intact(values: Mapping[str, Any]) -> bool:
    """True if the digest of a JSON object is the one that the object contains."""
    return values.get(SEAL_KEY) == _digest({key: value for key, value in values.items() if key != SEAL_KEY})


def _digest(values: Mapping[str, Any]) -> str:
    # The order of the keys stays the same in a file.
    return hashlib.sha256(json_text(values, is_ascii=True).encode()).hexdigest()
