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

from ppxcls.calibration.reliability import Reliability
from ppxcls.reports import BALANCE
from ppxcls.reports.fonts import fonts_for, report_missing
from ppxcls.reports.record import Record
from ppxcls.system.arrays import Array
from ppxcls.system.packages import matplotlib_module

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


def throughput(rows: Sequence[Mapping[str, Any]]) -> tuple[Array, Array]:
    """Returns the images per second of all processes, over windows that are long enough.

    The first line of an epoch stands for one batch, and the last one often for a few: such a time says
    little. A line with less than half of the samples of the epoch's largest interval is joined with its
    neighbour in the epoch.

    Args:
        rows: training lines of ``metrics.jsonl``.

    Returns:
        The step at the end of each window, and the images per second in it.
    """
    steps, rates = [], []
    for lines in _epochs(rows):
        half = max(samples for _, samples, _ in lines) / 2
        windows: list[list[tuple[int, float, float]]] = [[]]
        for line in lines:
            if sum(samples for _, samples, _ in windows[-1]) >= half:
                windows.append([])
            windows[-1].append(line)
        if len(windows) > 1 and sum(samples for _, samples, _ in windows[-1]) < half:
            windows[-2].extend(windows.pop())
        for window in windows:
            steps.append(window[-1][0])
            rates.append(sum(line[1] for line in window) / sum(line[2] for line in window))
    return np.array(steps, float), np.array(rates, float)


def epoch_rates(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Returns the images per second of all processes in each whole epoch."""
    return [sum(line[1] for line in lines) / sum(line[2] for line in lines) for lines in _epochs(rows)]


def _epochs(rows: Sequence[Mapping[str, Any]]) -> list[list[tuple[int, float, float]]]:
    """Returns step, samples and seconds of each line's interval, by epoch. Older logs lack these figures."""
    epochs: dict[int, list[tuple[int, float, float]]] = {}
    previous: Mapping[str, Any] | None = None
    for row in rows:
        figures = [row.get(key) for key in ("epoch", "step", "samples", "ips_total")]
        if not all(isinstance(figure, int | float) and figure > 0 for figure in figures):
            continue
        is_next = (
            previous is not None
            and previous["epoch"] == row["epoch"]
            and previous["samples"] < row["samples"]
        )
        samples = row["samples"] - (previous["samples"] if previous is not None and is_next else 0)
        epochs.setdefault(row["epoch"], []).append((row["step"], samples, samples / row["ips_total"]))
        previous = row
    return list(epochs.values())


def _metric_names(record: Record) -> list[str]:
    """Returns the names of the evaluation's figures."""
    return [
        name
        for name in (record.evaluations[0] if record.evaluations else {})
        if name not in _KEYS_WITHOUT_MEANS
    ]


def _shown_metric(record: Record, columns: Mapping[str, Array]) -> str | None:
    """Returns the metric that has a panel: the one that chose ``best_model``, or else the first one."""
    names = [
        name
        for name in (record.deciding_figure, *columns, *_metric_names(record))
        if name not in (None, "step", "loss") and not str(name).endswith("Loss")
    ]
    return next((name for name in names if name in columns or name in _metric_names(record)), None)


def smoothed(values: Array, share: float = 0.05) -> Array:
    """Returns a centred moving mean over a fraction of the points, at least three points."""
    half_width = max(int(len(values) * share / 2), 1)
    sums = np.concatenate(([0.0], np.cumsum(values)))
    ends = np.minimum(np.arange(len(values)) + half_width + 1, len(values))
    starts = np.maximum(np.arange(len(values)) - half_width, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def draw_curves(records: Sequence[Record]) -> bytes:
    """Draws the curves of one or more runs over the optimizer steps; returns a PNG.

    Loss of the training and loss of the evaluation have a panel each, because they measure different things
    (see ``ppxcls.reports.losses``). The other panels are the metric that chose ``best_model``, learning rate
    and images/s. A run with characters in its path that no installed font has is given by its number.
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
    figure, axes = plt.subplots(2, 3, figsize=(13, 6.5), layout="constrained")
    train_loss, eval_loss, metric = axes[0]
    rate, speed, legend = axes[1]
    is_comparison = len(records) > 1
    for number, record in enumerate(records):
        color = f"C{number}" if is_comparison else BLUE
        label = labels[number]
        evaluation_style = {"color": color, "label": label}
        if not is_comparison:
            evaluation_style = {"color": ORANGE, "label": "evaluation"}
        columns = intervals(record.train)
        _draw_training(train_loss, columns, key="loss", color=color, label=label)
        _draw_evaluations(eval_loss, record, key="loss", **evaluation_style)
        metric_name = _shown_metric(record, columns)
        if metric_name is not None:
            metric.set_title(f"{plot_label(metric_name)}: solid in training, dashed in evaluations")
            _draw_training(metric, columns, key=metric_name, color=color, label=label)
            _draw_evaluations(metric, record, key=metric_name, **evaluation_style)
        rows = [row for row in record.train if isinstance(row.get("lr"), int | float)]
        rate.plot([row["step"] for row in rows], [row["lr"] for row in rows], color=color)
        speed.plot(*throughput(record.train), color=color, marker="o", markersize=2)
    train_loss.set_title("training loss")
    eval_loss.set_title("evaluation loss")
    rate.set_title("learning rate")
    speed.set_title("images/s")
    for axis in (train_loss, eval_loss, metric, rate, speed):
        axis.set_xlabel("step")
        axis.set_ylim(bottom=min(0, axis.dataLim.y0))  # kappa can be negative
        restyle(axis)
    legend.axis("off")
    lines = {
        label: handle
        for axis in (train_loss, eval_loss)
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    if lines:
        legend.legend(lines.values(), lines.keys(), loc="center", frameon=False, labelcolor=GREY)
    return png(figure)


def _draw_training(axis: Any, columns: Mapping[str, Array], *, key: str, color: str, label: str) -> None:
    """Draws a figure of the training: pale, and smoothed. A recipe that mixes images has no metric."""
    if key in columns:
        axis.plot(columns["step"], columns[key], color=color, alpha=0.25, linewidth=0.8)
        axis.plot(columns["step"], smoothed(columns[key]), color=color, label=label)


def _draw_evaluations(axis: Any, record: Record, *, key: str, color: str, label: str) -> None:
    """Draws a figure of the evaluations as points with dashed lines between them."""
    rows = [row for row in record.evaluations if isinstance(row.get(key), int | float)]
    if rows:
        axis.plot(
            [row["step"] for row in rows],
            [row[key] for row in rows],
            color=color,
            linestyle="--",
            marker="o",
            markersize=3,
            label=label,
        )


def draw_calibration(calibration: Reliability) -> bytes:
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
    mpl = matplotlib_module()
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
