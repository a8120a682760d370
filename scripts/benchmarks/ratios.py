"""Prints comparisons as lines of text and, under ``all.py``, writes them as rows of JSON."""

from __future__ import annotations

import json
import os
import sys

ROWS = "PPXCLS_RATIOS"  # environment variable with the path of the rows that all.py reads


def untuned() -> dict[str, str]:
    """Returns the environment without ppxcls's CPU settings, for a process that measures the other side."""
    from ppxcls.system.environment import CPU_VARIABLES  # imported here, because ppxcls sets them

    return {key: value for key, value in os.environ.items() if key not in CPU_VARIABLES}


def compare(title: str, peer: str, ours: float, theirs: float, unit: str) -> None:
    """Prints how many times as fast ours is as the peer.

    Args:
        title: description of the measurement.
        peer: name of the other side.
        ours: median of our side.
        theirs: median of the peer.
        unit: unit of both medians. A unit that ends in ``/s`` is a rate. Any other is a time or a size, for
            which smaller is better.
    """
    ratio = ours / theirs if unit.endswith("/s") else theirs / ours
    print(f"{title:46} {ratio:6.2f}x {peer} ({ours:.4g} against {theirs:.4g} {unit})", flush=True)
    if ROWS in os.environ:
        row = {"benchmark": os.path.basename(sys.argv[0]), "what": title, "peer": peer, "ratio": ratio}
        with open(os.environ[ROWS], "a", encoding="utf-8") as file:
            file.write(json.dumps({**row, "ours": ours, "theirs": theirs, "unit": unit}) + "\n")
