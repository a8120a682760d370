"""Plans the stages of ``fit`` with weights, from times that are measured on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import paddle
from paddle import nn

from ppxcls.fitting.features import FeatureComputer
from ppxcls.fitting.linear import expected_seconds
from ppxcls.system.arrays import Array
from ppxcls.train.timed_steps import timed_steps

BATCH_SIZE = 32  # of the training of all layers; statistics of smaller batches make batch norms worse
_SMALLER_SIZES_PIXELS = (256, 224, 192, 160, 128, 96, 71)
_SHOWN_SIZES_PIXELS = (71, 128, 192)  # of all layers, in what more minutes would buy
_MIN_FEATURE_SIZE_PIXELS = 128  # below this, features of a network for 299 px are poor
_TIMED_SIZE_PIXELS = 128  # of the step that is timed
_RESERVED_SECONDS = 25.0  # for the report, and for writing the results
_FOLD_RESERVED_SECONDS = 5.0  # for building the network of a fold, and for writing its results
_EVALUATION_FACTOR = 2.0  # evaluations compute in float32
_EPOCH_END_SECONDS = 2.0  # for the checkpoints of an epoch
USED_TIME_SHARE = 0.9  # of the time that is left, for all layers; measured times are of a few steps
_MIN_STEPS = 100  # of the optimizer; the first ones make the classifier worse
_MIN_EPOCHS = 5
MAX_TUNING_EPOCHS = 30  # of all layers


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Numbers of photographs.

    Attributes:
        train: photographs that train.
        choose: photographs that choose.
        judge: photographs that judge.
        classes: number of classes.
    """

    train: int
    choose: int
    judge: int
    classes: int

    @property
    def again_share(self) -> float:
        """Time of training with the photographs that choose too, as a share of the time without them."""
        return (self.train + self.choose) / self.train


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Times on this machine.

    Attributes:
        size: side of the images, pixels. Times grow with its square.
        feature: seconds for the features of an image.
        step: seconds of training all layers on an image.
    """

    size: int
    feature: float
    step: float

    def at(self, size: int) -> float:
        """Returns the factor of the times for another size."""
        return (size / self.size) ** 2


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What ``fit`` will do.

    Attributes:
        size: side of the images whose features are computed, pixels.
        copies: images of each photograph.
        rows: sizes and stages that were compared, with the minutes of the whole command.
    """

    size: int
    copies: int
    rows: Sequence[dict[str, Any]]

    def __str__(self) -> str:
        parts = [f"{row['name']} {row['minutes']:.2g} min" for row in self.rows]
        return " | ".join(parts)


def measured_speeds(computer: FeatureComputer, images: Array, network: nn.Layer) -> Speeds:
    """Measures the features of a batch, and a step of all layers.

    Args:
        computer: computer of the features.
        images: batch of square images that are computed at once, float32 [N, C, H, W]. Those that the
            features begin with, because the first images decide about the precision.
        network: network in training mode, with the precision and the batch norms of the training.
    """
    computer(images)  # compiles
    start = time.perf_counter()
    computer(images)
    feature = (time.perf_counter() - start) / len(images)
    size = images.shape[-1]
    timed_size = min(size, _TIMED_SIZE_PIXELS)
    optimizer = paddle.optimizer.AdamW(0.0, parameters=network.parameters(), weight_decay=0.0)
    times, _ = timed_steps(
        network,
        optimizer,
        images=paddle.randn([BATCH_SIZE, images.shape[1], timed_size, timed_size]),
        labels=paddle.zeros([BATCH_SIZE], "int64"),
        count=3,
    )
    step = min(times[1:]) / BATCH_SIZE * (size / timed_size) ** 2
    return Speeds(size=size, feature=feature, step=step)


def make_plan(speeds: Speeds, counts: Counts, seconds: float) -> Plan:
    """Returns the plan for the available time.

    Args:
        speeds: times on this machine.
        counts: numbers of photographs.
        seconds: time that is left for the whole command.
    """
    sizes = [size for size in _SMALLER_SIZES_PIXELS if size < speeds.size]
    candidates = [speeds.size, *(size for size in sizes if size >= _MIN_FEATURE_SIZE_PIXELS)]

    def total_seconds(size: int, copies: int) -> float:
        return features_seconds(speeds, counts, size=size, copies=copies) + end_seconds(counts, speeds, size)

    size = next((size for size in candidates if total_seconds(size, 1) <= seconds), candidates[-1])

    def has_tuning(copies: int) -> bool:
        seconds_left = USED_TIME_SHARE * (seconds - total_seconds(size, copies))
        return all_layers_choice(speeds, counts, seconds_left, is_good=True).epochs > 0

    # Mirror images help less than the training of all layers.
    has_copies = total_seconds(size, 2) <= seconds and (has_tuning(2) or not has_tuning(1))
    copies = 2 if has_copies else 1
    small = candidates[-1]
    rows = [_row(f"features at {small} px", small, total_seconds(small, 1))] if small != speeds.size else []
    full = total_seconds(speeds.size, 2)
    rows += [
        _row(f"{speeds.size} px", speeds.size, total_seconds(speeds.size, 1)),
        _row("with mirror images", speeds.size, full),
    ]
    epochs = min_tuning_epochs(counts)
    shown_sizes = [*(size for size in _SHOWN_SIZES_PIXELS if size < speeds.size), speeds.size]
    for number, shown_size in enumerate(shown_sizes):
        name = f"{shown_size} px" if number else f"and all layers at {shown_size} px"
        stage_seconds = all_layers_seconds(speeds, counts, size=shown_size, epochs=epochs)
        rows.append(_row(name, shown_size, full + stage_seconds))
    return Plan(size=size, copies=copies, rows=rows)


def _row(name: str, size: int, seconds: float) -> dict[str, Any]:
    return {"name": name, "size": size, "minutes": round(seconds / 60, 2)}


def features_seconds(speeds: Speeds, counts: Counts, *, size: int, copies: int) -> float:
    """Returns the seconds for features and linear classifiers.

    Args:
        speeds: times on this machine.
        counts: numbers of photographs.
        size: side of the images, pixels.
        copies: images of each photograph.
    """
    image_count = copies * (counts.train + counts.choose)
    return image_count * speeds.feature * speeds.at(size) + expected_seconds(image_count, counts.classes)


def fold_seconds(
    speeds: Speeds, counts: Counts, *, size: int, copies: int, seconds: float, folds: int
) -> float:
    """Returns the time of each fold of a cross-validation.

    The features are computed once. The rest of the time is divided equally, so that all folds are trained
    like the classifier of all photographs.

    Args:
        speeds: times on this machine.
        counts: numbers of photographs.
        size: side of the images whose features are computed, pixels.
        copies: images of each photograph.
        seconds: time of the whole command.
        folds: number of folds.
    """
    shared_seconds = copies * (counts.train + counts.choose) * speeds.feature * speeds.at(size)
    return max(seconds - shared_seconds, 0.0) / (folds + 1)


def least_fold_seconds(counts: Counts) -> float:
    """Returns the smallest time of a fold: for its linear classifier, and for writing its results."""
    return expected_seconds(2 * (counts.train + counts.choose), counts.classes) + _FOLD_RESERVED_SECONDS


def end_seconds(counts: Counts, speeds: Speeds, size: int) -> float:
    """Returns the time of the final evaluation and the report, in seconds.

    Args:
        counts: numbers of photographs.
        speeds: times on this machine.
        size: side of the evaluated images, pixels.
    """
    return _EVALUATION_FACTOR * counts.judge * speeds.feature * speeds.at(size) + _RESERVED_SECONDS


def all_layers_seconds(
    speeds: Speeds, counts: Counts, *, size: int, epochs: int, is_repeated: bool = True
) -> float:
    """Returns the seconds of the stage that trains all layers.

    They are for a linear classifier to start from, the training with an evaluation in each epoch, and the
    training with all photographs.

    Args:
        speeds: times on this machine.
        counts: numbers of photographs.
        size: side of the images that train, pixels.
        epochs: number of epochs.
        is_repeated: True with the training with all photographs.
    """
    evaluation = _EVALUATION_FACTOR * speeds.feature * speeds.at(size) * counts.choose
    image_count = counts.train * (1 + counts.again_share * is_repeated)
    epoch = speeds.step * speeds.at(size) * image_count + evaluation + (1 + is_repeated) * _EPOCH_END_SECONDS
    return features_seconds(speeds, counts, size=size, copies=2) + epochs * epoch


def min_tuning_epochs(counts: Counts) -> int:
    """Returns the smallest number of epochs of all layers that is worth a training."""
    steps = math.ceil(counts.train / BATCH_SIZE)
    return min(max(math.ceil(_MIN_STEPS / steps), _MIN_EPOCHS), MAX_TUNING_EPOCHS)


class AllLayersChoice(NamedTuple):
    """What the time allows.

    Attributes:
        size: side of the images that train, pixels.
        epochs: number of epochs; 0 if there is too little time even for the fastest way.
        is_repeated: True if there is also time for a training with all photographs.
    """

    size: int
    epochs: int
    is_repeated: bool = True


def all_layers_choice(
    speeds: Speeds, counts: Counts, seconds: float, *, is_good: bool = False
) -> AllLayersChoice:
    """Returns the largest size with enough epochs, if possible with a training with all photographs.

    A size of at least half of the largest one is preferred to that training.

    Args:
        speeds: times on this machine.
        counts: numbers of photographs.
        seconds: time that is left for this stage.
        is_good: True if the linear classifier is good. A smaller size, or fewer photographs, can hardly be
            better then.
    """
    sizes = [speeds.size, *(size for size in _SMALLER_SIZES_PIXELS if size < speeds.size)]
    large_sizes = [size for size in sizes if 2 * size >= speeds.size]
    groups = [large_sizes] if is_good else [large_sizes, sizes[len(large_sizes) :]]
    ways = [
        (size, way) for group in groups for way in ([True] if is_good else [True, False]) for size in group
    ]
    for size, is_repeated in ways:
        zero, one = (
            all_layers_seconds(speeds, counts, size=size, epochs=n, is_repeated=is_repeated) for n in (0, 1)
        )
        epochs = int((seconds - zero) / (one - zero))
        if epochs >= min_tuning_epochs(counts):
            return AllLayersChoice(size, min(epochs, MAX_TUNING_EPOCHS), is_repeated)
    size, is_repeated = ways[-1]
    return AllLayersChoice(size, 0, is_repeated)
