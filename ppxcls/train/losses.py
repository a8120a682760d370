"""Losses: functions of logits and labels, and their weighted sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import paddle
import paddle.nn.functional as F

from ppxcls.config.checks import BelowOne, Finite, NotNegative, Share, Where
from ppxcls.config.registry import Registry


@dataclass
class LossKeys:
    """Common key of the losses.

    Attributes:
        weight: factor of the loss in the sum.
    """

    weight: Finite = 1.0


class Loss(Protocol):
    """A function of logits and labels.

    Attributes:
        needs_soft_labels: whether labels must be float32 [N, class_num], as mixing makes them.
    """

    needs_soft_labels: ClassVar[bool] = False

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """Args: logits: [N, class_num]; labels: int64 [N], or float32 [N, class_num].

        Returns: the batch's mean, float32 [].
        """


LOSSES: Registry[Loss] = Registry("loss", common=LossKeys, base=Loss)


def soft_targets(labels: paddle.Tensor, class_num: int, epsilon: float = 0.0) -> paddle.Tensor:
    """Soft targets, float32 [N, class_num], from labels int64 [N] or soft labels, with label smoothing by ``epsilon``."""
    targets = F.one_hot(labels, class_num) if labels.ndim == 1 else labels
    return F.label_smooth(targets, epsilon=epsilon) if epsilon else targets


@LOSSES.register
class CELoss(Loss):
    """Cross entropy, averaged over the batch; labels may be soft.

    Args:
        epsilon: label smoothing (arXiv:1512.00567, section 7): the share of the target spread evenly over all
            classes.
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
class SoftTargetCrossEntropy(Loss):
    """Cross entropy that requires soft labels, as mixing makes them."""

    needs_soft_labels = True

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """Args: logits: [N, class_num]; labels: float32 [N, class_num]. Returns: float32 []."""
        return F.cross_entropy(logits.astype("float32"), labels, soft_label=True)


@LOSSES.register
class BCELoss(Loss):
    """Binary cross entropy of every class with soft labels (ResNet strikes back, arXiv:2110.00476, section 4).

    Args:
        epsilon: label smoothing, as in CELoss.
        target_threshold: targets above it become 1 and others 0; None leaves them soft.
        sum_classes: sum over the classes instead of averaging.
    """

    needs_soft_labels = True

    def __init__(
        self, epsilon: BelowOne = 0.0, target_threshold: Share | None = None, sum_classes: bool = False
    ) -> None:
        self.epsilon, self.target_threshold, self.sum_classes = epsilon, target_threshold, sum_classes

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """Args: logits: [N, class_num]; labels: float32 [N, class_num]. Returns: float32 []."""
        targets = soft_targets(labels, logits.shape[-1], self.epsilon)
        if self.target_threshold is not None:
            targets = (targets > self.target_threshold).astype("float32")
        loss = F.binary_cross_entropy_with_logits(logits.astype("float32"), targets, reduction="none")
        return loss.sum(axis=-1).mean() if self.sum_classes else loss.mean()


@LOSSES.register
class FocalLoss(Loss):
    """Cross entropy times ``(1 - p) ** gamma`` of the target's probability (arXiv:1708.02002, equation 4),
    averaged over the batch.

    Args:
        gamma: the larger it is, the less samples count that are classified well; 0 is cross entropy.
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

    def __init__(self, terms: Sequence[tuple[str, float, Loss]]) -> None:
        self.terms = list(terms)
        self.names = [*(name for name, _, _ in terms), "loss"]

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> dict[str, paddle.Tensor]:
        """The weighted terms by name, and their sum under ``loss``; each float32 []."""
        values = {name: weight * function(logits, labels) for name, weight, function in self.terms}
        return {**values, "loss": paddle.add_n(list(values.values()))}


def build_loss(
    specs: Sequence[Mapping[str, Any]], where: Where = Where(("Loss",)), soft_labels: bool = True
) -> WeightedSum:
    """The weighted sum of a config's list of losses: ``[{"CELoss": {"weight": 1.0, "epsilon": 0.1}}]``.

    Args:
        specs: blocks of the losses.
        where: place of the list, for error messages.
        soft_labels: whether the labels are soft, as mixing makes them.

    Raises:
        ConfigError: the list is empty, a loss is unknown or has an invalid argument, or it requires soft
            labels.
    """
    if not specs:
        raise where.error("expected at least one loss")
    terms: list[tuple[str, float, Loss]] = []
    for i, block in enumerate(LOSSES.blocks(specs, where)):
        function, name = LOSSES.build(block), block.name
        if function.needs_soft_labels and not soft_labels:
            needs = "needs soft labels, which a batch transform makes in training; received integer labels"
            raise block.where.error(f"{name} {needs}")
        name = name if name not in {term[0] for term in terms} else f"{name}_{i}"
        terms.append((name, LOSSES.common_keys(block).weight, function))
    return WeightedSum(terms)
