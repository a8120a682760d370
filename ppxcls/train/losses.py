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
from ppxcls.system.arrays import Array
from ppxcls.train.class_weights import ClassWeight, TrainingClasses, class_weights, logit_offsets


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
        class_weights: weight of each class, [class_num], for the log and the report; None for equal weights.
    """

    needs_soft_labels: ClassVar[bool] = False
    class_weights: Array | None = None

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """Returns the mean loss of a batch, float32 [].

        Args:
            logits: [N, class_num].
            labels: int64 [N], or float32 [N, class_num].
        """


LOSSES: Registry[Loss] = Registry(
    "loss",
    program_parameters=("classes",),
    common=LossKeys,
    base=Loss,
    optional_members=("class_weights",),
)


def soft_targets(labels: paddle.Tensor, class_num: int, epsilon: float = 0.0) -> paddle.Tensor:
    """Returns soft targets, float32 [N, class_num], with label smoothing.

    Args:
        labels: int64 [N], or soft labels.
        class_num: number of classes.
        epsilon: label smoothing, as in CELoss.
    """
    targets = F.one_hot(labels, class_num) if labels.ndim == 1 else labels
    return F.label_smooth(targets, epsilon=epsilon) if epsilon else targets


def _constant(values: Array | None) -> paddle.Tensor | None:
    """Returns values for each class as a tensor on the device, float32 [class_num]."""
    return None if values is None else paddle.to_tensor(values.astype("float32"))


@LOSSES.register
class CELoss(Loss):
    """Cross entropy, averaged over the batch. Labels may be soft.

    With class weights, the loss of an image is ``-sum(weight[c] * target[c] * log p[c])``. The mean divides
    by the number of images, as in Keras, and not by the sum of their weights, as in torch. So it does not
    depend on which images share a batch, a micro-batch or a process: the gradient of several processes is
    that of one, also if their shares of the classes differ.

    Args:
        epsilon: label smoothing (arXiv:1512.00567, section 7), the fraction of the target that is spread
            evenly over all classes.
        class_weight: weights of the classes. ``balanced``: inverse of the number of training images, as in
            scikit-learn. ``effective``: inverse of the effective number (arXiv:1901.05555) with a beta of
            0.999; ``{effective: 0.99}`` has another beta. A number from 0 to 1: exponent of the inverse; 1 is
            ``balanced``. These have the mean 1 over the training images. A list: one weight for each class. A
            mapping: weights by the names of classes, and 1 for all others. The mean over the batch divides by
            the number of images. Null for equal weights.
        logit_adjustment: factor tau of the logarithms of the class shares, which are added to the logits in
            training (arXiv:2007.07314, equation 10). 1 trains for the mean of the accuracies of the
            classes; 0 adds nothing.
        classes: classes of the run; None if neither of the two is used.
    """

    def __init__(
        self,
        epsilon: BelowOne = 0.0,
        *,
        class_weight: ClassWeight | None = None,
        logit_adjustment: NotNegative = 0.0,
        classes: TrainingClasses | None = None,
    ) -> None:
        self.epsilon = epsilon
        self.class_weights = class_weights(class_weight, classes)
        self.logit_offsets: Array | None = None
        if logit_adjustment:
            if classes is None:
                raise ValueError("logit_adjustment needs the classes of a run, and they are not known here")
            self.logit_offsets = logit_offsets(logit_adjustment, classes.counts)
        self._weights = _constant(self.class_weights)
        self._offsets = _constant(self.logit_offsets)

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        logits = logits.astype("float32")
        if self._offsets is not None:
            logits = logits + self._offsets
        if self._weights is not None:
            targets = soft_targets(labels, logits.shape[-1], self.epsilon)
            return -(self._weights * targets * F.log_softmax(logits, axis=-1)).sum(axis=-1).mean()
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

    With class weights, all terms of an image are multiplied by the weight of its class, as in
    arXiv:1901.05555, section 4.1. For soft labels, it is the mean of the weights under the label. The mean
    over the batch divides by the number of images, as in CELoss.

    Args:
        epsilon: label smoothing, as in CELoss.
        target_threshold: threshold of the targets; those above it become 1, others 0. None keeps them soft.
        sum_classes: True to sum over the classes instead of averaging.
        class_weight: weights of the classes, as in CELoss.
        classes: classes of the run; None without ``class_weight``.
    """

    needs_soft_labels = True

    def __init__(
        self,
        epsilon: BelowOne = 0.0,
        target_threshold: Share | None = None,
        *,
        sum_classes: bool = False,
        class_weight: ClassWeight | None = None,
        classes: TrainingClasses | None = None,
    ) -> None:
        self.epsilon = epsilon
        self.target_threshold = target_threshold
        self.sum_classes = sum_classes
        self.class_weights = class_weights(class_weight, classes)
        self._weights = _constant(self.class_weights)

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """Returns the mean loss of a batch, float32 [].

        Args:
            logits: [N, class_num].
            labels: float32 [N, class_num].
        """
        soft_labels = soft_targets(labels, logits.shape[-1], self.epsilon)
        targets = soft_labels
        if self.target_threshold is not None:
            targets = (soft_labels > self.target_threshold).astype("float32")
        loss = F.binary_cross_entropy_with_logits(logits.astype("float32"), targets, reduction="none")
        if self._weights is not None:
            loss = loss * (self._weights * soft_labels).sum(axis=-1, keepdim=True)
        return loss.sum(axis=-1).mean() if self.sum_classes else loss.mean()


@LOSSES.register
class FocalLoss(Loss):
    """Cross entropy times ``(1 - p) ** gamma``; p is the target's probability (arXiv:1708.02002, equation 4).

    The loss is averaged over the batch. With class weights, each class's term is multiplied by its weight
    (equation 5 of the paper), and the mean divides by the number of images, as in CELoss.

    Args:
        gamma: exponent. A larger value gives less weight to well-classified samples. 0 is cross entropy.
        class_weight: weights of the classes, as in CELoss.
        classes: classes of the run; None without ``class_weight``.
    """

    def __init__(
        self,
        gamma: NotNegative = 2.0,
        *,
        class_weight: ClassWeight | None = None,
        classes: TrainingClasses | None = None,
    ) -> None:
        self.gamma = gamma
        self.class_weights = class_weights(class_weight, classes)
        self._weights = _constant(self.class_weights)

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        log_p = F.log_softmax(logits.astype("float32"), axis=-1)
        terms = soft_targets(labels, logits.shape[-1]) * (1 - log_p.exp()) ** self.gamma * log_p
        if self._weights is not None:
            terms = self._weights * terms
        return -terms.sum(axis=-1).mean()


class WeightedSum:
    """Weighted sum of named losses.

    Args:
        terms: name, weight and function of each loss.
    """

    def __init__(self, terms: Sequence[tuple[str, float, Loss]]) -> None:
        self.terms = list(terms)
        self.names = [*(name for name, _, _ in terms), WHOLE_LOSS]

    @property
    def class_weights(self) -> dict[str, Array]:
        """Weights of the classes, [class_num], by the names of the losses that have such weights."""
        values = {name: function.class_weights for name, weight, function in self.terms if weight}
        return {name: weights for name, weights in values.items() if weights is not None}

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> dict[str, paddle.Tensor]:
        """Returns the weighted losses by name, and their sum as ``loss``; each is float32 []."""
        values = {name: weight * function(logits, labels) for name, weight, function in self.terms}
        return {**values, "loss": paddle.add_n(list(values.values()))}


def build_loss(
    specs: Sequence[Mapping[str, Any]],
    where: ConfigPlace = ConfigPlace(("Loss",)),
    *,
    soft_labels: bool = True,
    classes: TrainingClasses | None = None,
) -> WeightedSum:
    """Builds the weighted sum of a config's losses, ``[{"CELoss": {"weight": 1.0, "epsilon": 0.1}}]``.

    Args:
        specs: blocks of the losses.
        where: place of the list, for error messages.
        soft_labels: True if the labels are soft because of mixing.
        classes: classes of the run, for losses that ask for them; None if they are not known.

    Raises:
        ConfigError: the list is empty, all weights are 0, a loss is unknown or has an invalid argument, or a
            loss requires soft labels and ``soft_labels`` is False.
        DataError: a loss asks for the training images, and they can't be counted.
    """
    if not specs:
        raise where.error("expected at least one loss")
    terms: list[tuple[str, float, Loss]] = []
    for index, block in enumerate(LOSSES.blocks(specs, where)):
        function, name = LOSSES.build(block, classes=classes), block.name
        if function.needs_soft_labels and not soft_labels:
            reason = "needs soft labels, which a batch transform makes in training; received integer labels"
            raise block.where.error(f"{name} {reason}")
        name = numbered_name(name, {term[0] for term in terms}, index)
        terms.append((name, LOSSES.common_keys(block).weight, function))
    if not any(weight for _, weight, _ in terms):
        raise where.error("expected at least one loss with a weight above 0")
    return WeightedSum(terms)
