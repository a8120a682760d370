"""Losses: functions of logits and labels, and their weighted sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import paddle
import paddle.nn.functional as F

from ppxcls.config.checks import BelowOne, ConfigPlace, NotNegative, Share
from ppxcls.config.figures import WHOLE_LOSS, numbered_name
from ppxcls.config.registry import Registry


@dataclass
class LossKeys:
    """Common key of all losses.

    Attributes:
        weight: factor of the loss in the sum. At least one loss must have a factor above 0.
    """

    weight: NotNegative = 1.0


class Loss(Protocol):
    """A function of logits and labels.

    Attributes:
        needs_soft_labels: True if labels must be float32 [N, class_num], which mixing produces.
    """

    needs_soft_labels: ClassVar[bool] = False

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """Returns the mean loss of a batch, float32 [].

        Args:
            logits: [N, class_num].
            labels: int64 [N], or float32 [N, class_num].
        """


LOSSES: Registry[Loss] = Registry("loss", common=LossKeys, base=Loss)


def soft_targets(labels: paddle.Tensor, class_num: int, epsilon: float = 0.0) -> paddle.Tensor:
    """Returns soft targets, float32 [N, class_num], with label smoothing.

    Args:
        labels: int64 [N], or soft labels.
        class_num: number of classes.
        epsilon: label smoothing, as in CELoss.
    """
    targets = F.one_hot(labels, class_num) if labels.ndim == 1 else labels
    return F.label_smooth(targets, epsilon=epsilon) if epsilon else targets


@LOSSES.register
class CELoss(Loss):
    """Cross entropy, averaged over the batch. Labels may be soft.

    Args:
        epsilon: label smoothing (arXiv:1512.00567, section 7), the fraction of the target that is spread
            evenly over all classes.
    """

    def __init__(self, epsilon: BelowOne = 0.0) -> None:
        self.epsilon = epsilon

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        logits = logits.astype("float32")
        if labels.ndim == 1 and self.epsilon == 0:
            return F.cross_entropy(logits, labels)
        return F.cross_entropy(logits, soft_targets(labels, logits.shape[-1], self.epsilon), soft_label=True)


@LOSSES.register
class SoftTargetCrossEntropy(Loss):
    """Cross entropy that requires soft labels, which mixing produces."""

    needs_soft_labels = True

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """Returns the mean loss of a batch, float32 [].

        Args:
            logits: [N, class_num].
            labels: float32 [N, class_num].
        """
        return F.cross_entropy(logits.astype("float32"), labels, soft_label=True)


@LOSSES.register
class BCELoss(Loss):
    """Binary cross entropy of each class with soft labels (ResNet strikes back, arXiv:2110.00476, section 4).

    Args:
        epsilon: label smoothing, as in CELoss.
        target_threshold: threshold of the targets; those above it become 1, others 0. None keeps them soft.
        sum_classes: True to sum over the classes instead of averaging.
    """

    needs_soft_labels = True

    def __init__(
        self, epsilon: BelowOne = 0.0, target_threshold: Share | None = None, *, sum_classes: bool = False
    ) -> None:
        self.epsilon = epsilon
        self.target_threshold = target_threshold
        self.sum_classes = sum_classes

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """Returns the mean loss of a batch, float32 [].

        Args:
            logits: [N, class_num].
            labels: float32 [N, class_num].
        """
        targets = soft_targets(labels, logits.shape[-1], self.epsilon)
        if self.target_threshold is not None:
            targets = (targets > self.target_threshold).astype("float32")
        loss = F.binary_cross_entropy_with_logits(logits.astype("float32"), targets, reduction="none")
        return loss.sum(axis=-1).mean() if self.sum_classes else loss.mean()


@LOSSES.register
class FocalLoss(Loss):
    """Cross entropy times ``(1 - p) ** gamma``; p is the target's probability (arXiv:1708.02002, equation 4).

    The loss is averaged over the batch.

    Args:
        gamma: exponent. A larger value gives less weight to well-classified samples. 0 is cross entropy.
    """

    def __init__(self, gamma: NotNegative = 2.0) -> None:
        self.gamma = gamma

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        log_p = F.log_softmax(logits.astype("float32"), axis=-1)
        terms = soft_targets(labels, logits.shape[-1]) * (1 - log_p.exp()) ** self.gamma * log_p
        return -terms.sum(axis=-1).mean()


class WeightedSum:
    """Weighted sum of named losses.

    Args:
        terms: name, weight and function of each loss.
    """

    def __init__(self, terms: Sequence[tuple[str, float, Loss]]) -> None:
        self.terms = list(terms)
        self.names = [*(name for name, _, _ in terms), WHOLE_LOSS]

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> dict[str, paddle.Tensor]:
        """Returns the weighted losses by name, and their sum as ``loss``; each is float32 []."""
        values = {name: weight * function(logits, labels) for name, weight, function in self.terms}
        return {**values, "loss": paddle.add_n(list(values.values()))}


def build_loss(
    specs: Sequence[Mapping[str, Any]],
    where: ConfigPlace = ConfigPlace(("Loss",)),
    *,
    soft_labels: bool = True,
) -> WeightedSum:
    """Builds the weighted sum of a config's losses, ``[{"CELoss": {"weight": 1.0, "epsilon": 0.1}}]``.

    Args:
        specs: blocks of the losses.
        where: place of the list, for error messages.
        soft_labels: True if the labels are soft because of mixing.

    Raises:
        ConfigError: the list is empty, all weights are 0, a loss is unknown or has an invalid argument, or a
            loss requires soft labels and ``soft_labels`` is False.
    """
    if not specs:
        raise where.error("expected at least one loss")
    terms: list[tuple[str, float, Loss]] = []
    for index, block in enumerate(LOSSES.blocks(specs, where)):
        function, name = LOSSES.build(block), block.name
        if function.needs_soft_labels and not soft_labels:
            reason = "needs soft labels, which a batch transform makes in training; received integer labels"
            raise block.where.error(f"{name} {reason}")
        name = numbered_name(name, {term[0] for term in terms}, index)
        terms.append((name, LOSSES.common_keys(block).weight, function))
    if not any(weight for _, weight, _ in terms):
        raise where.error("expected at least one loss with a weight above 0")
    return WeightedSum(terms)
