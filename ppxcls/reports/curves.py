"""Curves of a run: each logged interval by itself, and smoothed.

Drawn with matplotlib for light and dark pages alike.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ppxcls.reports.figures import Calibration
from ppxcls.reports.record import Record

Array = np.ndarray[Any, Any]
_NO_MEANS = {
    "lr",
    "batch_cost",
    "reader_cost",
    "ips",
    "ips_total",
    "eta",
    "samples",
    "skipped",
    "kind",
    "epoch",
    "iter",
    "step",
}
GREY, BLUE, ORANGE = "#808080", "#3b82f6", "#f97316"  # readable on white and on black


def intervals(rows: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    """The figures of each logged interval by itself: lines hold the means of the epoch so far.

    Returns:
        ``step`` [n], and each mean by its name [n]. An epoch that was resumed inside begins with its means so
        far.
    """
    names = [name for name in (rows[0] if rows else {}) if name not in _NO_MEANS]
    found: dict[str, list[float]] = {name: [] for name in ("step", *names)}
    before: Mapping[str, Any] | None = None
    for row in rows:
        values = [row.get(key) for key in ("step", "samples", *names)]
        if not all(isinstance(value, int | float) for value in values):
            continue
        if before is not None and (before["epoch"] != row["epoch"] or before["samples"] >= row["samples"]):
            before = None
        seen = before["samples"] if before else 0
        found["step"].append(row["step"])
        for name in names:
            total = row[name] * row["samples"] - (before[name] * seen if before else 0.0)
            found[name].append(total / max(row["samples"] - seen, 1))
        before = row
    return {name: np.array(values, float) for name, values in found.items()}


def _metrics(record: Record) -> list[str]:
    """Names of the figures of the evaluations, the one that decides which is the best first."""
    return [name for name in (record.evaluations[0] if record.evaluations else {}) if name not in _NO_MEANS]


def smoothed(values: Array, share: float = 0.05) -> Array:
    """A centred moving mean over a share of the points, at least three."""
    half = max(int(len(values) * share / 2), 1)
    sums = np.concatenate(([0.0], np.cumsum(values)))
    ends = np.minimum(np.arange(len(values)) + half + 1, len(values))
    starts = np.maximum(np.arange(len(values)) - half, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def draw_curves(records: Sequence[Record]) -> bytes:
    """Loss, first metric, learning rate and images/s of one or more runs over the optimizer steps; a PNG."""
    plt = pyplot()
    figure, axes = plt.subplots(2, 2, figsize=(11, 6.5), layout="constrained")
    several = len(records) > 1
    for number, record in enumerate(records):
        color = f"C{number}" if several else BLUE
        found = intervals(record.train)
        loss = [name for name in found if name == "loss"]
        metric = [
            name
            for name in (*found, *_metrics(record))
            if name not in ("step", *loss) and not name.endswith("Loss")
        ][:1]
        label = record.folder.as_posix() if several else "training"
        for axis, names in ((axes[0, 0], loss), (axes[0, 1], metric)):
            for name in names:
                axis.set_title(name)
                if name in found:  # a recipe that mixes images has no training metric
                    axis.plot(found["step"], found[name], color=color, alpha=0.25, linewidth=0.8)
                    axis.plot(found["step"], smoothed(found[name]), color=color, label=label)
                points = [
                    (row["step"], row[name])
                    for row in record.evaluations
                    if isinstance(row.get(name), int | float)
                ]
                if points:
                    style = {
                        "color": color if several else ORANGE,
                        "linestyle": "--",
                        "marker": "o",
                        "markersize": 3,
                    }
                    axis.plot(*zip(*points, strict=True), label=None if several else "evaluation", **style)
        for axis, key, title in ((axes[1, 0], "lr", "learning rate"), (axes[1, 1], "ips_total", "images/s")):
            points = [
                (row["step"], row[key]) for row in record.train if isinstance(row.get(key), int | float)
            ]
            axis.set_title(title)
            if points:
                axis.plot(*zip(*points, strict=True), color=color, label=label)
    for axis in axes.flat:
        axis.set_xlabel("step")
        axis.set_ylim(bottom=0)
        restyle(axis)
    handles = axes[0, 0].get_legend_handles_labels()[0] or axes[1, 0].get_legend_handles_labels()[0]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, labelcolor=GREY)
    return png(figure)


def draw_calibration(found: Calibration) -> bytes:
    """The share of correct predictions over their mean probability; a PNG.

    The area of a point is its number of samples.
    """
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(5, 4.6), layout="constrained")
    axis.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    axis.plot(found.confidence, found.accuracy, color=BLUE, linewidth=1)
    axis.scatter(
        found.confidence,
        found.accuracy,
        s=15 + 300 * found.counts / found.counts.sum(),
        color=BLUE,
        alpha=0.7,
    )
    axis.set(
        xlabel="probability of the predicted class",
        ylabel="share of correct predictions",
        xlim=(0, 1.02),
        ylim=(0, 1.02),
    )
    restyle(axis)
    return png(figure)


def draw_balance(counts: Array, names: Sequence[str]) -> bytes:
    """Training samples by class, the largest first; a PNG."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(11, 3), layout="constrained")
    order = np.argsort(-counts, kind="stable")
    if len(counts) > 60:  # a bar for each of many classes takes minutes
        axis.fill_between(range(len(counts)), counts[order], step="mid", color=BLUE)
    else:
        axis.bar(range(len(counts)), counts[order], color=BLUE)
    if len(counts) <= 30:
        axis.set_xticks(range(len(counts)), [_plain(names[i]) for i in order], rotation=45, ha="right")
    axis.set(ylabel="training images", xlabel="" if len(counts) <= 30 else "classes, the largest first")
    restyle(axis)
    return png(figure)


def _plain(name: str) -> str:
    """A name without what matplotlib takes for a formula, or has no glyph for."""
    short = name if len(name) <= 24 else f"{name[:23]}…"
    return "".join(c if c.isprintable() else "?" for c in short).replace("$", r"\$")


def pyplot() -> Any:
    """matplotlib's pyplot, drawing into memory."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    return plt


def restyle(axis: Any) -> None:
    """Give an axis colours that are readable on white and on black."""
    axis.tick_params(colors=GREY, labelsize=8)
    for spine in axis.spines.values():
        spine.set_color(GREY)
        spine.set_linewidth(0.5)
    for text in (axis.title, axis.xaxis.label, axis.yaxis.label):
        text.set_color(GREY)
        text.set_fontsize(9)
    axis.grid(color=GREY, alpha=0.25, linewidth=0.5)


def png(figure: Any) -> bytes:
    """A figure as a PNG with a transparent background. The figure is closed."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130, transparent=True)
    pyplot().close(figure)
    return stream.getvalue()
