"""Losses: functions of logits and labels, and their weighted sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import paddle
import paddle.nn.functional as F

from ppxcls.registry import LOSSES, split_component
from ppxcls.schema import Bound, Where


@LOSSES.register
class CELoss:
    """Cross entropy, averaged over the batch; labels may be soft.

    Args:
        epsilon: label smoothing (arXiv:1512.00567, section 7): the share of the target spread evenly over all classes.
    """

    def __init__(self, epsilon: Annotated[float, Bound(ge=0, lt=1)] = 0.0) -> None:
        self.epsilon = epsilon

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """Args: logits: [N, class_num]; labels: int64 [N], or float32 [N, class_num]. Returns: float32 []."""
        logits = logits.astype("float32")
        if labels.ndim == 1 and self.epsilon == 0:
            return F.cross_entropy(logits, labels)
        targets = F.one_hot(labels, logits.shape[-1]) if labels.ndim == 1 else labels
        if self.epsilon:
            targets = F.label_smooth(targets, epsilon=self.epsilon)
        return F.cross_entropy(logits, targets, soft_label=True)


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


def build_loss(specs: Sequence[Mapping[str, Any]], where: Where = Where(("Loss",))) -> WeightedSum:
    """The weighted sum of a config's list of losses: ``[{"CELoss": {"weight": 1.0, "epsilon": 0.1}}]``.

    Raises:
        ConfigError: the list is empty, or a loss is unknown or has a wrong argument.
    """
    if not specs:
        raise where.error("expected at least one loss")
    terms: list[tuple[str, float, Any]] = []
    for i, spec in enumerate(specs):
        name, arguments, place = split_component(spec, where / i)
        function = LOSSES.build(name, arguments, place)
        weight = LOSSES.build_common(arguments, place).weight
        terms.append((name if name not in {t[0] for t in terms} else f"{name}_{i}", weight, function))
    return WeightedSum(terms)
