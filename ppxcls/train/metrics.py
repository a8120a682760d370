"""Metrics, computed as sums over batches.

Therefore the results are the same for any division of the samples into batches and processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import paddle

from ppxcls.config.checks import ConfigPlace, Count
from ppxcls.config.registry import Registry
from ppxcls.system import distributed
from ppxcls.system.arrays import Array
from ppxcls.train.flat_tensors import as_float32


class Metric(Protocol):
    """One or several measures of predictions.

    Attributes:
        names: names of the measures that are means over samples. Training metrics have no other measures.
    """

    names: Sequence[str] = ()

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> dict[str, paddle.Tensor]:
        """Returns the sum over the batch for each of ``names``, float32 [].

        Args:
            logits: [N, class_num].
            labels: int64 [N].
        """

    def results(self) -> dict[str, float]:
        """Returns the measures that are not means, at the end of an evaluation.

        It also resets the counts. All processes must call it.
        """
        return {}


METRICS: Registry[Metric] = Registry("metric", program_parameters=("class_num",), base=Metric)


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


@METRICS.register
class ClassReport(Metric):
    """Precision, recall, F1 and balanced accuracy, from a confusion matrix. For evaluation only.

    The confusion matrices of all processes add up exactly. scikit-learn computes the measures.

    Args:
        class_num: number of classes.
    """

    def __init__(self, class_num: int) -> None:
        self._class_num = class_num
        self._pairs: list[paddle.Tensor] = []  # read at the end, because a read makes the host wait

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> dict[str, paddle.Tensor]:
        """Keeps the labels and predictions of a batch, and returns no sums.

        Args:
            logits: [N, class_num].
            labels: int64 [N].
        """
        self._pairs.append(paddle.stack([labels, logits.argmax(axis=-1)]))
        return {}

    def results(self) -> dict[str, float]:
        """Returns means over the classes that occur, from the samples of all processes.

        It also resets the counts. All processes must call it.
        """
        from sklearn.metrics import precision_recall_fscore_support

        matrix = np.zeros((self._class_num, self._class_num), np.int64)
        if self._pairs:
            np.add.at(matrix, tuple(paddle.concat(self._pairs, axis=1).numpy()), 1)
        self._pairs = []
        total = distributed.sum_over_processes(matrix.reshape(-1)).reshape(matrix.shape)
        true_classes, predicted_classes = np.nonzero(total)
        weights = total[true_classes, predicted_classes]
        classes = np.arange(len(total))
        rows = precision_recall_fscore_support(
            true_classes, predicted_classes, labels=classes, sample_weight=weights, zero_division=0
        )
        self.by_class = {
            name: row.tolist()
            for name, row in zip(("precision", "recall", "f1", "support"), rows, strict=True)
        }
        self.by_class["confusion_matrix"] = total.astype(int).tolist()
        has_samples = rows[3] > 0
        means = {
            name: float(row[has_samples].mean())
            for name, row in zip(("precision", "recall", "f1"), rows, strict=False)
        }
        return {**means, "balanced_accuracy": means["recall"]}


def build_metrics(
    specs: Sequence[Mapping[str, Any]] | None,
    where: ConfigPlace = ConfigPlace(("Metric",)),
    class_num: int = 1000,
    *,
    training: bool = False,
) -> list[Metric]:
    """Builds the metrics of a config's list, ``[{"TopkAcc": {"topk": [1, 5]}}]``; null gives no metrics.

    Args:
        specs: blocks of the metrics.
        where: place of the list, for error messages.
        class_num: number of classes.
        training: True for training metrics, which must be means over samples.

    Raises:
        ConfigError: a metric is unknown or has an invalid argument, or a training metric is for evaluation
            only.
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
