"""Tells which network keys belong to."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Literal

WeightsSource = Literal["keras", "torch", "paddle"]  # program that wrote a file

TWINS = ("Xception", "legacy_xception")  # the same keys and shapes, but another padding of the max pools
# Keys that only one family has, with the number of the block as a group. The highest number of a block tells
# which network of the family it is.
_FAMILIES: tuple[tuple[str, dict[tuple[int, ...], str]], ...] = (
    (r"xception_(41|65)/entry_flow/block1\.", {(41,): "Xception41_deeplab", (65,): "Xception65_deeplab"}),
    (
        r"_entry_flow\._conv_(\d+)\._short\.|_middle_flow\._conv_(\d+)\.",
        {(2, 7): "Xception41", (2, 15): "Xception65", (4, 15): "Xception71"},
    ),
    (
        r"(?:^|\.)blocks\.(\d+)\.stack\.conv1\.bn_dw\.",
        {(12,): "xception41", (20,): "xception65", (22,): "xception71"},
    ),
    (r"(?:^|\.)blocks\.(\d+)\.stack\.conv2\.norm\.", {(12,): "xception41p", (20,): "xception65p"}),
)
_TWIN_PATTERN = re.compile(r"(?:^|\.)block12\.rep\.\d+\.pointwise\.weight$")


def networks_with(keys: Collection[str], source: WeightsSource) -> list[str]:
    """Returns the networks that have these keys: one, two that have the same keys, or none.

    Args:
        keys: state keys, with or without a prefix.
        source: program that wrote them.
    """
    for pattern, networks in _FAMILIES:
        expression = re.compile(pattern)
        numbers: dict[int, int] = {}  # highest number of each group
        for key in keys:
            if match := expression.search(key):
                for i, digits in enumerate(match.groups()):
                    if digits is not None and len(digits) < 4:
                        numbers[i] = max(numbers.get(i, 0), int(digits))
        if numbers:
            name = networks.get(tuple(numbers[i] for i in sorted(numbers)))
            return [name] if name else []
    if not any(map(_TWIN_PATTERN.search, keys)):
        return []
    # Files of this package don't tell where the weights came from.
    return {"keras": ["Xception"], "torch": ["legacy_xception"], "paddle": list(TWINS)}[source]
