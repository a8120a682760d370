"""The share of wrong predictions if only those with the largest scores are answered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ppxcls.system.arrays import Array


@dataclass(frozen=True)
class RiskCurve:
    """Risk over coverage (Geifman and El-Yaniv 2017, arXiv:1705.08500).

    The images are answered in the order of their scores, the largest first. Those of equal scores are
    answered in a random order, so the risk between them is its expectation.

    Attributes:
        risks: share of wrong predictions among the first 1, 2, ..., n images that are answered, float64 [n].
        scores: smallest score among them, float64 [n].
        area: mean of the risks: the area under the curve.
    """

    risks: Array
    scores: Array
    area: float

    def at(self, coverage: float) -> tuple[float, float]:
        """Returns the risk, and the smallest score that is answered.

        Args:
            coverage: share of images that are answered, above 0.
        """
        index = max(round(coverage * len(self.risks)), 1) - 1
        return float(self.risks[index]), float(self.scores[index])


def risk_curve(scores: Array, is_correct: Array) -> RiskCurve:
    """Returns the risk over the coverage.

    Args:
        scores: score of the predicted class of each image, [n], n at least 1.
        is_correct: True for each correct prediction, [n].
    """
    order = np.argsort(-scores, kind="stable")
    sorted_scores = scores[order]
    errors = np.concatenate(([0], np.cumsum(~np.asarray(is_correct, bool)[order])))
    # The last place of each score. Between two of them, the errors are spread evenly.
    ends = np.flatnonzero(np.append(np.diff(sorted_scores) != 0, True)) + 1
    counts = np.arange(1, len(scores) + 1)
    ends = np.concatenate(([0], ends))
    risks = np.interp(counts, ends, errors[ends]) / counts
    return RiskCurve(risks, sorted_scores, float(risks.mean()))
