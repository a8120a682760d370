"""fastai's ``vision_learner`` and ``fine_tune``, with the trunk as a network of timm and fastai's defaults.

From https://docs.fast.ai/tutorial.vision.html and https://docs.fast.ai/vision.learner.html: Resize(460) of
each photograph, ``aug_transforms(size=224)`` on batches of 64, and ``fine_tune``: one epoch of the new head,
then all layers with discriminative rates and one cycle. The number of epochs is the largest that fits the
time, according to a step of each kind that is timed before. If only the first phase fits, it has all epochs.
"""

from __future__ import annotations

import os
import time
from typing import Any

import timm_network  # scripts/comparison/timm_network.py, which registers xception_keras
import torch
from fastai.vision.all import (
    Callback,
    ImageDataLoaders,
    Resize,
    accuracy,
    aug_transforms,
    set_seed,
    vision_learner,
)
from recording import Recording, peer_arguments  # scripts/comparison/recording.py

ITEM_SIZE = 460
BATCH = 64  # fastai's default


class Clock(Callback):
    """Records the accuracy after each epoch, and leaves the time of the evaluation out."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording
        self.epochs = 0
        self.stage = ""
        self._block: Any = None

    def before_train(self) -> None:
        """Starts the clock."""
        self._block = self.recording.training()
        self._block.__enter__()

    def after_train(self) -> None:
        """Stops the clock."""
        self._block.__exit__(None, None, None)

    def after_validate(self) -> None:
        """Adds a point."""
        self.epochs += 1
        stage = "frozen" if self.learn.opt.frozen_idx else "fine-tuned"
        if stage != self.stage:
            self.epochs, self.stage = 1, stage
        self.recording.add(stage, self.epochs, float(self.learn.metrics[0].value))


def build(arguments: Any) -> tuple[Any, Any]:
    """Builds the loaders and the learner."""
    count = sum(1 for _ in (arguments.photographs / "train").glob("*/*"))
    loaders = ImageDataLoaders.from_folder(
        arguments.photographs,
        bs=min(BATCH, count),
        train="train",
        valid="test",
        item_tfms=Resize(ITEM_SIZE),
        batch_tfms=aug_transforms(size=arguments.size),
        seed=arguments.seed,
    )
    return loaders, vision_learner(loaders, "xception_keras", metrics=accuracy)


def epoch_seconds(arguments: Any) -> tuple[float, float]:
    """Returns the seconds of an epoch with a frozen trunk, and with all layers, from one step of each."""
    loaders, learner = build(arguments)
    seconds = []
    start = time.perf_counter()
    images, labels = loaders.one_batch()
    batch_seconds = time.perf_counter() - start
    for change in (learner.freeze, learner.unfreeze):
        change()
        learner.model.train()
        for _ in range(2):  # the first step also prepares
            start = time.perf_counter()
            loss = learner.loss_func(learner.model(images), labels)
            loss.backward()
            step_seconds = time.perf_counter() - start
        seconds.append((step_seconds + batch_seconds) * len(loaders.train))
    return seconds[0], seconds[1]


def main() -> None:
    arguments = peer_arguments(__doc__)
    recording = Recording(arguments)
    os.environ[timm_network.STATE_VARIABLE] = str(arguments.state)
    torch.set_num_threads(os.cpu_count() or 1)
    frozen_seconds, whole_seconds = epoch_seconds(arguments)
    set_seed(arguments.seed)
    _, learner = build(arguments)
    learner.add_cb(Clock(recording))
    recording.end_start_up()
    epochs = int((recording.remaining_seconds - frozen_seconds) / whole_seconds)
    with learner.no_bar(), learner.no_logging():
        if epochs >= 1:
            learner.fine_tune(epochs)
        else:  # the first phase of fine_tune, which has this rate and this share
            learner.freeze()
            frozen_epochs = max(int(recording.remaining_seconds / frozen_seconds), 1)
            learner.fit_one_cycle(frozen_epochs, slice(2e-3), pct_start=0.99)
    recording.write(
        size=arguments.size, planned={"frozen": frozen_seconds, "whole": whole_seconds, "epochs": epochs}
    )


if __name__ == "__main__":
    main()
