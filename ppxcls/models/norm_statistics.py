"""Estimates the statistics of batch norms anew, for weights that no training has passed through.

See "precise BN", arXiv:2105.07576, section 3: each batch is normalised by its own statistics. The new mean is
the mean of those of the batches. The new variance is the mean of their second moments, less the square of the
new mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import paddle
from paddle import nn

from ppxcls.models.common_keys import BATCH_NORMS
from ppxcls.system.arrays import Array


def batch_norms(network: nn.Layer) -> dict[str, nn.Layer]:
    """Returns the batch norms of a network by name."""
    return {name: layer for name, layer in network.named_sublayers() if isinstance(layer, BATCH_NORMS)}


def statistics_of(norm: nn.Layer) -> tuple[Array, Array]:
    """Returns the mean and the variance that a batch norm uses in an evaluation, [C]."""
    return norm._mean.numpy(), norm._variance.numpy()


def estimate_statistics(
    network: nn.Layer, batches: Iterable[paddle.Tensor], norms: Sequence[nn.Layer]
) -> int:
    """Sets the statistics of batch norms to those of some batches. Each batch has the same weight.

    Only these batch norms compute as in training. Other layers, such as dropout, compute as in an evaluation.

    Args:
        network: network to change. It is in evaluation mode afterwards.
        batches: inputs of the network, float32 [N, C, H, W].
        norms: batch norms of the network.

    Returns:
        The number of batches. With none, the statistics stay.
    """
    means: list[list[Array]] = []
    second_moments: list[list[Array]] = []
    with _batch_statistics(network, norms), paddle.no_grad():
        for batch in batches:
            network(batch)
            statistics = [np.asarray(statistics_of(norm), np.float64) for norm in norms]
            means.append([mean for mean, _ in statistics])
            second_moments.append([variance + mean**2 for mean, variance in statistics])
    if means:
        for i, norm in enumerate(norms):
            mean = np.mean([row[i] for row in means], axis=0)
            variance = np.mean([row[i] for row in second_moments], axis=0) - mean**2
            _set(norm._mean, mean)
            _set(norm._variance, np.maximum(variance, 0))
    return len(means)


@contextmanager
def _batch_statistics(network: nn.Layer, norms: Sequence[nn.Layer]) -> Iterator[None]:
    """Lets batch norms hold the statistics of the last batch alone in a block, and then the earlier ones."""
    momenta = [norm._momentum for norm in norms]
    earlier_statistics = [statistics_of(norm) for norm in norms]
    network.eval()
    for norm in norms:
        norm.train()
        norm._momentum = 0.0
    try:
        yield
    finally:
        network.eval()
        for norm, momentum, (mean, variance) in zip(norms, momenta, earlier_statistics, strict=True):
            norm._momentum = momentum
            _set(norm._mean, mean)
            _set(norm._variance, variance)


def _set(tensor: paddle.Tensor, array: Array) -> None:
    tensor.set_value(paddle.to_tensor(array.astype(tensor.numpy().dtype)))
