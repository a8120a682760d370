"""Training steps on one batch, timed."""

from __future__ import annotations

import time

import paddle
from paddle import nn
from paddle.optimizer import Optimizer


def timed_steps(
    model: nn.Layer, optimizer: Optimizer, images: paddle.Tensor, labels: paddle.Tensor, count: int
) -> tuple[list[float], float]:
    """Train on the same batch again and again.

    Args:
        model: the network.
        optimizer: of its parameters.
        images: [N, 3, H, W].
        labels: int64 [N].
        count: number of steps.

    Returns:
        The seconds of each step, and the loss of the last one.
    """
    times, value = [], 0.0
    for _ in range(count):
        start = time.perf_counter()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        value = float(loss)  # waits for the device
        times.append(time.perf_counter() - start)
    return times, value
