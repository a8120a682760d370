"""Mixing: transforms of a whole batch on the device, after normalisation. They make labels soft."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import paddle

from ppxcls.config.checks import Count, Positive, Share, Where
from ppxcls.config.registry import Registry
from ppxcls.train.losses import soft_targets

Batch = tuple[paddle.Tensor, paddle.Tensor]


class BatchTransform(Protocol):
    """Changes a batch on the device."""

    def __call__(self, images: paddle.Tensor, labels: paddle.Tensor, rng: np.random.Generator) -> Batch:
        """Args: images: float32 [N, 3, H, W]; labels: int64 [N], or soft.

        Returns: images, and labels float32 [N, class_num].
        """


BATCH_TRANSFORMS: Registry[BatchTransform] = Registry("batch transform", provided=("class_num",))


def _mixed(a: paddle.Tensor, partner: paddle.Tensor, share: float) -> paddle.Tensor:
    return share * a + (1 - share) * paddle.index_select(a, partner)


@BATCH_TRANSFORMS.register
class MixupOperator(BatchTransform):
    """Mixes every image, and its label, with another of the same batch (mixup, arXiv:1710.09412, section 2).

    Args:
        class_num: number of classes.
        alpha: both parameters of the Beta distribution of the share.
    """

    def __init__(self, class_num: Count, alpha: Positive = 1.0) -> None:
        self.class_num = class_num
        self.alpha = alpha

    def __call__(self, images: paddle.Tensor, labels: paddle.Tensor, rng: np.random.Generator) -> Batch:
        """Args: images: float32 [N, 3, H, W]; labels: int64 [N], or soft.

        Returns: images, and labels float32 [N, class_num].
        """
        share = float(rng.beta(self.alpha, self.alpha))
        partner = paddle.to_tensor(rng.permutation(images.shape[0]))
        return _mixed(images, partner, share), _mixed(soft_targets(labels, self.class_num), partner, share)


@BATCH_TRANSFORMS.register
class CutmixOperator(BatchTransform):
    """Pastes a rectangle of another image of the batch, and mixes the labels by its area (CutMix,
    arXiv:1905.04899, section 3).

    Args:
        class_num: number of classes.
        alpha: both parameters of the Beta distribution of the share that remains.
    """

    def __init__(self, class_num: Count, alpha: Positive = 0.2) -> None:
        self.class_num = class_num
        self.alpha = alpha

    def __call__(self, images: paddle.Tensor, labels: paddle.Tensor, rng: np.random.Generator) -> Batch:
        """Args: images: float32 [N, 3, H, W]; labels: int64 [N], or soft.

        Returns: images, and labels float32 [N, class_num].
        """
        height, width = images.shape[2:]
        side = (1 - float(rng.beta(self.alpha, self.alpha))) ** 0.5
        centre = rng.integers(height), rng.integers(width)
        (top, bottom), (left, right) = (
            (max(0, int(c - side * length / 2)), min(length, int(c + side * length / 2)))
            for c, length in zip(centre, (height, width), strict=True)
        )
        partner = paddle.to_tensor(rng.permutation(images.shape[0]))
        kept = np.ones((1, 1, height, width), np.float32)
        kept[..., top:bottom, left:right] = 0
        mask = paddle.to_tensor(kept).astype(images.dtype)
        pasted = images * mask + paddle.index_select(images, partner) * (1 - mask)
        return pasted, _mixed(soft_targets(labels, self.class_num), partner, float(kept.mean()))


# Under names of their own, because the parameters of OpSampler hide the classes.
_OPERATORS: dict[str, Callable[[int, float], BatchTransform]] = {
    "MixupOperator": MixupOperator,
    "CutmixOperator": CutmixOperator,
}


@dataclass
class Choice:
    """One of OpSampler's operators.

    Attributes:
        alpha: the operator's.
        prob: share of the batches.
    """

    alpha: Positive = 1.0
    prob: Share = 0.5


@BATCH_TRANSFORMS.register
class OpSampler(BatchTransform):
    """Applies one of the operators, or none, to each batch.

    Args:
        class_num: number of classes.
        MixupOperator: ``alpha`` and ``prob``, its share of the batches; null for none.
        CutmixOperator: likewise.
    """

    def __init__(
        self, class_num: Count, MixupOperator: Choice | None = None, CutmixOperator: Choice | None = None
    ) -> None:
        choices = {"MixupOperator": MixupOperator, "CutmixOperator": CutmixOperator}
        chosen = {name: choice for name, choice in choices.items() if choice is not None}
        self.class_num = class_num
        self.shares = [choice.prob for choice in chosen.values()]
        if not chosen or sum(self.shares) > 1:
            raise ValueError(
                f"expected operators whose prob add up to 1 at most, received {dict.fromkeys(chosen)} {self.shares}"
            )
        self.operators = [_OPERATORS[name](class_num, choice.alpha) for name, choice in chosen.items()]

    def __call__(self, images: paddle.Tensor, labels: paddle.Tensor, rng: np.random.Generator) -> Batch:
        """Args: images: float32 [N, 3, H, W]; labels: int64 [N], or soft.

        Returns: images, and labels float32 [N, class_num].
        """
        number = int(np.searchsorted(np.cumsum(self.shares), rng.random(), "right"))
        if number == len(self.operators):
            return images, soft_targets(labels, self.class_num)
        return self.operators[number](images, labels, rng)


def build_batch_transforms(
    specs: Sequence[Mapping[str, Any]] | None, class_num: int, where: Where = Where(("batch_transform_ops",))
) -> list[BatchTransform]:
    """The batch transforms of a config's list: ``[{"MixupOperator": {"alpha": 0.2}}]``; none for null.

    Raises:
        ConfigError: a transform is unknown or has a wrong argument.
    """
    return [
        BATCH_TRANSFORMS.build(block, class_num=class_num)
        for block in BATCH_TRANSFORMS.blocks(specs or [], where)
    ]
