"""Measures the time of training steps on one batch."""

from __future__ import annotations

import time

import paddle
from paddle import nn
from paddle.optimizer import Optimizer

from ppxcls.models.logits import checked_logits
from ppxcls.system.signals import interrupts_deferred


def timed_steps(
    model: nn.Layer, optimizer: Optimizer, *, images: paddle.Tensor, labels: paddle.Tensor, count: int
) -> tuple[list[float], float]:
    """Trains on the same batch repeatedly, and measures each step.

    Args:
        model: network to train.
        optimizer: optimizer of the network's parameters.
        images: images of the batch, [N, 3, H, W].
        labels: labels of the batch, int64 [N].
        count: number of steps.

    Returns:
        The seconds of each step, and the loss of the last step.
    """
    times, loss_value = [], 0.0
    for _ in range(count):
        start = time.perf_counter()
        with interrupts_deferred():
            loss = nn.functional.cross_entropy(checked_logits(model(images), model), labels)
            loss.backward()
            optimizer.step()
            optimizer.clear_grad()
            loss_value = float(loss)  # waits for the device
        times.append(time.perf_counter() - start)
    return times, loss_value
