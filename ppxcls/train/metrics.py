"""Metrics, computed as sums over batches.

Therefore the results are the same for any division of the samples into batches and processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import paddle

from ppxcls.config.checks import ConfigPlace, Count
from ppxcls.config.figures import refuse_in_training
from ppxcls.config.registry import Registry
from ppxcls.system import distributed
from ppxcls.system.arrays import Array
from ppxcls.train.flat_tensors import as_float32


class Metric(Protocol):
    """One or several measures of predictions.

    Attributes:
        names: names of the measures that are means over samples. Training metrics have no other measures.
        figures: names of the measures that ``results`` returns. Only those that are declared here can be
            ``Global.best_metric``.
        smaller_is_better: those of ``names`` and ``figures`` whose smaller values are better.
    """

    names: Sequence[str] = ()
    figures: Sequence[str] = ()
    smaller_is_better: Sequence[str] = ()

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> dict[str, paddle.Tensor]:
        """Returns the sum over the batch for each of ``names``, float32 [].

        Args:
            logits: [N, class_num].
            labels: int64 [N].
        """

    def reset(self) -> None:
        """Forgets the batches of an evaluation that was interrupted. It is called before each evaluation."""

    def results(self) -> dict[str, float]:
        """Returns the measures that are not means, at the end of an evaluation.

        They are ``figures``, and maybe others. It also resets the counts. All processes must call it.
        """
        return {}


METRICS: Registry[Metric] = Registry(
    "metric",
    program_parameters=("class_num", "class_names"),
    base=Metric,
    optional_members=("figures", "smaller_is_better", "reset"),
)


@METRICS.register
class TopkAcc(Metric):
    """Top-k accuracy: the fraction of samples with the label among the k largest logits.

    It is 1 if there are fewer than k classes.

    Args:
        topk: number k, or a list of several.
    """

    def __init__(self, topk: Count | list[Count] = 1) -> None:
        self.topk = [topk] if isinstance(topk, int) else list(topk)
        if not self.topk:
            raise ValueError("expected at least one k in topk")
        self.names = [f"top{k}" for k in self.topk]

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> dict[str, paddle.Tensor]:
        """Returns the number of correct samples as ``top<k>`` for each k, float32 [].

        Args:
            logits: [N, class_num].
            labels: int64 [N].
        """
        max_k = min(max(self.topk), logits.shape[-1])
        top_classes = paddle.topk(logits.astype("float32"), max_k, axis=-1)[1]
        hits = (top_classes == labels.unsqueeze(-1)).astype("float32").sum(axis=0)
        return {f"top{k}": hits[: min(k, max_k)].sum() for k in self.topk}


def build_metrics(
    specs: Sequence[Mapping[str, Any]] | None,
    where: ConfigPlace = ConfigPlace(("Metric",)),
    *,
    class_num: int = 1000,
    class_names: Sequence[str] = (),
    training: bool = False,
) -> list[Metric]:
    """Builds the metrics of a config's list, ``[{"TopkAcc": {"topk": [1, 5]}}]``; null gives no metrics.

    Args:
        specs: blocks of the metrics.
        where: place of the list, for error messages.
        class_num: number of classes.
        class_names: names of the classes; empty if they have none.
        training: True for training metrics, which must be means over samples.

    Raises:
        ConfigError: a metric is unknown or has an invalid argument, or a training metric is for evaluation
            only.
    """
    metrics = []
    for block in METRICS.blocks(specs or [], where):
        metrics.append(METRICS.build(block, class_num=class_num, class_names=class_names))
        if training:
            refuse_in_training(block, metrics[-1].names)
    return metrics


class Scorer:
    """Puts losses and metrics of a batch into one tensor of sums over its samples, in the order of ``names``.

    Args:
        loss_names: names of the losses.
        metrics: metrics, as ``build_metrics`` returns them.
    """

    def __init__(self, loss_names: Sequence[str], metrics: Sequence[Metric]) -> None:
        self.metrics = list(metrics)
        self.names = [name for metric in self.metrics for name in metric.names] + list(loss_names)

    def __call__(
        self, losses: Mapping[str, paddle.Tensor], logits: paddle.Tensor, labels: paddle.Tensor
    ) -> paddle.Tensor:
        """Returns the sums over a batch, float32 [len(names)].

        Args:
            losses: means over the batch by name.
            logits: [N, class_num].
            labels: labels, as the metrics take them.
        """
        count = logits.shape[0]
        sums: dict[str, paddle.Tensor] = {}
        for metric in self.metrics:
            sums |= metric(logits, labels)
        # In float32 first: a sum over a large batch is beyond the largest float16.
        sums |= {name: as_float32(value) * count for name, value in losses.items()}
        return paddle.stack([as_float32(sums[name]) for name in self.names])


class Means(NamedTuple):
    """Number of samples, number of unreadable samples, and means by name, over all processes."""

    samples: int
    left_out: int
    values: dict[str, float]


class Totals:
    """Sums over many batches, on the host in float64.

    Args:
        names: names of the entries of a batch's sums.
        values: initial sums by name, including ``samples`` and ``left_out``; missing sums are 0.
    """

    def __init__(self, names: Sequence[str], values: Mapping[str, float] | None = None) -> None:
        self.names = ["samples", "left_out", *names]
        self.sums = np.array([(values or {}).get(name, 0.0) for name in self.names])

    def add(self, samples: int, sums: Array, left_out: int = 0) -> None:
        """Adds a batch.

        Args:
            samples: number of samples in the batch.
            sums: sums over the batch, [len(names)].
            left_out: number of unreadable samples.
        """
        self.sums += np.concatenate(([samples, left_out], sums))

    def reduced(self) -> Means:
        """Returns the means over all processes. All processes must call it."""
        samples, bad_count, *sums = distributed.sum_over_processes(self.sums).tolist()
        means = {name: value / max(samples, 1) for name, value in zip(self.names[2:], sums, strict=True)}
        return Means(round(samples), round(bad_count), means)

    def gather(self) -> None:
        """Moves the sums of all processes to the first one. The means stay the same.

        All processes must call it.
        """
        total = distributed.sum_over_processes(self.sums)
        self.sums = total if distributed.rank() == 0 else np.zeros_like(total)

    def as_dict(self) -> dict[str, float]:
        """Returns this process's sums by name, to restore them later; empty before the first batch."""
        return dict(zip(self.names, self.sums.tolist(), strict=True)) if self.sums.any() else {}
