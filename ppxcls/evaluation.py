"""Evaluation: every sample exactly once, whatever the number of processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import paddle
from paddle import nn

from ppxcls.data.loader import Loader
from ppxcls.data.model_input import ModelInput
from ppxcls.interrupts import interrupts_deferred
from ppxcls.losses import WeightedSum
from ppxcls.metrics import Scorer, Totals


def evaluate_model(
    model: nn.Layer,
    loader: Loader,
    loss_fn: WeightedSum,
    metrics: list[Any],
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> dict[str, float]:
    """Evaluate a model on this process's part of a data set and sum over the processes.

    Args:
        model: without the wrapper for data parallelism, which would wait for processes that have no batch left.
        loader: not shuffled; the parts of all processes make up the data set.
        autocast: makes the context to compute in.

    Returns:
        Metrics as shares, losses as means over samples, and ``num_samples``.

    Raises:
        DataError: a sample can't be loaded.
    """
    to_input = ModelInput(loader.dataset.device_stage)
    scorer = Scorer(loss_fn.names, metrics)
    totals = Totals(scorer.names)
    scored: list[tuple[int, paddle.Tensor]] = []  # read at the end: reading one makes the host wait for the device
    was_training = model.training
    model.eval()
    try:
        with paddle.no_grad():
            for batch in loader.epoch():
                if batch.plan.count:
                    labels = paddle.to_tensor(batch.labels)
                    with interrupts_deferred(), autocast():
                        logits = model(to_input(batch.images))
                        losses = loss_fn(logits, labels)
                    scored.append((batch.plan.count, scorer(losses, logits, labels)))
    finally:
        if was_training:
            model.train()
    for count, sums in scored:
        totals.add(count, sums.numpy())
    num_samples, means = totals.reduced()
    return {**means, "num_samples": num_samples}
