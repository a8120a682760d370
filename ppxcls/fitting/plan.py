"""Plans the stages of ``fit`` with weights, from times that are measured on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import paddle
from paddle import nn

from ppxcls.fitting.features import FeatureComputer, network_parts
from ppxcls.fitting.linear import expected_seconds
from ppxcls.system.arrays import Array

_SMALLER_SIZES_PIXELS = (256, 224, 192, 160, 128, 96, 71)
_MIN_SIZE_PIXELS = 128  # below this, features of a network for 299 px are poor
_TIMED_IMAGES = 8
_RESERVED_SECONDS = 25.0  # for the report, and for writing the results
_EVALUATION_FACTOR = 2.0  # evaluations compute in float32
MIN_EXIT_EPOCHS, MAX_EXIT_EPOCHS = 2, 8
MIN_TUNING_EPOCHS, MAX_TUNING_EPOCHS = 3, 20  # of all layers


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
        size: side of the images that were timed, pixels. Times grow with its square.
        feature: seconds for the features of an image.
        exit_step: seconds of training the exit flow on an image.
        step: seconds of training all layers on an image.
    """

    size: int
    feature: float
    exit_step: float
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
        trains_exit_flow: True to train the exit flow too.
        rows: sizes and stages that were compared, with the minutes of the whole command.
    """

    size: int
    copies: int
    trains_exit_flow: bool
    rows: Sequence[dict[str, Any]]

    def __str__(self) -> str:
        parts = [f"{row['name']} {row['minutes']:.2g} min" for row in self.rows]
        return " | ".join(parts)


def measured_speeds(computer: FeatureComputer, images: Array) -> tuple[Speeds, tuple[int, ...]]:
    """Measures the features of a batch, a step of the exit flow, and a step of all layers.

    Args:
        computer: computer of the features.
        images: batch of square images that are computed at once, float32 [N, 3, H, W]. Those that the
            features begin with, because the first images decide about the precision.

    Returns:
        The times, and the shape of the activations of an image.
    """
    computer(images)  # compiles
    start = time.perf_counter()
    activations, _ = computer(images)
    feature = (time.perf_counter() - start) / len(images)
    parts = network_parts(computer.network)
    exit_step = _step_seconds([parts.exit_flow, parts.classifier], activations[:_TIMED_IMAGES])
    step = _step_seconds([parts.trunk, parts.exit_flow, parts.classifier], images[:2])
    speeds = Speeds(size=images.shape[-1], feature=feature, exit_step=exit_step, step=step)
    return speeds, tuple(activations.shape[1:])


def _step_seconds(layers: Sequence[nn.Layer], inputs: Any) -> float:
    """Returns the time of a forward and backward pass for an input, in seconds; the faster one of two."""
    times = []
    for _ in range(2):
        start = time.perf_counter()
        x = paddle.to_tensor(inputs)
        for layer in layers:
            x = layer(x)
        loss = x.square().mean()
        loss.backward()
        float(loss)  # waits for the device
        times.append((time.perf_counter() - start) / len(inputs))
        for layer in layers:
            layer.clear_gradients()
    return min(times)


def make_plan(speeds: Speeds, counts: Counts, seconds: float, *, can_keep_activations: bool) -> Plan:
    """Returns the plan for the available time.

    Args:
        speeds: times on this machine.
        counts: numbers of photographs.
        seconds: time that is left for the whole command.
        can_keep_activations: True if the activations fit on the disk.
    """
    estimate = _Estimate(speeds, counts)
    sizes = [size for size in _SMALLER_SIZES_PIXELS if _MIN_SIZE_PIXELS <= size < speeds.size]
    candidates = [speeds.size, *sizes]
    size = next((size for size in candidates if estimate.features(size, 1) <= seconds), candidates[-1])
    copies = 2 if estimate.features(size, 2) <= seconds else 1
    exit_seconds = estimate.features(size, copies) + estimate.exit_flow(size, MIN_EXIT_EPOCHS)
    trains_exit_flow = can_keep_activations and exit_seconds <= seconds
    small = candidates[-1]
    rows: list[dict[str, Any]] = []
    if small != speeds.size:
        rows.append(_row(f"features at {small} px", small, estimate.features(small, 1)))
    rows += [
        _row(f"{speeds.size} px", speeds.size, estimate.features(speeds.size, 1)),
        _row("with mirror images", speeds.size, estimate.features(speeds.size, 2)),
    ]
    full = estimate.features(speeds.size, 2) + estimate.exit_flow(speeds.size, MIN_EXIT_EPOCHS)
    if can_keep_activations:
        rows.append(_row("and the exit flow", speeds.size, full))
    rows.append(
        _row("and all layers", speeds.size, full + estimate.all_layers(speeds.size, MIN_TUNING_EPOCHS))
    )
    return Plan(size=size, copies=copies, trains_exit_flow=trains_exit_flow, rows=rows)


def _row(name: str, size: int, seconds: float) -> dict[str, Any]:
    return {"name": name, "size": size, "minutes": round(seconds / 60, 2)}


class _Estimate:
    """Estimates the seconds of the stages.

    Args:
        speeds: times on this machine.
        counts: numbers of photographs.
    """

    def __init__(self, speeds: Speeds, counts: Counts) -> None:
        self._speeds = speeds
        self._counts = counts

    def features(self, size: int, copies: int) -> float:
        """Returns the seconds for features, linear classifier, final evaluation and report."""
        speed = self._speeds.feature * self._speeds.at(size)
        chosen_from = self._counts.train + self._counts.choose
        evaluation = _EVALUATION_FACTOR * self._counts.judge * speed
        linear = expected_seconds(copies * chosen_from, self._counts.classes)
        return copies * chosen_from * speed + linear + evaluation + _RESERVED_SECONDS

    def exit_flow(self, size: int, epochs: int) -> float:
        """Returns the seconds of training the exit flow twice: to choose, and on all photographs."""
        return exit_flow_seconds(self._speeds.exit_step * self._speeds.at(size), self._counts, epochs)

    def all_layers(self, size: int, epochs: int) -> float:
        """Returns the seconds of training all layers, with an evaluation in each epoch."""
        return all_layers_seconds(
            self._speeds, self._counts, size=size, epochs=epochs, evaluated_size=self._speeds.size
        )


def exit_flow_seconds(seconds_per_image: float, counts: Counts, epochs: int) -> float:
    """Returns the seconds of training the exit flow twice: to choose, and on all photographs."""
    return seconds_per_image * (2 * epochs * counts.train + (epochs + 1) * counts.choose)


def exit_flow_epochs(seconds_per_image: float, counts: Counts, seconds: float) -> int:
    """Returns the number of epochs for the exit flow; 0 if there is too little time."""
    epochs = range(MIN_EXIT_EPOCHS, MAX_EXIT_EPOCHS + 1)
    possible_epochs = [n for n in epochs if exit_flow_seconds(seconds_per_image, counts, n) <= seconds]
    return max(possible_epochs, default=0)


def all_layers_seconds(
    speeds: Speeds, counts: Counts, *, size: int, epochs: int, evaluated_size: int
) -> float:
    """Returns the seconds of training all layers, with an evaluation in each epoch, and of training again.

    Args:
        speeds: times on this machine.
        counts: numbers of photographs.
        size: side of the images that train, pixels.
        epochs: number of epochs.
        evaluated_size: side of the evaluated images, pixels.
    """
    evaluation = _EVALUATION_FACTOR * speeds.feature * speeds.at(evaluated_size) * counts.choose
    image_count = counts.train * (1 + counts.again_share)
    return epochs * (speeds.step * speeds.at(size) * image_count + evaluation) + _RESERVED_SECONDS


def all_layers_choice(speeds: Speeds, counts: Counts, seconds: float, feature_size: int) -> tuple[int, int]:
    """Returns size and number of epochs of the training of all layers; 0 epochs if there is too little time.

    The size is the largest one with enough epochs. It is between two thirds of the size of the features and
    that size, because the evaluations have it.

    Args:
        speeds: times on this machine.
        counts: numbers of photographs.
        seconds: time that is left for this stage.
        feature_size: side of the images whose features were computed, pixels.
    """
    for size in (feature_size, *_SMALLER_SIZES_PIXELS):
        if feature_size * 2 / 3 <= size <= feature_size:
            one, two = (
                all_layers_seconds(speeds, counts, size=size, epochs=n, evaluated_size=feature_size)
                for n in (1, 2)
            )
            epochs = int((seconds - one) / (two - one)) + 1 if seconds >= one else 0
            if epochs >= MIN_TUNING_EPOCHS:
                return size, min(epochs, MAX_TUNING_EPOCHS)
    return feature_size, 0


def end_seconds(counts: Counts, speeds: Speeds, size: int) -> float:
    """Returns the time of the final evaluation and the report, in seconds.

    Args:
        counts: numbers of photographs.
        speeds: times on this machine.
        size: side of the evaluated images, pixels.
    """
    return _EVALUATION_FACTOR * counts.judge * speeds.feature * speeds.at(size) + _RESERVED_SECONDS
