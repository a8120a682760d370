"""What the page of a run shows of two classes: AUC, equal error rate, average precision and the ROC curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ppxcls.reports.curves import BLUE, GREY, ORANGE, png, pyplot, restyle
from ppxcls.reports.record import Record
from ppxcls.reports.run_files import Samples
from ppxcls.system.arrays import Array
from ppxcls.system.paths import printable
from ppxcls.train.ranking import (
    Ranking,
    average_precision,
    equal_error_rate,
    hit_rate_at,
    ranked,
    roc_area,
)

_MAX_FPRS = (0.001, 0.01, 0.1)  # rates of false alarms in the table


@dataclass(frozen=True)
class TwoClasses:
    """The ranking of the samples of two classes.

    Attributes:
        ranking: ranking by the score of the positive class.
        positive: name of the positive class.
        negative: name of the other class.
    """

    ranking: Ranking
    positive: str
    negative: str


def two_classes(record: Record, samples: Samples | None) -> TwoClasses | None:
    """Returns the ranking of the samples; None if there are not two classes with samples.

    The positive class is that of the run's metrics, or else class 1.

    Args:
        record: run.
        samples: predictions to rank; None if there are none.
    """
    if samples is None or len(record.names) != 2 or samples.runner_up_scores is None:
        return None
    positive = _positive_class(record)
    with np.errstate(divide="ignore", invalid="ignore"):  # a score may be rounded to 0
        margins = np.log(samples.scores) - np.log(samples.runner_up_scores)
    scores = np.where(samples.predicted_ids == positive, margins, -margins)
    if np.isnan(scores).any():
        return None
    ranking = ranked(scores, samples.labels == positive)
    names = [printable(record.names[i]) for i in (positive, 1 - positive)]
    return TwoClasses(ranking, *names) if ranking.has_both_classes else None


def _positive_class(record: Record) -> int:
    """Returns the id of the class that the first metric with a choice looks for; 1 if there is none."""
    for block in (record.config.Metric.Eval if record.config.Metric else None) or []:
        choice = block.arguments.get("positive")
        if choice in (0, 1):
            return int(choice)
        if choice in record.names:
            return record.names.index(choice)
    return 1


def two_class_tiles(classes: TwoClasses) -> list[tuple[str, str, str]]:
    """Returns name, value and note of the numbers for the top of the page."""
    note = f"of {classes.positive} against {classes.negative}"
    return [
        ("AUC", f"{roc_area(classes.ranking):.4f}", note),
        ("equal error rate", f"{100 * equal_error_rate(classes.ranking):.2f} %", "smaller is better"),
    ]


def roc_content(classes: TwoClasses) -> dict[str, Any]:
    """Returns the figures beside the ROC curve for the page."""
    ranking = classes.ranking
    return {
        "positive": classes.positive,
        "negative": classes.negative,
        "area": roc_area(ranking),
        "precision": average_precision(ranking),
        "equal_error_rate": equal_error_rate(ranking),
        "share": ranking.positive_count / (ranking.positive_count + ranking.negative_count),
        "rates": [(max_fpr, hit_rate_at(ranking, max_fpr)) for max_fpr in _MAX_FPRS],
    }


def draw_roc(classes: TwoClasses) -> bytes:
    """Draws the ROC curve and the point of equal errors; returns a PNG."""
    ranking = classes.ranking
    corners = _corners(ranking)
    rate = equal_error_rate(ranking)
    figure, axis = pyplot().subplots(figsize=(5, 4.6), layout="constrained")
    axis.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    axis.plot(
        ranking.false_alarms[corners] / ranking.negative_count,
        ranking.hits[corners] / ranking.positive_count,
        color=BLUE,
        linewidth=1.5,
    )
    axis.plot([rate], [1 - rate], color=ORANGE, marker="o", linestyle="none")
    axis.annotate(
        f"equal errors: {100 * rate:.2f} %",
        (rate, 1 - rate),
        xytext=(8, -12),
        textcoords="offset points",
        color=GREY,
        fontsize=9,
    )
    axis.set(
        xlabel="false positive rate",
        ylabel="true positive rate",
        xlim=(-0.01, 1.01),
        ylim=(-0.01, 1.01),
    )
    restyle(axis)
    return png(figure)


def _corners(ranking: Ranking) -> Array:
    """Returns the indices of the thresholds at which the ROC curve changes its direction."""
    hits, false_alarms = np.diff(ranking.hits), np.diff(ranking.false_alarms)
    is_straight = hits[1:] * false_alarms[:-1] == hits[:-1] * false_alarms[1:]
    return np.concatenate(([0], np.flatnonzero(~is_straight) + 1, [len(ranking.hits) - 1]))
