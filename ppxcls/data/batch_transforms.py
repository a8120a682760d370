"""Transforms of a whole batch on the device, after normalisation: mixing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F

from ppxcls.registry import BATCH_TRANSFORMS, split_component
from ppxcls.schema import Count, Positive, Where

BatchTransform = Callable[[paddle.Tensor, paddle.Tensor, np.random.Generator], tuple[paddle.Tensor, paddle.Tensor]]


@BATCH_TRANSFORMS.register
class MixupOperator:
    """Mixes every image with another of the same batch, and their labels alike (mixup, arXiv:1710.09412, section 2).

    Args:
        alpha: both parameters of the Beta distribution of the share.
        class_num: number of classes.
    """

    def __init__(self, class_num: Count, alpha: Positive = 1.0) -> None:
        self.class_num = class_num
        self.alpha = alpha

    def __call__(
        self, images: paddle.Tensor, labels: paddle.Tensor, rng: np.random.Generator
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Args: images: float32 [N, 3, H, W]; labels: int64 [N], or soft. Returns: images, and labels float32 [N, class_num]."""
        share = float(rng.beta(self.alpha, self.alpha))
        partner = paddle.to_tensor(rng.permutation(images.shape[0]))
        targets = F.one_hot(labels, self.class_num) if labels.ndim == 1 else labels
        mixed = [share * x + (1 - share) * paddle.index_select(x, partner) for x in (images, targets)]
        return mixed[0], mixed[1]


def build_batch_transforms(
    specs: Sequence[Mapping[str, Any]] | None, class_num: int, where: Where = Where(("batch_transform_ops",))
) -> list[BatchTransform]:
    """The batch transforms of a config's list: ``[{"MixupOperator": {"alpha": 0.2}}]``; none for null.

    Raises:
        ConfigError: a transform is unknown or has a wrong argument.
    """
    transforms = []
    for i, spec in enumerate(specs or []):
        transforms.append(BATCH_TRANSFORMS.build(*split_component(spec, where / i), class_num=class_num))
    return transforms
