"""Chooses the settings of a training for the size of the data, of the images, and for the time that it may take."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle

from ppxcls.build.network import build_model, list_models
from ppxcls.data.decode import decode_image
from ppxcls.data.list_index import ListIndex
from ppxcls.data.read_file import read_file
from ppxcls.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from ppxcls.models.common_keys import MODELS
from ppxcls.system.distributed import available_devices, start
from ppxcls.train.timed_steps import timed_steps

_SIZES = (299, 192, 128, 96, 71)  # pixels; the smallest that these networks are worth training at is 71
_MEASURED = 96  # pixels at which a step is timed; the time grows with their square
_RATE, _FINE_TUNING_RATE = 0.001, 0.0003  # of AdamW
_LEAST_EPOCHS, _MOST_EPOCHS = 5, 60
_HEAD_SHARE = 0.15  # of the time, for the classifier alone
_TRAIN_SHARE = 0.75  # of the time that is left for steps, beside start, evaluation and report


@dataclass(frozen=True)
class Settings:
    """Of one training.

    Attributes:
        network: its name.
        weights: to start from; None for fresh ones.
        class_num: number of classes.
        device: to train on.
        size: pixels of the images' sides.
        mean, std: of the normalisation.
        batch_size: images per step.
        epochs: of all layers.
        head_epochs: of the classifier alone before; 0 without weights.
        learning_rate: the highest, of all layers.
        why: lines that say how this was chosen.
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
    why: Sequence[str]


def network_of(weights: str | None) -> str:
    """The network that a file of weights is named after, such as ``Xception41_pretrained.pdparams``; Xception41
    without a file.

    Raises:
        ValueError: the name is no network's.
    """
    if weights is None:
        return "Xception41"
    file = Path(weights).name
    names = [name for name in list_models() if re.match(re.escape(name) + r"(?![A-Za-z0-9])", file)]
    names = names or [
        name for name in list_models() if re.match(re.escape(name) + r"(?![A-Za-z0-9])", file, re.IGNORECASE)
    ]
    if not names:
        raise ValueError(
            f"{weights}: the name of the file does not begin with a network's; give it with --network"
        )
    return max(names, key=len)


def choose(
    image_root: str | Path,
    train_list: Path,
    class_num: int,
    network: str,
    weights: str | None,
    minutes: float,
    device: str | None,
) -> Settings:
    """Choose settings, by the time that a training step takes here.

    Args:
        image_root: folder of the images.
        train_list: list of the training images.
        class_num: number of classes.
        network: its name.
        weights: to start from; None for fresh ones.
        minutes: that the training may take.
        device: to train on; None for the best one here.

    Raises:
        DeviceError: there is no such device.
    """
    index = ListIndex(train_list)
    count = len(index.labels)
    device = device or available_devices()[0]
    start(device)
    batch_size = 8 if count < 200 else 16 if device == "cpu" or count < 2000 else 64
    largest = _largest_useful(image_root, index)
    least = 3 if weights else _LEAST_EPOCHS
    measured = _seconds_per_step(network, class_num, batch_size, _MEASURED)
    size, seconds, epochs = _SIZES[-1], 0.0, least
    for size in [size for size in _SIZES if size <= largest]:
        seconds = measured * (size / _MEASURED) ** 2
        epochs = int(60 * minutes * _TRAIN_SHARE / (-(-count // batch_size) * seconds))
        if epochs >= 2 * least:
            break
    enough, epochs = epochs >= least, min(max(epochs, least), _MOST_EPOCHS)
    head_epochs = max(round(_HEAD_SHARE * epochs), 1) if weights else 0
    published = MODELS.fact(network, "published")
    why = [
        f"{count:,} training images in {class_num} classes; batches of {batch_size} on {device}",
        f"{size} px, of {largest} that the images are large enough for: about {seconds:.2g} s a step here",
        f"{epochs} epochs, for about {minutes:g} minutes"
        + ("" if enough else "; it will take longer, because fewer teach little"),
    ]
    if not weights:
        why.append(
            "from scratch: with weights of ImageNet (--weights) a small set needs fewer epochs and gets much better"
        )
    return Settings(
        network=network,
        weights=weights,
        class_num=class_num,
        device=device,
        size=size,
        mean=published.mean if published and weights else IMAGENET_MEAN,
        std=published.std if published and weights else IMAGENET_STD,
        batch_size=batch_size,
        epochs=max(epochs - head_epochs, 1),
        head_epochs=head_epochs,
        learning_rate=_FINE_TUNING_RATE if weights else _RATE,
        why=why,
    )


def _largest_useful(image_root: str | Path, index: ListIndex) -> int:
    """The largest size to train at: images are not enlarged by more than a third."""
    sides = []
    for i in np.linspace(0, len(index.labels) - 1, 40).astype(int):
        with contextlib.suppress(OSError, ValueError, MemoryError):  # it is reported when it is trained on
            sides.append(min(decode_image(read_file(os.path.join(image_root, index.path(int(i))))).shape[:2]))
    typical = float(np.median(sides)) if sides else float(_SIZES[0])
    return next((size for size in _SIZES if size <= 1.34 * typical), _SIZES[-1])


def _seconds_per_step(network: str, class_num: int, batch_size: int, size: int) -> float:
    """The faster one of two training steps, after one that warms up."""
    model = build_model(network, class_num=class_num)
    optimizer = paddle.optimizer.SGD(0.0, parameters=model.parameters())
    images = paddle.randn([batch_size, 3, size, size])
    labels = paddle.zeros([batch_size], "int64")
    times, _ = timed_steps(model, optimizer, images, labels, 3)
    return min(times[1:])
