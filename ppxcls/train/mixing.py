"""Mixing: transforms of a whole batch on the device, after normalisation. They make labels soft."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import paddle

from ppxcls.config.checks import ConfigPlace, Count, Positive, Share
from ppxcls.config.registry import Registry
from ppxcls.data.device import to_device
from ppxcls.train.losses import soft_targets

ImagesAndLabels = tuple[paddle.Tensor, paddle.Tensor]


class BatchTransform(Protocol):
    """Changes a batch on the device."""

    def __call__(
        self, images: paddle.Tensor, labels: paddle.Tensor, rng: np.random.Generator
    ) -> ImagesAndLabels:
        """Returns the mixed images, and labels float32 [N, class_num].

        Args:
            images: float32 [N, 3, H, W].
            labels: int64 [N], or soft labels.
            rng: generator of the random choices.
        """


BATCH_TRANSFORMS: Registry[BatchTransform] = Registry("batch transform", program_parameters=("class_num",))


def _mixture(tensor: paddle.Tensor, partner: paddle.Tensor, share: float) -> paddle.Tensor:
    return share * tensor + (1 - share) * paddle.index_select(tensor, partner)


@BATCH_TRANSFORMS.register
class MixupOperator(BatchTransform):
    """Mixes every image and its label with another one of the batch (mixup, arXiv:1710.09412, section 2).

    Args:
        class_num: number of classes.
        alpha: value of both parameters of the Beta distribution of an image's own weight.
    """

    def __init__(self, class_num: Count, alpha: Positive = 1.0) -> None:
        self.class_num = class_num
        self.alpha = alpha

    def __call__(
        self, images: paddle.Tensor, labels: paddle.Tensor, rng: np.random.Generator
    ) -> ImagesAndLabels:
        share = float(rng.beta(self.alpha, self.alpha))
        partner = to_device(rng.permutation(images.shape[0]))
        return _mixture(images, partner, share), _mixture(
            soft_targets(labels, self.class_num), partner, share
        )


@BATCH_TRANSFORMS.register
class CutmixOperator(BatchTransform):
    """Pastes a rectangle of another image of the batch (CutMix, arXiv:1905.04899, section 3).

    The labels are mixed in proportion to the areas.

    Args:
        class_num: number of classes.
        alpha: value of both parameters of the Beta distribution of the fraction of the image that remains.
    """

    def __init__(self, class_num: Count, alpha: Positive = 0.2) -> None:
        self.class_num = class_num
        self.alpha = alpha

    def __call__(
        self, images: paddle.Tensor, labels: paddle.Tensor, rng: np.random.Generator
    ) -> ImagesAndLabels:
        height, width = images.shape[2:]
        side = (1 - float(rng.beta(self.alpha, self.alpha))) ** 0.5
        centre = rng.integers(height), rng.integers(width)
        (top, bottom), (left, right) = (
            (max(0, int(c - side * length / 2)), min(length, int(c + side * length / 2)))
            for c, length in zip(centre, (height, width), strict=True)
        )
        partner = to_device(rng.permutation(images.shape[0]))
        keep_mask = np.ones((1, 1, height, width), np.float32)
        keep_mask[..., top:bottom, left:right] = 0
        mask = to_device(keep_mask)
        mixed_images = images * mask + paddle.index_select(images, partner) * (1 - mask)
        return mixed_images, _mixture(soft_targets(labels, self.class_num), partner, float(keep_mask.mean()))


# Under names of their own, because the parameters of OpSampler hide the classes.
_OPERATORS: dict[str, Callable[[int, float], BatchTransform]] = {
    "MixupOperator": MixupOperator,
    "CutmixOperator": CutmixOperator,
}


@dataclass
class Choice:
    """Settings of one of OpSampler's operators.

    Attributes:
        alpha: value of the operator's ``alpha``.
        prob: fraction of the batches that the operator mixes.
    """

    alpha: Positive = 1.0
    prob: Share = 0.5


@BATCH_TRANSFORMS.register
class OpSampler(BatchTransform):
    """Applies one of the operators, or none, to each batch.

    Args:
        class_num: number of classes.
        MixupOperator: settings of Mixup: ``alpha`` and ``prob``, the fraction of batches. Null is no Mixup.
        CutmixOperator: settings of CutMix, in the same form. Null is no CutMix.
    """

    def __init__(
        self, class_num: Count, MixupOperator: Choice | None = None, CutmixOperator: Choice | None = None
    ) -> None:
        settings = {"MixupOperator": MixupOperator, "CutmixOperator": CutmixOperator}
        choices = {name: choice for name, choice in settings.items() if choice is not None}
        self.class_num = class_num
        self.shares = [choice.prob for choice in choices.values()]
        if not choices or sum(self.shares) > 1:
            raise ValueError(
                "expected operators with total prob <= 1, received "
                f"{dict(zip(choices, self.shares, strict=True))}"
            )
        self.operators = [_OPERATORS[name](class_num, choice.alpha) for name, choice in choices.items()]

    def __call__(
        self, images: paddle.Tensor, labels: paddle.Tensor, rng: np.random.Generator
    ) -> ImagesAndLabels:
        number = int(np.searchsorted(np.cumsum(self.shares), rng.random(), "right"))
        if number == len(self.operators):
            return images, soft_targets(labels, self.class_num)
        return self.operators[number](images, labels, rng)


def build_batch_transforms(
    specs: Sequence[Mapping[str, Any]] | None,
    class_num: int,
    where: ConfigPlace = ConfigPlace(("batch_transform_ops",)),
) -> list[BatchTransform]:
    """Builds the batch transforms of a config's list, ``[{"MixupOperator": {"alpha": 0.2}}]``.

    Null gives no transforms.

    Raises:
        ConfigError: a transform is unknown or has an invalid argument.
    """
    return [
        BATCH_TRANSFORMS.build(block, class_num=class_num)
        for block in BATCH_TRANSFORMS.blocks(specs or [], where)
    ]
