"""Metrics, computed as sums over batches.

So any division of the samples into batches and processes gives the same figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import paddle

from ppxcls.config.checks import Count, Where
from ppxcls.config.registry import Registry
from ppxcls.system import distributed


class Metric(Protocol):
    """Figures about predictions.

    Attributes:
        names: of the figures that are means over samples. Training metrics have no others.
    """

    names: Sequence[str] = ()

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> dict[str, paddle.Tensor]:
        """Args: logits: [N, class_num]; labels: int64 [N].

        Returns: for each of ``names`` the sum over the batch, float32 [].
        """

    def results(self) -> dict[str, float]:
        """Figures that are not means, at the end of an evaluation.

        Counting starts again. All processes call it.
        """
        return {}


METRICS: Registry[Metric] = Registry("metric", provided=("class_num",), base=Metric)


@METRICS.register
class TopkAcc(Metric):
    """Share of samples whose label is among the k largest logits. With fewer than k classes it is 1.

    Args:
        topk: k, or several.
    """

    def __init__(self, topk: Count | list[Count] = 1) -> None:
        self.topk = [topk] if isinstance(topk, int) else list(topk)
        if not self.topk:
            raise ValueError("expected at least one k in topk")
        self.names = [f"top{k}" for k in self.topk]

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> dict[str, paddle.Tensor]:
        """Args: logits: [N, class_num]; labels: int64 [N].

        Returns: ``top<k>``: number of correct samples, float32 [].
        """
        largest = min(max(self.topk), logits.shape[-1])
        order = paddle.topk(logits.astype("float32"), largest, axis=-1)[1]
        hits = (order == labels.unsqueeze(-1)).astype("float32").sum(axis=0)
        return {f"top{k}": hits[: min(k, largest)].sum() for k in self.topk}


@METRICS.register
class ClassReport(Metric):
    """Precision, recall, F1 and balanced accuracy, from a confusion matrix. For evaluation only.

    The confusion matrix adds up exactly over processes; scikit-learn computes the figures.

    Args:
        class_num: number of classes.
    """

    def __init__(self, class_num: int) -> None:
        self._matrix = np.zeros((class_num, class_num), np.int64)

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> dict[str, paddle.Tensor]:
        """Args: logits: [N, class_num]; labels: int64 [N]."""
        np.add.at(self._matrix, (labels.numpy(), logits.argmax(axis=-1).numpy()), 1)
        return {}

    def results(self) -> dict[str, float]:
        """Means over the classes that occur, over all processes.

        Counting starts again. All processes call it.
        """
        from sklearn.metrics import precision_recall_fscore_support

        total = distributed.sum_over_processes(self._matrix.reshape(-1)).reshape(self._matrix.shape)
        self._matrix[:] = 0
        true, predicted = np.nonzero(total)
        weights = total[true, predicted]
        classes = np.arange(len(total))
        rows = precision_recall_fscore_support(
            true, predicted, labels=classes, sample_weight=weights, zero_division=0
        )
        self.by_class = {
            name: row.tolist()
            for name, row in zip(("precision", "recall", "f1", "support"), rows, strict=True)
        }
        self.by_class["confusion_matrix"] = total.astype(int).tolist()
        occurring = rows[3] > 0
        means = {
            name: float(row[occurring].mean())
            for name, row in zip(("precision", "recall", "f1"), rows, strict=False)
        }
        return {**means, "balanced_accuracy": means["recall"]}


def build_metrics(
    specs: Sequence[Mapping[str, Any]] | None,
    where: Where = Where(("Metric",)),
    class_num: int = 1000,
    training: bool = False,
) -> list[Metric]:
    """The metrics of a config's list: ``[{"TopkAcc": {"topk": [1, 5]}}]``; none for null.

    Args:
        specs: blocks of the metrics.
        where: place of the list, for error messages.
        class_num: number of classes.
        training: whether they are training metrics, which must be means over samples.

    Raises:
        ConfigError: a metric is unknown, has an invalid argument, or is for evaluation only.
    """
    metrics = []
    for block in METRICS.blocks(specs or [], where):
        metrics.append(METRICS.build(block, class_num=class_num))
        if training and not metrics[-1].names:
            raise block.where.error(f"{block.name} is an evaluation metric: expected it under Metric.Eval")
    return metrics


class Scorer:
    """Puts losses and metrics of a batch into one tensor of sums over its samples, in the order of ``names``.

    Args:
        loss_names: names of the losses.
        metrics: from ``build_metrics``.
    """

    def __init__(self, loss_names: Sequence[str], metrics: Sequence[Metric]) -> None:
        self.metrics = list(metrics)
        self.names = [name for metric in self.metrics for name in metric.names] + list(loss_names)

    def __call__(
        self, losses: Mapping[str, paddle.Tensor], logits: paddle.Tensor, labels: paddle.Tensor
    ) -> paddle.Tensor:
        """Args: losses: means over the batch. Returns: float32 [len(names)]."""
        count = logits.shape[0]
        sums: dict[str, paddle.Tensor] = {}
        for metric in self.metrics:
            sums |= metric(logits, labels)
        sums |= {name: value * count for name, value in losses.items()}
        return paddle.stack([sums[name].astype("float32") for name in self.names])


class Means(NamedTuple):
    """Over all processes: number of samples, number of unreadable samples, and means by name."""

    samples: int
    left_out: int
    values: dict[str, float]


class Totals:
    """Sums over many batches, on the host in float64.

    Args:
        names: of the entries of a batch's sums.
        values: sums to continue from, by name, with ``samples`` and ``left_out``.
    """

    def __init__(self, names: Sequence[str], values: Mapping[str, float] | None = None) -> None:
        self.names = ["samples", "left_out", *names]
        self.sums = np.array([(values or {}).get(name, 0.0) for name in self.names])

    def add(self, samples: int, sums: np.ndarray[Any, Any], left_out: int = 0) -> None:
        """Add a batch: its number of samples and its sums, [len(names)]."""
        self.sums += np.concatenate(([samples, left_out], sums))

    def reduced(self) -> Means:
        """The means over all processes, which all call it."""
        samples, left_out, *sums = distributed.sum_over_processes(self.sums).tolist()
        means = {name: value / max(samples, 1) for name, value in zip(self.names[2:], sums, strict=True)}
        return Means(round(samples), round(left_out), means)

    def gather(self) -> None:
        """Move the sums of all processes, which all call it, to the first one. The means stay the same."""
        total = distributed.sum_over_processes(self.sums)
        self.sums = total if distributed.rank() == 0 else np.zeros_like(total)

    def as_dict(self) -> dict[str, float]:
        """This process's sums by name, to continue from; empty before the first batch."""
        return dict(zip(self.names, self.sums.tolist(), strict=True)) if self.sums.any() else {}
