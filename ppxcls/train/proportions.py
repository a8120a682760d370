"""Proportions of samples, with confidence intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Proportion:
    """A proportion of samples, with its 95 % confidence interval.

    Attributes:
        value: the proportion, from 0 to 1.
        low, high: ends of the interval, from 0 to 1.
    """

    value: float
    low: float
    high: float


def proportion(hits: int, count: int) -> Proportion:
    """Returns a proportion and its confidence interval.

    The interval is Wilson's score interval (Wilson 1927, doi:10.1080/01621459.1927.10502953) at 95 %.
    """
    z, p = 1.959963984540054, hits / count
    center = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return Proportion(p, max(center - half, 0.0), min(center + half, 1.0))
