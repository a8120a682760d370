"""Chooses training settings from the amount of data, the size of the images, and the available time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from ppxcls.build.class_order import config_of_weights
from ppxcls.build.network import build_model, list_models
from ppxcls.checkpoints.files import CheckpointError
from ppxcls.data.decode import decode_image
from ppxcls.data.errors import DataError
from ppxcls.data.list_index import ListIndex
from ppxcls.data.preparation import PreparedImages
from ppxcls.data.read_file import read_file
from ppxcls.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from ppxcls.models.common_keys import MODELS, freeze_norms
from ppxcls.models.preprocessing import run_preprocessing
from ppxcls.models.weights_network import weights_network
from ppxcls.system.devices import available_devices
from ppxcls.system.distributed import start
from ppxcls.train.timed_steps import timed_steps

_SIZES_PIXELS = (299, 192, 128, 96, 71)  # pixels; these networks are not worth training below 71
_MIN_SIZE_WITH_WEIGHTS_PIXELS = 128  # below this, weights of larger images help little
_TIMED_SIZE_PIXELS = 96  # pixels; a step is timed at this size, and the time grows with its square
_LEARNING_RATE, _FINE_TUNING_LEARNING_RATE = 0.001, 0.0003  # learning rates for AdamW
MIN_EPOCHS, MIN_EPOCHS_WITH_WEIGHTS, MAX_EPOCHS = 5, 3, 60
_HEAD_EPOCH_SHARE = 0.15  # fraction of the epochs that train the classifier alone
_STEP_TIME_SHARE = 0.75  # fraction of the time for training steps; start, evaluation and report need time too


@dataclass(frozen=True)
class Settings:
    """Settings of one training.

    Attributes:
        network: name of the network.
        weights: weights to start from; None for fresh ones.
        class_num: number of classes.
        device: device to train on.
        size: side of the square training images, pixels.
        mean, std: mean and standard deviation of the normalisation, by channel.
        batch_size: images per step.
        epochs: number of epochs that train all layers.
        head_epochs: number of earlier epochs that train the classifier alone; 0 without weights.
        learning_rate: highest learning rate of the epochs that train all layers.
        reasons: lines that explain these choices.
        feature_size: side of the images whose features are computed once, pixels; 0 if none are computed.
        copies: images of each photograph whose features are computed: 2 with its mirror image, else 1.
        crop_share: side of an evaluated image divided by the shorter side of the resized photograph; 0 to
            stretch the photograph to the image.
        interpolation: interpolation of the resizing; empty for the default.
        plan: sizes and stages that were compared, and their minutes.
        speeds: measured times: ``size`` in pixels, ``feature`` and ``step`` in seconds.
        freezes_norms: True if batch norms keep the statistics of the weights.
        norm_momentum: share of their statistics that batch norms keep in a step; None for the network's own.
        freeze: patterns of the layers that are not trained.
        has_colors: False for images with another number of channels than three.
        in_bfloat16: True to train with bfloat16 products.
        trains_again: True if there is time for a second training, with the photographs that choose too.
        flips: False to train without mirror images, because they make the linear classifier worse.
    """

    network: str
    weights: str | None
    class_num: int
    device: str
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    batch_size: int
    epochs: int
    head_epochs: int
    learning_rate: float
    reasons: Sequence[str]
    feature_size: int = 0
    copies: int = 0
    crop_share: float = 0.9
    interpolation: str = ""
    plan: Sequence[Mapping[str, Any]] = ()
    speeds: Mapping[str, float] = field(default_factory=dict)
    freezes_norms: bool = False
    norm_momentum: float | None = None
    freeze: Sequence[str] = ()
    has_colors: bool = True
    in_bfloat16: bool = False
    trains_again: bool = True
    flips: bool = True


def network_of(weights: str | None) -> str:
    """Returns the network that a weights file belongs to; Xception41 without a file.

    It is the network of the run that trained the weights, or else the one that the keys in the file belong
    to.

    Raises:
        ValueError: the file can't be read, or the network can't be told.
    """
    if weights is None:
        return "Xception41"
    arch = (config_of_weights(weights) or {}).get("Arch")
    if isinstance(arch, dict) and arch.get("name") in list_models():
        return str(arch["name"])
    try:
        return weights_network(weights)
    except CheckpointError as error:
        raise ValueError(str(error)) from None


def choose(
    image_root: str | Path,
    train_list: Path,
    *,
    class_num: int,
    network: str,
    weights: str | None,
    minutes: float,
    device: str | None,
) -> Settings:
    """Chooses settings from the measured time of a training step on this machine.

    Args:
        image_root: folder of the images.
        train_list: list of the training images.
        class_num: number of classes.
        network: name of the network.
        weights: weights to start from; None for fresh ones.
        minutes: approximate training time, in minutes.
        device: device to train on; None for the best one of this machine.

    Raises:
        DeviceError: there is no such device.
    """
    index = ListIndex(train_list)
    image_count = len(index.labels)
    device = device or available_devices()[0]
    start(device)
    batch_size = _batch_size(image_count, device)
    sizes, reason_of_size = (
        _sizes_with_weights(network, weights) if weights else _sizes_from_scratch(image_root, index)
    )
    timed_seconds = _seconds_per_step(network, class_num, batch_size, _TIMED_SIZE_PIXELS)
    steps_per_epoch = -(-image_count // batch_size)
    min_epochs = MIN_EPOCHS_WITH_WEIGHTS if weights else MIN_EPOCHS
    candidates = [
        _SizeChoice(size, timed_seconds * (size / _TIMED_SIZE_PIXELS) ** 2, steps_per_epoch, min_epochs)
        for size in sizes
    ]
    choice = next((choice for choice in candidates if choice.minutes <= minutes), candidates[-1])
    possible_epochs = choice.epochs(minutes)
    epochs = min(max(possible_epochs, min_epochs), MAX_EPOCHS)
    head_epochs = max(round(_HEAD_EPOCH_SHARE * epochs), 1) if weights else 0
    reasons = [
        f"{image_count:,} training images in {class_num} classes; batches of {batch_size} on {device}",
        f"{choice.size} px ({reason_of_size}): about {choice.step_seconds:.2g} s per step on this machine",
        f"{epochs} epochs, for about {minutes:g} minutes",
        f"minutes on this machine: {' | '.join(map(str, reversed(candidates)))}",
    ]
    if possible_epochs < min_epochs:
        reasons[2] += "; training will take longer, because fewer epochs teach little"
    if not weights:
        reasons.append(
            "from scratch: --weights imagenet fetches published weights, if this network has any; "
            "with them, a small data set needs minutes, and the accuracy is much better"
        )
    mean, std = _normalization(network, weights)
    return Settings(
        network=network,
        weights=weights,
        class_num=class_num,
        device=device,
        size=choice.size,
        mean=mean,
        std=std,
        batch_size=batch_size,
        epochs=max(epochs - head_epochs, 1),
        head_epochs=head_epochs,
        learning_rate=_FINE_TUNING_LEARNING_RATE if weights else _LEARNING_RATE,
        reasons=reasons,
        freezes_norms=bool(weights) and freeze_norms(build_model(network, class_num=class_num)) > 0,
    )


@dataclass(frozen=True)
class _SizeChoice:
    """A size of the training images, and what it costs.

    Attributes:
        size: side of the images, pixels.
        step_seconds: time of a training step.
        steps_per_epoch: number of steps in an epoch.
        min_epochs: smallest number of epochs that is worth a training.
    """

    size: int
    step_seconds: float
    steps_per_epoch: int
    min_epochs: int

    @property
    def minutes(self) -> float:
        """Minutes of the command from which this size pays: those of twice the smallest number of epochs."""
        return 2 * self.min_epochs * self.steps_per_epoch * self.step_seconds / (60 * _STEP_TIME_SHARE)

    def epochs(self, minutes: float) -> int:
        """Returns the number of epochs in some minutes of the command."""
        return int(60 * minutes * _STEP_TIME_SHARE / (self.steps_per_epoch * self.step_seconds))

    def __str__(self) -> str:
        return f"{self.size} px {self.minutes:.2g} min"


def _batch_size(image_count: int, device: str) -> int:
    if image_count < 200:
        return 8
    return 16 if device == "cpu" or image_count < 2000 else 64


def provisional_settings(
    class_num: int, *, network: str, weights: str | None, device: str | None
) -> Settings:
    """Returns settings that are chosen without any measurement, to check a config with them."""
    mean, std = _normalization(network, weights)
    return Settings(
        network=network,
        weights=weights,
        class_num=class_num,
        device=device or available_devices()[0],
        size=_SIZES_PIXELS[-1],
        mean=mean,
        std=std,
        batch_size=2,
        epochs=MIN_EPOCHS,
        head_epochs=1 if weights else 0,
        learning_rate=_LEARNING_RATE,
        reasons=[],
    )


def _normalization(network: str, weights: str | None) -> tuple[tuple[float, float, float], ...]:
    """Returns mean and standard deviation by channel: those of the weights' run or publisher, if any."""
    run_images = _images_of_run(weights)
    if run_images and run_images.mean and run_images.std:
        return _three(run_images.mean), _three(run_images.std)
    published_images = MODELS.fact(network, "published")
    if weights and published_images:
        return published_images.mean, published_images.std
    return IMAGENET_MEAN, IMAGENET_STD


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue


def check_images_of_weights(weights: str) -> None:
    """Refuses weights of a run that prepared images in a way that the YAML of ``fit`` has no keys for.

    Raises:
        DataError: the run had other channels than three, 16 bits, or a letterbox.
    """
    images = _images_of_run(weights)
    if images is None:
        return
    counts = [images.channel_count, *(len(values) for values in (images.mean, images.std) if values)]
    facts = [f"{count} channels" for count in counts if count not in (None, 3)][:1]
    facts += [f"{images.bits} bits"] if images.bits not in (None, 8) else []
    facts += ["a letterbox"] if images.fill is not None else []
    if facts:
        raise DataError(
            f"{weights}: fit expects weights of images with 3 channels of 8 bits, without a letterbox, "
            f"received those of a run with {', '.join(facts)}: train with a YAML of your own, "
            "and set Global.pretrained_model"
        )


def _images_of_run(weights: str | None) -> PreparedImages | None:
    """Returns how the run that trained the weights prepared images; None if no run is known."""
    config = config_of_weights(weights) if weights else None
    preprocessing = run_preprocessing(config) if config else None
    return preprocessing.images if preprocessing else None


def _sizes_with_weights(network: str, weights: str) -> tuple[list[int], str]:
    """Returns sizes to train at, largest first, and a reason.

    They do not depend on the size of the photographs: enlarged ones suit weights of large images better.
    """
    run_images, published_images = _images_of_run(weights), MODELS.fact(network, "published")
    trained_size = _SIZES_PIXELS[0]
    if run_images and isinstance(run_images.size, int):
        trained_size = run_images.size
    elif published_images:
        trained_size = published_images.input_size
    smaller_sizes = [size for size in _SIZES_PIXELS if _MIN_SIZE_WITH_WEIGHTS_PIXELS <= size < trained_size]
    return [trained_size, *smaller_sizes], f"the weights are for {trained_size}"


def _sizes_from_scratch(image_root: str | Path, index: ListIndex) -> tuple[list[int], str]:
    """Returns sizes to train at from scratch, largest first, and a reason.

    At the largest one, a typical image is enlarged by no more than a third.
    """
    sides = []
    for i in np.linspace(0, len(index.labels) - 1, 40).astype(int):
        with contextlib.suppress(OSError, ValueError, MemoryError):  # training reports unreadable images
            sides.append(min(decode_image(read_file(os.path.join(image_root, index.path(int(i))))).shape[:2]))
    typical_side = float(np.median(sides)) if sides else float(_SIZES_PIXELS[0])
    sizes = [size for size in _SIZES_PIXELS if size <= 1.34 * typical_side] or [_SIZES_PIXELS[-1]]
    return sizes, f"the images allow up to {sizes[0]}"


def _seconds_per_step(network: str, class_num: int, batch_size: int, size: int) -> float:
    """Returns the time of the faster of two training steps, in seconds, after one warm-up step."""
    model = build_model(network, class_num=class_num)
    optimizer = paddle.optimizer.SGD(0.0, parameters=model.parameters())
    images = paddle.randn([batch_size, 3, size, size])
    labels = paddle.zeros([batch_size], "int64")
    times, _ = timed_steps(model, optimizer, images=images, labels=labels, count=3)
    return min(times[1:])
