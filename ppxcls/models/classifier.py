"""Carries the weights of classes from one classifier over to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import paddle
from paddle import nn

from ppxcls.models.classifier_part import classifier_keys, state_tensors
from ppxcls.system.arrays import Array


def classifier_arrays(model: nn.Layer) -> dict[str, Array]:
    """Returns copies of the weight and the bias of the last linear layer, by state key.

    The last axis of both is that of the classes, so the weights of a class are a column of the matrix.
    """
    tensors = state_tensors(model)
    return {key: tensors[key].numpy().copy() for key in classifier_keys(model) if key in tensors}


def reset_classifier(model: nn.Layer, fresh_arrays: Mapping[str, Array]) -> None:
    """Gives the classifier fresh weights again.

    Args:
        model: network to change.
        fresh_arrays: result of ``classifier_arrays`` before any weights were loaded.
    """
    tensors = state_tensors(model)
    for key, array in fresh_arrays.items():
        tensors[key].set_value(paddle.to_tensor(array))


def set_class_rows(
    model: nn.Layer,
    class_ids: Sequence[int],
    *,
    source_arrays: Mapping[str, Array],
    fresh_arrays: Mapping[str, Array],
) -> None:
    """Gives each class the weights that a class of another classifier has, or fresh ones.

    Args:
        model: network to change.
        class_ids: id of each class in the other classifier; -1 for fresh weights.
        source_arrays: weight and bias of the other classifier, by state key of the network. It may have
            another number of classes.
        fresh_arrays: weight and bias of the classifier before any weights were loaded.
    """
    ids = np.array(class_ids)
    tensors = state_tensors(model)
    for key, fresh in fresh_arrays.items():
        rows = source_arrays[key].astype(fresh.dtype, copy=False)[..., np.maximum(ids, 0)]
        tensors[key].set_value(paddle.to_tensor(np.where(ids >= 0, rows, fresh)))
