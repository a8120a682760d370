"""Loads weights into a network by a word or a path."""

from __future__ import annotations

from pathlib import Path

from paddle import nn

from ppxcls.models import weights
from ppxcls.models.logits import network_name
from ppxcls.published.find import weights_path


def load_weights(
    model: nn.Layer, path: str | Path, *, keep_trunk: bool = False, average: bool = False
) -> list[str]:
    """Sets a model's parameters and batch-norm statistics by state key.

    Args:
        model: network to change.
        path: ``.pdparams`` file, with or without its extension, or a file of timm or Keras. The parts of a
            checkpoint are compared with its manifest. Or a word for published weights, which are fetched if
            they are not on this machine: ``imagenet``, a name from ``list_weights``, ``hf-hub:OWNER/REPO``,
            or an address.
        keep_trunk: True to leave the classifier unchanged if the weights have another number of classes,
            instead of raising.
        average: True to load the average of the weights (EMA), if the checkpoint has one.

    Returns:
        Keys and shapes of the classifier's parameters that were not set.

    Raises:
        CheckpointError: the file can't be used or fetched, or tensors are missing, unknown, of another shape,
            integers instead of numbers, or not finite. The message names them.
    """
    file = weights_path(path, network_name(model))
    return weights.load_weights(model, file, keep_trunk=keep_trunk, average=average)
