"""Draws the curves of a run: the values of each logged interval, and smoothed values.

matplotlib draws them for light and dark pages alike.
"""

from __future__ import annotations

import io
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ppxcls.reports import BALANCE
from ppxcls.reports.figures import Calibration
from ppxcls.reports.fonts import fonts_for, report_missing
from ppxcls.reports.record import Record
from ppxcls.system.arrays import Array

_KEYS_WITHOUT_MEANS = {
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
Form = Literal["png", "svg"]
_MAX_PATH_COLUMNS = 120  # width of a run's path in the legend
_MAX_NAMED_CLASSES = 30  # classes with their names in the picture of the balance
GREY, BLUE, ORANGE = "#808080", "#3b82f6", "#f97316"  # readable on white and on black


def intervals(rows: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    """Returns the metrics of each single logged interval.

    The log lines contain means over the epoch so far, and this function undoes the averaging.

    Returns:
        ``step`` [n], and each metric by its name [n]. If an epoch was resumed in the middle, its first value
        is the mean of the epoch so far.
    """
    names = [name for name in (rows[0] if rows else {}) if name not in _KEYS_WITHOUT_MEANS]
    columns: dict[str, list[float]] = {name: [] for name in ("step", *names)}
    previous: Mapping[str, Any] | None = None
    for row in rows:
        values = [row.get(key) for key in ("step", "samples", *names)]
        if not all(isinstance(value, int | float) for value in values):
            continue
        if previous is not None and (
            previous["epoch"] != row["epoch"] or previous["samples"] >= row["samples"]
        ):
            previous = None
        previous_samples = previous["samples"] if previous else 0
        columns["step"].append(row["step"])
        for name in names:
            total = row[name] * row["samples"] - (previous[name] * previous_samples if previous else 0.0)
            columns[name].append(total / max(row["samples"] - previous_samples, 1))
        previous = row
    return {name: np.array(values, float) for name, values in columns.items()}


def _metric_names(record: Record) -> list[str]:
    """Returns the names of the evaluation metrics. The first one decides which checkpoint is the best."""
    return [
        name
        for name in (record.evaluations[0] if record.evaluations else {})
        if name not in _KEYS_WITHOUT_MEANS
    ]


def smoothed(values: Array, share: float = 0.05) -> Array:
    """Returns a centred moving mean over a fraction of the points, at least three points."""
    half_width = max(int(len(values) * share / 2), 1)
    sums = np.concatenate(([0.0], np.cumsum(values)))
    ends = np.minimum(np.arange(len(values)) + half_width + 1, len(values))
    starts = np.maximum(np.arange(len(values)) - half_width, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def draw_curves(records: Sequence[Record]) -> bytes:
    """Draws the curves of one or more runs over the optimizer steps; returns a PNG.

    The curves are loss, first metric, learning rate and images/s. A run with characters in its path that no
    installed font has is given by its number.
    """
    labels = ["training"]
    if len(records) > 1:
        labels = [plot_label(record.folder.as_posix(), _MAX_PATH_COLUMNS) for record in records]
    metric_names = [name for record in records for name in (*intervals(record.train), *_metric_names(record))]
    with fonts_for([*labels, *metric_names]) as missing_characters:
        if any(missing_characters & set(label) for label in labels):
            report_missing("the legend", missing_characters)
            labels = [
                f"run {number}" if missing_characters & set(label) else label
                for number, label in enumerate(labels, 1)
            ]
        return _draw_curves(records, labels)


def _draw_curves(records: Sequence[Record], labels: Sequence[str]) -> bytes:
    plt = pyplot()
    figure, axes = plt.subplots(2, 2, figsize=(11, 6.5), layout="constrained")
    is_comparison = len(records) > 1
    for number, record in enumerate(records):
        color = f"C{number}" if is_comparison else BLUE
        columns = intervals(record.train)
        loss_names = [name for name in columns if name == "loss"]
        metric_names = [
            name
            for name in (*columns, *_metric_names(record))
            if name not in ("step", *loss_names) and not name.endswith("Loss")
        ][:1]
        label = labels[number]
        for axis, names in ((axes[0, 0], loss_names), (axes[0, 1], metric_names)):
            for name in names:
                axis.set_title(name)
                if name in columns:  # a recipe that mixes images has no training metric
                    axis.plot(columns["step"], columns[name], color=color, alpha=0.25, linewidth=0.8)
                    axis.plot(columns["step"], smoothed(columns[name]), color=color, label=label)
                points = [
                    (row["step"], row[name])
                    for row in record.evaluations
                    if isinstance(row.get(name), int | float)
                ]
                if points:
                    style = {
                        "color": color if is_comparison else ORANGE,
                        "linestyle": "--",
                        "marker": "o",
                        "markersize": 3,
                    }
                    axis.plot(
                        *zip(*points, strict=True), label=None if is_comparison else "evaluation", **style
                    )
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


def draw_calibration(calibration: Calibration) -> bytes:
    """Draws the share of correct predictions over their mean probability; returns a PNG.

    The area of a point shows its number of samples.
    """
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(5, 4.6), layout="constrained")
    axis.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    axis.plot(calibration.confidence, calibration.accuracy, color=BLUE, linewidth=1)
    axis.scatter(
        calibration.confidence,
        calibration.accuracy,
        s=15 + 300 * calibration.counts / calibration.counts.sum(),
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


def draw_balance(counts: Array, names: Sequence[str], form: Form = "png") -> bytes:
    """Draws the number of training samples by class, the largest first.

    A name with characters that no installed font has is replaced by ``class`` and its id. An SVG keeps all
    names as text, because the reader's program has its own fonts.

    Args:
        counts: number of samples of each class, [class_num].
        names: names of the classes.
        form: format of the result.
    """
    has_names = len(counts) <= _MAX_NAMED_CLASSES
    labels = [plot_label(name) for name in names] if has_names else []
    plt = pyplot()
    with fonts_for(labels) as missing_characters:
        figure, axis = plt.subplots(figsize=(11, 3), layout="constrained")
        order = np.argsort(-counts, kind="stable")
        if len(counts) > 60:  # drawing a bar for each of many classes takes minutes
            axis.fill_between(range(len(counts)), counts[order], step="mid", color=BLUE)
        else:
            axis.bar(range(len(counts)), counts[order], color=BLUE)
        if has_names:
            if form == "png":
                report_missing(BALANCE, missing_characters)
                labels = [
                    f"class {i}" if missing_characters & set(label) else label
                    for i, label in enumerate(labels)
                ]
            axis.set_xticks(range(len(counts)), [labels[i] for i in order], rotation=45, ha="right")
        axis.set(ylabel="training images", xlabel="" if has_names else "classes, the largest first")
        restyle(axis)
        return picture(figure, form)


def has_missing_characters(names: Sequence[str]) -> bool:
    """True if ``draw_balance`` replaces names in a PNG, because no installed font has their characters."""
    if len(names) > _MAX_NAMED_CLASSES:
        return False
    with fonts_for([plot_label(name) for name in names]) as missing_characters:
        return bool(missing_characters)


def plot_label(name: str, max_columns: int = 24) -> str:
    """Returns a name that matplotlib can draw, shortened if it is too long.

    matplotlib reads ``$`` as the start of a formula, and it has no glyphs for unprintable characters.

    Args:
        name: name of a class or a run.
        max_columns: largest width. A Chinese character is two columns wide.
    """
    widths = np.cumsum([2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in name])
    if len(widths) and widths[-1] > max_columns:
        name = f"{name[: int((widths < max_columns).sum())]}…"
    return "".join(c if c.isprintable() else "?" for c in name).replace("$", r"\$")


def pyplot() -> Any:
    """Returns matplotlib's pyplot, which then draws into memory."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    return plt


def restyle(axis: Any) -> None:
    """Sets the colours of an axis; they are readable on white and on black."""
    axis.tick_params(colors=GREY, labelsize=8)
    for spine in axis.spines.values():
        spine.set_color(GREY)
        spine.set_linewidth(0.5)
    for text in (axis.title, axis.xaxis.label, axis.yaxis.label):
        text.set_color(GREY)
        text.set_fontsize(9)
    axis.grid(color=GREY, alpha=0.25, linewidth=0.5)


def png(figure: Any) -> bytes:
    """Returns a figure as a PNG with a transparent background, and closes the figure."""
    return picture(figure, "png")


def picture(figure: Any, form: Form) -> bytes:
    """Returns a figure as a file with a transparent background, and closes the figure.

    The texts of an SVG are stored as text, not as outlines.
    """
    import matplotlib as mpl

    stream = io.BytesIO()
    with warnings.catch_warnings(), mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ppxcls"}):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # in an SVG, none is drawn
        figure.savefig(stream, format=form, dpi=130, transparent=True)
    pyplot().close(figure)
    return stream.getvalue()
