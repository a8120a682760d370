"""Converts weights of other programs."""

from __future__ import annotations

from pathlib import Path

from ppxcls.build.network import build_model
from ppxcls.checkpoints.files import refuse_checkpoint, remove_copied_manifest, write_copied_manifest
from ppxcls.models.classifier_part import state_tensors
from ppxcls.models.weights import (
    check_weights_name,
    load_weights,
    manifest_of,
    save_weights,
    weights_file,
)
from ppxcls.published.find import weights_path
from ppxcls.system.file_lock import locked_folder


def convert_weights(source: str, name: str, output: str, class_num: int = 1000) -> int:
    """Converts weights of timm, Keras or this package.

    What a checkpoint's manifest tells about its weights is written beside the output.

    Args:
        source: weights file: ``.safetensors``, ``.pth``, ``.weights.h5``, ``.keras`` or ``.pdparams``; or a
            word for published weights, see ``load_weights``.
        name: name of the network.
        output: file to write: ``.pdparams`` or ``.safetensors``.
        class_num: number of classes.

    Returns:
        Number of tensors.

    Raises:
        ConfigError: there is no network with this name.
        CheckpointError: the source can't be used, or does not match the network key by key, or the output
            would replace a file of a checkpoint.
        OSError: the output can't be written.
    """
    check_weights_name(Path(output))
    refuse_checkpoint(Path(output))
    model = build_model(name, class_num=class_num)
    file = weights_path(source, name)
    load_weights(model, file)
    manifest = manifest_of(weights_file(file))
    with locked_folder(Path(output).parent, waits=True):
        remove_copied_manifest(Path(output))
        save_weights(model, Path(output))
        if manifest:
            write_copied_manifest(Path(output), manifest)
    return len(state_tensors(model))
