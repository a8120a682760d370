"""Figures of groups of images, such as all frames of a video or all photographs of a patient.

The scores of a group are the means of its images' probabilities. Each process keeps the logits of its
images, 4 bytes per image and class. At the end, a few classes at a time are gathered from all processes and
added in the order of the list. So the figures do not depend on the number of processes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import paddle

from ppxcls.calibration.temperature import calibrated
from ppxcls.config.figures import GROUP_PREFIX
from ppxcls.system import distributed
from ppxcls.system.arrays import Array
from ppxcls.train.metrics import Metric, Scorer, Totals

GROUP_COUNT = "num_groups"
_CLASSES_AT_ONCE = 64  # classes whose gathered scores are in memory; for 50,000 images, they take 26 MB
_SMALLEST_SCORE = 1e-300  # float64; its logarithm is finite


def groups_digest(groups: Array, labels: Array) -> str:
    """Returns a SHA-256 of the groups of an evaluation.

    Args:
        groups: number of each image's group, as in ``GroupFigures``.
        labels: label of each group.
    """
    digest = hashlib.sha256()
    for numbers in (groups, labels):
        digest.update(f"{len(numbers)}\n".encode())
        digest.update(np.ascontiguousarray(numbers, np.int64).tobytes())
    return digest.hexdigest()


class GroupFigures:
    """Collects the logits of an evaluation, and computes the metrics of the groups.

    Args:
        groups: number of each image's group, from 0, int64 [N]; -1 for an image that is left out.
        labels: label of each group, int64 [G].
        metrics: metrics of their own, that no other evaluation uses.
    """

    def __init__(self, groups: Array, labels: Array, metrics: Sequence[Metric]) -> None:
        self._groups = groups
        self._labels = labels
        self._metrics = list(metrics)
        self._parts: list[tuple[Array, paddle.Tensor]] = []

    @property
    def digest(self) -> str:
        """A digest of the groups and their labels."""
        return groups_digest(self._groups, self._labels)

    def add(self, samples: Array, logits: paddle.Tensor) -> None:
        """Adds a batch.

        Args:
            samples: indices of the images in the data set, int64 [n].
            logits: output of the network, [n, class_num].
        """
        self._parts.append((samples, logits))  # read at the end, because a read makes the host wait

    def reset(self) -> None:
        """Forgets the batches of an evaluation that was interrupted."""
        self._parts = []
        for metric in self._metrics:
            metric.reset()

    def results(self) -> dict[str, float]:
        """Returns the figures by their names with ``group_``, and the number of groups; resets the images.

        Groups whose images can't be read have no scores, and are left out. Without any group, the figures are
        NaN. All processes must call it.
        """
        scores, has_scores = self._gathered_scores()
        self._parts = []
        group_count = int(has_scores.sum())
        if not group_count:
            names = [name for metric in self._metrics for name in (*metric.names, *metric.figures)]
            return {**{f"{GROUP_PREFIX}{name}": math.nan for name in names}, GROUP_COUNT: 0}
        # Each process takes some of the groups, because metrics sum over the processes.
        own_groups = np.flatnonzero(has_scores)[distributed.rank() :: distributed.world_size()]
        scorer = Scorer((), self._metrics)
        totals = Totals(scorer.names)
        if len(own_groups):
            logits = np.log(np.maximum(scores[own_groups], _SMALLEST_SCORE)).astype(np.float32)
            batch = paddle.to_tensor(logits), paddle.to_tensor(self._labels[own_groups])
            sums = {name: float(value) for metric in self._metrics for name, value in metric(*batch).items()}
            totals.add(len(own_groups), np.array([sums[name] for name in scorer.names]))
        means = totals.reduced().values
        figures: dict[str, float] = {}
        for metric in self._metrics:
            figures |= {name: means[name] for name in metric.names} | metric.results()
        return {
            **{f"{GROUP_PREFIX}{name}": value for name, value in figures.items()},
            GROUP_COUNT: group_count,
        }

    def _gathered_scores(self) -> tuple[Array, Array]:
        """Returns the scores of all groups, float64 [G, class_num], and which groups have some, bool [G]."""
        samples, scores = self._own_scores()
        all_samples = distributed.gathered_rows(samples).astype(np.int64)
        order = np.argsort(all_samples, kind="stable")
        groups = self._groups[all_samples[order]]
        is_grouped = groups >= 0
        group_count = len(self._labels)
        counts = np.bincount(groups[is_grouped], minlength=group_count)
        # A process without images does not know the number of classes.
        width = round(float(distributed.sum_over_processes(self._widths(scores)).max()))
        if not len(samples):
            scores = np.zeros((0, width))
        means = np.zeros((group_count, width))
        for start in range(0, width, _CLASSES_AT_ONCE):
            block = distributed.gathered_rows(scores[:, start : start + _CLASSES_AT_ONCE])[order][is_grouped]
            for column, values in enumerate(block.T, start):
                sums = np.bincount(groups[is_grouped], values, group_count)
                means[:, column] = sums / np.maximum(counts, 1)
        return means, counts > 0

    def _own_scores(self) -> tuple[Array, Array]:
        """Returns the indices of this process's images, [n], and their probabilities, [n, class_num]."""
        if not self._parts:
            return np.zeros(0, np.int64), np.zeros((0, 0))
        samples = np.concatenate([samples for samples, _ in self._parts])
        return samples, calibrated(np.concatenate([logits.numpy() for _, logits in self._parts]))

    @staticmethod
    def _widths(scores: Array) -> Array:
        """Returns the number of classes at this process's place, so that the largest is that of all."""
        widths = np.zeros(distributed.world_size())
        widths[distributed.rank()] = scores.shape[1]
        return widths
