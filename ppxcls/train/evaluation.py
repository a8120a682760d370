"""Evaluation: every sample exactly once, whatever the number of processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ppxcls.data.device import ModelInput
from ppxcls.data.loader import Batch, Loader
from ppxcls.system import distributed
from ppxcls.system.signals import interrupts_deferred
from ppxcls.train.losses import WeightedSum
from ppxcls.train.metrics import Scorer, Totals


def evaluate_model(
    model: nn.Layer,
    loader: Loader,
    loss_fn: WeightedSum,
    metrics: list[Any],
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    watched: Callable[[Iterator[Batch]], Iterator[Batch]] = iter,
) -> dict[str, float]:
    """Evaluate a model on this process's part of a data set and sum over the processes.

    Args:
        model: without the wrapper for data parallelism, which would wait for processes that have no batch left.
        loader: not shuffled; the parts of all processes make up the data set.
        autocast: makes the context to compute in.
        watched: sees each batch pass, of which all processes have equally many. What it raises ends the evaluation.

    Returns:
        Metrics as shares, losses as means over samples, ``num_samples``, and ``bad_samples`` where the loader leaves out what
        can't be read.

    Raises:
        DataError: a sample can't be loaded.
    """
    to_input = ModelInput(loader.dataset.device_stage)
    scorer = Scorer(loss_fn.names, metrics)
    totals = Totals(scorer.names)
    scored: list[tuple[int, paddle.Tensor]] = []  # read at the end: reading one makes the host wait for the device
    was_training = model.training
    model.eval()
    distributed.share_first_statistics(model)  # what is evaluated is what is saved
    left_out = 0
    try:
        with paddle.no_grad():
            for batch in watched(loader.epoch()):
                left_out += batch.left_out
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
    totals.add(0, np.zeros(len(scorer.names)), left_out)
    means = totals.reduced()
    bad = {"bad_samples": means.left_out} if loader.bad_samples else {}
    reports = [metric.results() for metric in metrics if hasattr(metric, "results")]
    extra = {name: value for report in reports for name, value in report.items()}
    return {**means.values, **extra, "num_samples": means.samples, **bad}
