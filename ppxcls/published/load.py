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
    """Sets a model's parameters and batch-norm statistics, by a path or by a word for published weights.

    Args:
        model: network to change.
        path: path as in ``ppxcls.models.weights.load_weights``, which reads the file. Or a word for published
            weights, which are fetched if they are not on this machine: ``imagenet``, a name from
            ``list_weights``, ``hf-hub:OWNER/REPO``, or an address.
        keep_trunk: True to leave the classifier unchanged if the file has none for the same classes.
        average: True to load the average of the weights (EMA), if the checkpoint has one.

    Returns:
        What was not set, as ``ppxcls.models.weights.load_weights``.

    Raises:
        CheckpointError: the file can't be used or fetched.
        OSError: the cache can't be written.
    """
    file = weights_path(path, network_name(model))
    return weights.load_weights(model, file, keep_trunk=keep_trunk, average=average)
