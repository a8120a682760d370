"""timm's ``legacy_xception`` with the options of timm's train script for fine-tuning.

From https://huggingface.co/docs/timm/training_script and from the options that timm's author publishes with
fine-tuned weights, such as https://huggingface.co/timm/eva02_large_patch14_clip_336.merged2b_ft_inat21:
``--opt adamw --weight-decay 0.01 --warmup-lr 0 --sched cosine --sched-on-updates --clip-grad 1.0
--layer-decay 0.8 --smoothing 0.1``, timm's own augmentation of training images (random crop, mirroring,
colour), evaluation with the network's published crop, ``--channels-last``, and ``--amp-dtype bfloat16`` if a
step is faster with it. The rate is 1e-3 for batches of 32, because few steps fit a short time. The cosine has
as many updates as fit the time, according to a step that is timed before, so it may end inside an epoch.
The network has Keras's pools and batch norms, which the trunk was trained with.
"""

from __future__ import annotations

import copy
import os
import time
from pathlib import Path
from typing import Any

import timm
import timm_network  # scripts/comparison/timm_network.py, which registers xception_keras
import torch
from recording import Recording, peer_arguments  # scripts/comparison/recording.py
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch.utils.data import DataLoader

BATCH = 32
RATE = 1e-3
WARMUP_SHARE = 0.1  # of all updates
CROP_SHARE = 0.8975  # of legacy_xception's published settings
SMOOTHING = 0.1


def loader(folder: Path, size: int, *, is_training: bool, seed: int) -> Any:
    """Returns timm's data set of a folder of classes, with its transforms, in batches."""
    transform = timm.data.create_transform(
        size,
        is_training=is_training,
        interpolation="random" if is_training else "bicubic",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        crop_pct=CROP_SHARE,
    )
    data = timm.data.create_dataset("", root=str(folder), transform=transform)
    workers = os.cpu_count() or 1
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(
        data,
        BATCH,
        shuffle=is_training,
        num_workers=workers,
        drop_last=is_training and len(data) > BATCH,
        generator=generator,
        persistent_workers=True,
    )


class Trainer:
    """The network, its optimizer and one update.

    Args:
        model: network to train.
        is_bfloat16: True to compute in bfloat16.
    """

    def __init__(self, model: torch.nn.Module, *, is_bfloat16: bool) -> None:
        self.model = model
        self.optimizer = create_optimizer_v2(model, opt="adamw", lr=RATE, weight_decay=0.01, layer_decay=0.8)
        self._is_bfloat16 = is_bfloat16

    def step(self, images: Any, labels: Any) -> None:
        """Makes one update."""
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=self._is_bfloat16):
            logits = self.model(images)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels, label_smoothing=SMOOTHING)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


def timed_steps(model: Any, batches: Any) -> dict[bool, float]:
    """Returns the seconds of a step in float32 (False) and in bfloat16 (True), with reading a batch."""
    seconds = {}
    start = time.perf_counter()
    epoch = list(batches)  # a whole epoch, because workers read ahead
    reading_seconds = (time.perf_counter() - start) / len(epoch)
    images, labels = epoch[0]
    for is_bfloat16 in (False, True):
        trainer = Trainer(copy.deepcopy(model).train(), is_bfloat16=is_bfloat16)
        for _ in range(2):  # the first step also prepares
            start = time.perf_counter()
            trainer.step(images, labels)
            seconds[is_bfloat16] = time.perf_counter() - start + reading_seconds
    return seconds


def accuracy(model: Any, batches: Any) -> float:
    """Returns the share of images whose class is predicted, in float32."""
    model.eval()
    correct = 0
    with torch.no_grad():
        for images, labels in batches:
            logits = model(images.contiguous(memory_format=torch.channels_last))
            correct += int((logits.argmax(1) == labels).sum())
    model.train()
    return correct / len(batches.dataset)


def train(recording: Recording, trainer: Trainer, loaders: tuple[Any, Any], update_count: int) -> None:
    """Trains with one cosine, and adds a point after each epoch and at the end."""
    warmup = max(int(WARMUP_SHARE * update_count), 1)
    schedule = CosineLRScheduler(
        trainer.optimizer,
        t_initial=update_count,
        warmup_t=warmup,
        warmup_lr_init=0.0,
        warmup_prefix=False,
        t_in_epochs=False,
    )
    schedule.step_update(0)
    update = 0
    while update < update_count:
        with recording.training():
            for images, labels in loaders[0]:
                trainer.step(images, labels)
                update += 1
                schedule.step_update(update)
                if update == update_count:
                    break
        recording.add("all layers", update / len(loaders[0]), accuracy(trainer.model, loaders[1]))


def main() -> None:
    arguments = peer_arguments(__doc__)
    recording = Recording(arguments)
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(arguments.seed)
    class_num = sum(path.is_dir() for path in (arguments.photographs / "train").iterdir())
    model = timm.create_model("xception_keras", num_classes=class_num)
    timm_network.load_trunk(model, arguments.state)
    model = model.to(memory_format=torch.channels_last).train()
    loaders = tuple(
        loader(arguments.photographs / part, arguments.size, is_training=part == "train", seed=arguments.seed)
        for part in ("train", "test")
    )
    seconds = timed_steps(model, loaders[0])
    is_bfloat16 = seconds[True] < seconds[False]
    recording.end_start_up()
    update_count = max(int(recording.remaining_seconds / seconds[is_bfloat16]), 1)
    train(recording, Trainer(model, is_bfloat16=is_bfloat16), (loaders[0], loaders[1]), update_count)
    recording.write(size=arguments.size, step_seconds=seconds[is_bfloat16], is_bfloat16=is_bfloat16)


if __name__ == "__main__":
    main()
