"""Puts the outputs of a classifier into another order of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import paddle
from paddle import nn

from ppxcls.models.classifier_part import classifier_keys, state_tensors
from ppxcls.system.arrays import Array


def classifier_arrays(model: nn.Layer) -> dict[str, Array]:
    """Returns copies of the weight and the bias of the last linear layer, by state key.

    The last axis of both is that of the classes.
    """
    tensors = state_tensors(model)
    return {key: tensors[key].numpy().copy() for key in classifier_keys(model) if key in tensors}


def reorder_classes(model: nn.Layer, fresh_arrays: Mapping[str, Array], class_ids: Sequence[int]) -> None:
    """Gives each class the weights that another class has now, or fresh ones.

    Args:
        model: network to change.
        fresh_arrays: weight and bias of the classifier before any weights were loaded.
        class_ids: present id of the weights of each class; -1 for fresh weights.
    """
    ids = np.array(class_ids)
    for key, tensor in state_tensors(model).items():
        if key in fresh_arrays and fresh_arrays[key].shape[-1] == len(ids):
            array = np.where(ids >= 0, tensor.numpy()[..., np.maximum(ids, 0)], fresh_arrays[key])
            tensor.set_value(paddle.to_tensor(array.astype(fresh_arrays[key].dtype)))
