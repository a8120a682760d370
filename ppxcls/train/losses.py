"""Losses: functions of logits and labels, and their weighted sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import paddle
import paddle.nn.functional as F

from ppxcls.config.checks import BelowOne, NotNegative, Share, Where
from ppxcls.config.registry import LOSSES, split_component


def soft_targets(labels: paddle.Tensor, class_num: int, epsilon: float = 0.0) -> paddle.Tensor:
    """Targets float32 [N, class_num] of labels int64 [N], or soft ones already; ``epsilon`` of each is spread over all classes."""
    targets = F.one_hot(labels, class_num) if labels.ndim == 1 else labels
    return F.label_smooth(targets, epsilon=epsilon) if epsilon else targets


@LOSSES.register
class CELoss:
    """Cross entropy, averaged over the batch; labels may be soft.

    Args:
        epsilon: label smoothing (arXiv:1512.00567, section 7): the share of the target spread evenly over all classes.
    """

    def __init__(self, epsilon: BelowOne = 0.0) -> None:
        self.epsilon = epsilon

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """Args: logits: [N, class_num]; labels: int64 [N], or float32 [N, class_num]. Returns: float32 []."""
        logits = logits.astype("float32")
        if labels.ndim == 1 and self.epsilon == 0:
            return F.cross_entropy(logits, labels)
        return F.cross_entropy(logits, soft_targets(labels, logits.shape[-1], self.epsilon), soft_label=True)


@LOSSES.register
class SoftTargetCrossEntropy:
    """Cross entropy with soft labels only, which mixing makes."""

    needs_soft_labels = True

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """Args: logits: [N, class_num]; labels: float32 [N, class_num]. Returns: float32 []."""
        return F.cross_entropy(logits.astype("float32"), labels, soft_label=True)


@LOSSES.register
class BCELoss:
    """Binary cross entropy of every class with soft labels (ResNet strikes back, arXiv:2110.00476, section 4).

    Args:
        epsilon: label smoothing, as in CELoss.
        target_threshold: targets above it count as 1 and the others as 0; None leaves them soft.
        sum_classes: add the classes up instead of averaging over them.
    """

    needs_soft_labels = True

    def __init__(self, epsilon: BelowOne = 0.0, target_threshold: Share | None = None, sum_classes: bool = False) -> None:
        self.epsilon, self.target_threshold, self.sum_classes = epsilon, target_threshold, sum_classes

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """Args: logits: [N, class_num]; labels: float32 [N, class_num]. Returns: float32 []."""
        targets = soft_targets(labels, logits.shape[-1], self.epsilon)
        if self.target_threshold is not None:
            targets = (targets > self.target_threshold).astype("float32")
        loss = F.binary_cross_entropy_with_logits(logits.astype("float32"), targets, reduction="none")
        return loss.sum(axis=-1).mean() if self.sum_classes else loss.mean()


@LOSSES.register
class FocalLoss:
    """Cross entropy times ``(1 - p) ** gamma`` of the target's probability (arXiv:1708.02002, equation 4), averaged over the batch.

    Args:
        gamma: how much less samples count that are right already; 0 is cross entropy.
    """

    def __init__(self, gamma: NotNegative = 2.0) -> None:
        self.gamma = gamma

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """Args: logits: [N, class_num]; labels: int64 [N], or float32 [N, class_num]. Returns: float32 []."""
        log_p = F.log_softmax(logits.astype("float32"), axis=-1)
        terms = soft_targets(labels, logits.shape[-1]) * (1 - log_p.exp()) ** self.gamma * log_p
        return -terms.sum(axis=-1).mean()


class WeightedSum:
    """Weighted sum of named losses.

    Args:
        terms: name, weight and function of each.
    """

    def __init__(self, terms: Sequence[tuple[str, float, Any]]) -> None:
        self.terms = list(terms)
        self.names = [*(name for name, _, _ in terms), "loss"]

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> dict[str, paddle.Tensor]:
        """The weighted terms by name, and their sum under ``loss``; each float32 []."""
        values = {name: weight * function(logits, labels) for name, weight, function in self.terms}
        return {**values, "loss": paddle.add_n(list(values.values()))}


def build_loss(specs: Sequence[Mapping[str, Any]], where: Where = Where(("Loss",)), soft_labels: bool = True) -> WeightedSum:
    """The weighted sum of a config's list of losses: ``[{"CELoss": {"weight": 1.0, "epsilon": 0.1}}]``.

    Args:
        soft_labels: whether the labels are soft, as mixing makes them.

    Raises:
        ConfigError: the list is empty, a loss is unknown or has a wrong argument, or it needs soft labels and there are none.
    """
    if not specs:
        raise where.error("expected at least one loss")
    terms: list[tuple[str, float, Any]] = []
    for i, spec in enumerate(specs):
        name, arguments, place = split_component(spec, where / i)
        function = LOSSES.build(name, arguments, place)
        if getattr(function, "needs_soft_labels", False) and not soft_labels:
            raise place.error(f"{name} needs soft labels: of training, with a batch transform that mixes; received integer labels")
        weight = LOSSES.build_common(arguments, place).weight
        terms.append((name if name not in {t[0] for t in terms} else f"{name}_{i}", weight, function))
    return WeightedSum(terms)
