"""Reads weights of timm and Keras, and converts their keys and shapes."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ppxcls.checkpoints.archives import open_archive, read_member
from ppxcls.checkpoints.files import MAX_FILE_BYTES, CheckpointError, State, read_state
from ppxcls.checkpoints.pickle_whitelist import RefusedError
from ppxcls.checkpoints.safe_states import INSTALL_HINT, PARAMETER_NAMES_KEY
from ppxcls.checkpoints.torch_reader import read_torch
from ppxcls.checkpoints.wrong_files import wrong_kind
from ppxcls.models.weight_parts import network_part
from ppxcls.system.arrays import Array
from ppxcls.system.atomic_files import open_regular, read_regular

# torch's files have no fixed name: timm writes .pth.tar, Lightning .ckpt.
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt", ".h5", ".keras")
# Keras's names for layers without a name, followed by a number.
_PROJECTION_PREFIXES = (
    "conv2d",
    "batch_normalization",
)
_KERAS_MEMBER = "model.weights.h5"  # name of the weights inside a .keras archive
_HEADER_BYTES = 4096  # bytes that tell the kind of a file
_MAX_KERAS_BYTES = 1 << 30  # maximum for the weights inside a .keras archive


def read_foreign_weights(file: Path) -> State:
    """Reads weights and returns them by this package's state keys.

    Args:
        file: weights file: ``.safetensors`` (timm's, or this package's own), ``.weights.h5`` or ``.keras``
            (Keras's Xception), or any other of ``SUFFIXES`` (timm's, as torch writes them).

    Raises:
        CheckpointError: the file is missing or has another format, or the package that reads it is not
            installed.
    """
    if not os.path.isfile(file):
        raise CheckpointError(f"{file}: no such file")
    if file.stat().st_size > MAX_FILE_BYTES:
        raise CheckpointError(
            f"{file}: {file.stat().st_size:,} bytes; a file of weights may have {MAX_FILE_BYTES:,}"
        )
    try:
        if file.suffix == ".safetensors":
            return _from_torch(read_state(file))
        if file.suffix in (".h5", ".keras"):
            return _from_keras(_read_keras(file))
        return _from_torch(network_part(read_torch(read_regular(file, MAX_FILE_BYTES)), file))
    except CheckpointError:
        raise
    except ImportError as error:
        raise CheckpointError(f"{file}: reading it needs {error.name}, {INSTALL_HINT}") from None
    except Exception as error:  # each library has its own errors
        if kind := wrong_kind(_header(file), file.suffix):
            raise CheckpointError(f"{file}: not a file of weights, but {kind}") from None
        if isinstance(error, RefusedError):
            raise CheckpointError(f"{file}: refused, not a file of weights: {error}") from None
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{file}: not a file of weights, or damaged: {type(error).__name__}: {reason}"
        ) from None


def _header(file: Path) -> bytes:
    """Returns the first bytes of a file; a space if it can't be read."""
    try:
        with open(file, "rb") as stream:
            return stream.read(_HEADER_BYTES)
    except OSError:
        return b" "


def _from_torch(state: State) -> State:
    """Renames batch-norm statistics to Paddle's names, and transposes linear weights to [in, out]."""
    if PARAMETER_NAMES_KEY in state or any(key.endswith(("._mean", "._variance")) for key in state):
        return state  # written by this package
    paddle_state = {}
    for key, value in state.items():
        if key.endswith("num_batches_tracked"):
            continue
        paddle_key = re.sub(r"\.running_var$", "._variance", re.sub(r"\.running_mean$", "._mean", key))
        paddle_state[paddle_key] = np.ascontiguousarray(value.T) if value.ndim == 2 else value
    return paddle_state


def _read_keras(file: Path) -> dict[str, list[Array]]:
    """Reads the variables of each layer, in Keras's order."""
    import h5py

    data: Any = file
    if file.suffix == ".keras":
        with open_regular(file) as stream, open_archive(stream) as archive:
            if _KERAS_MEMBER not in archive.namelist():
                raise CheckpointError(
                    f"{file}: not a file of weights, but an archive without {_KERAS_MEMBER}"
                )
            data = io.BytesIO(read_member(archive, _KERAS_MEMBER, _MAX_KERAS_BYTES))
    remaining_bytes = file.stat().st_size if data is file else len(data.getbuffer())
    layers: dict[str, list[Array]] = {}
    with h5py.File(data, "r") as h5_file:
        if "layers" not in h5_file:
            raise CheckpointError(f"{file}: expected the weights of a Keras 3 model, with a group 'layers'")
        groups = _member(h5_file, "layers", file)
        for name in groups:
            variables = _member(_member(groups, name, file), "vars", file)
            if variables is not None and len(variables):
                layer_name = str(variables.attrs.get("name", name))
                layers[layer_name] = []
                for i in range(len(variables)):
                    array = _read_array(_member(variables, str(i), file), file, remaining_bytes)
                    remaining_bytes -= array.nbytes
                    layers[layer_name].append(array)
    return layers


def _member(group: Any, name: str, file: Path) -> Any:
    """Returns a member of a group; None if there is none.

    A link could refer to any other file, so only a file's own objects are read.
    """
    import h5py

    if not isinstance(group, h5py.Group):
        raise CheckpointError(f"{file}: {name} is expected in a group")
    link = group.get(name, getlink=True)
    if link is not None and not isinstance(link, h5py.HardLink):
        raise CheckpointError(
            f"{file}: refused, {name} is a link to {getattr(link, 'filename', 'another place')}"
        )
    return group.get(name)


def _read_array(dataset: Any, file: Path, max_bytes: int) -> Array:
    """Reads a variable.

    Its numbers must be in the file as they are. A compressed variable, or one of repeated fill values, could
    have any size.

    Args:
        dataset: member of a group that should be a variable.
        file: name of the file, for messages.
        max_bytes: bytes of the file that no other variable has taken.

    Raises:
        CheckpointError: it is no variable of plain numbers.
    """
    import h5py

    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise CheckpointError(f"{file}: refused, a variable's numbers are not in the file")
    if dataset.id.get_create_plist().get_nfilters():
        raise CheckpointError(f"{file}: refused, a variable is compressed, and Keras compresses none")
    number_bytes = dataset.size * dataset.dtype.itemsize
    if dataset.dtype.kind not in "fiu" or number_bytes > min(max_bytes, dataset.id.get_storage_size()):
        raise CheckpointError(
            f"{file}: refused, a variable of {dataset.dtype} and {dataset.size:,} numbers, "
            "which are not in the file"
        )
    return np.asarray(dataset)


def _from_keras(layers: Mapping[str, list[Array]]) -> State:
    """Renames Keras's layers to this package's state keys.

    Keras's block 2 is block 1 here, and so on. Keras's blocks 1 and 14 are single convolutions here.
    """
    state: State = {}
    projections = [
        sorted((n for n in layers if re.fullmatch(rf"{kind}(_\d+)?", n)), key=_number)
        for kind in _PROJECTION_PREFIXES
    ]
    names: dict[str, str] = {}
    for kind, key in zip(projections, ("skip", "skipbn"), strict=True):
        names |= {name: f"block{block}.{key}" for name, block in zip(kind, (1, 2, 3, 12), strict=False)}
    for name, variables in layers.items():
        key = names.get(name) or _keras_key(name)
        if len(variables) == 4:
            keys = [f"{key}.weight", f"{key}.bias", f"{key}._mean", f"{key}._variance"]
            state |= dict(zip(keys, variables, strict=True))
        elif key == "fc":
            state |= {"fc.weight": variables[0], "fc.bias": variables[1]}
        elif len(variables) == 2:
            state |= {f"{key}.conv1.weight": variables[0].transpose(2, 3, 0, 1)}
            state |= {f"{key}.pointwise.weight": variables[1].transpose(3, 2, 0, 1)}
        else:
            state[f"{key}.weight"] = variables[0].transpose(3, 2, 0, 1)
    return {key: np.ascontiguousarray(value) for key, value in state.items()}


def _number(name: str) -> int:
    return int(name.rpartition("_")[2]) if name[-1].isdigit() else -1


def _keras_key(name: str) -> str:
    """Returns the state key of a Keras layer, such as ``block2.rep.5`` for ``block3_sepconv2_bn``.

    An unknown name is returned unchanged, and is refused later.
    """
    if name == "predictions":
        return "fc"
    if match := re.fullmatch(r"block1_conv([12])(_bn)?", name):
        return f"{'bn' if match[2] else 'conv'}{match[1]}"
    if match := re.fullmatch(r"block(\d+)_sepconv(\d)(_bn)?", name):
        block = int(match[1])
        convolution = int(match[2])
        is_norm = bool(match[3])
        if block == 14:
            return f"{'bn' if is_norm else 'conv'}{convolution + 2}"
        index = 3 * (convolution - 1) + is_norm + (block > 2)  # the first block has no ReLU at its start
        return f"block{block - 1}.rep.{index}"
    return name
