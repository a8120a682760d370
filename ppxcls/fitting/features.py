"""Features of photographs from the frozen network, which are computed only once."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle
from paddle import nn
from tqdm import tqdm

from ppxcls.data.device import ModelInput
from ppxcls.data.loader import Loader
from ppxcls.models.parts import NetworkParts, split_network
from ppxcls.system.arrays import Array
from ppxcls.system.atomic_files import whole_file
from ppxcls.train.fast_forward import fast_forward

_FEATURES, _ACTIVATIONS = "features.npz", "activations.npy"
_MAX_FREE_DISK_SHARE = 0.5  # fraction of the free disk that the activations may take
_MAX_ACTIVATION_BYTES = 16 << 30
_MAX_FLOAT16 = 65504.0
Forward = Callable[[Array], Array]


class FeatureComputer:
    """Computes activations and features of batches by the fastest path of this machine.

    Args:
        network: network in evaluation mode, with a declaration of its parts. Its weights before the
            classifier must not change meanwhile.
        count: number of images.
    """

    def __init__(self, network: nn.Layer, count: int) -> None:
        self.network = network
        self._parts = network_parts(network)
        self._count = count
        self._forwards: dict[tuple[int, ...], tuple[Forward, Forward]] = {}

    def __call__(self, images: Array) -> tuple[Array, Array]:
        """Returns the activations before the exit flow, and the pooled features [N, F].

        Args:
            images: float32 [N, 3, H, W].
        """
        shape = images.shape[1:]
        if shape not in self._forwards:
            trunk: Forward = fast_forward(self._parts.trunk, shape, self._count)
            activations = trunk(images)
            exit_flow: Forward = fast_forward(self._parts.exit_flow, activations.shape[1:], self._count)
            self._forwards[shape] = trunk, exit_flow
        trunk, exit_flow = self._forwards[shape]
        activations = trunk(images)
        return activations, exit_flow(activations)


def network_parts(network: nn.Layer) -> NetworkParts:
    """Returns the parts of a network that is known to have them."""
    parts = split_network(network)
    assert parts
    return parts


@dataclass(frozen=True)
class Features:
    """Features of photographs, and the activations that they were computed from.

    Attributes:
        pooled: features, float32 [copies, N, F]. The first copy is the photograph, the second one its mirror
            image.
        labels: class of each photograph, int64 [N].
        activations: input of the exit flow, float16 or float32 [N, copies, ...], in a file; None if it was
            not kept.
    """

    pooled: Array
    labels: Array
    activations: Array | None

    @property
    def copies(self) -> int:
        """Number of images of each photograph."""
        return len(self.pooled)

    def inputs(self, indices: Array, copies: Array) -> Array:
        """Returns activations as float32 [len(indices), ...].

        Args:
            indices: indices of photographs.
            copies: number of the copy for each of them.
        """
        assert self.activations is not None
        return np.asarray(self.activations[indices, copies], np.float32)


def activation_bytes(shape: tuple[int, ...], count: int) -> int:
    """Returns the size of the file of activations, in bytes.

    Args:
        shape: shape of the activations of one image.
        count: number of images.
    """
    return 2 * int(np.prod(shape)) * count


def fits_on_disk(size: int, folder: Path) -> bool:
    """True if a file of activations of this size may be written to a folder."""
    parent = next(path for path in (folder, *folder.parents) if path.exists())
    return size <= min(_MAX_ACTIVATION_BYTES, _MAX_FREE_DISK_SHARE * shutil.disk_usage(parent).free)


def compute_features(
    computer: FeatureComputer, loader: Loader, *, folder: Path, copies: int, keeps_activations: bool
) -> Features:
    """Computes the features of all photographs of a loader, and writes them to a folder.

    Args:
        computer: computer of the features.
        loader: loader without shuffling.
        folder: folder for the features; it must exist.
        copies: 1 for the photographs alone, 2 for their mirror images too.
        keeps_activations: True to write the activations too.

    Raises:
        DataError: a photograph can't be loaded.
        OSError: a file can't be written.
    """
    to_input = ModelInput(loader.dataset.device_stage)
    count = len(loader.dataset)
    pooled: Array | None = None
    activations: Array | None = None
    with tqdm(total=count, desc="features", unit="image", disable=None, leave=False) as bar:
        for batch in loader.epoch():
            indices = batch.plan.indices
            images = to_input(batch.images)
            for copy in range(copies):
                inputs = paddle.flip(images, axis=[3]) if copy else images
                values, features = computer(inputs.numpy())
                if pooled is None:
                    pooled = np.zeros((copies, count, features.shape[1]), np.float32)
                if keeps_activations and activations is None:
                    # float32 if a number is too large for float16, with room for other images
                    type_name = "float16" if np.abs(values).max() < 0.1 * _MAX_FLOAT16 else "float32"
                    activations = np.lib.format.open_memmap(
                        folder / _ACTIVATIONS, "w+", type_name, (count, copies, *values.shape[1:])
                    )
                pooled[copy, indices] = features
                if activations is not None:
                    limit = float(np.finfo(activations.dtype).max)
                    activations[indices, copy] = np.clip(values, -limit, limit)
            bar.update(len(indices))
    loader.close()
    assert pooled is not None
    if isinstance(activations, np.memmap):
        activations.flush()
    labels = np.asarray(loader.dataset.labels[:count], np.int64)
    write_named_arrays(folder / _FEATURES, pooled=pooled, labels=labels)
    return Features(pooled, labels, activations)


def write_named_arrays(file: Path, **arrays: Array) -> None:
    """Writes arrays by name, whole or not at all.

    Raises:
        OSError: the file can't be written.
    """
    with whole_file(file) as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]


def read_named_arrays(file: Path) -> dict[str, Array]:
    """Reads the arrays that ``write_named_arrays`` wrote.

    Raises:
        OSError, ValueError: the file can't be read, or is damaged.
    """
    with np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def read_features(folder: Path) -> Features | None:
    """Reads the features that ``compute_features`` wrote to a folder; None if they are not whole."""
    try:
        arrays = read_named_arrays(folder / _FEATURES)
        pooled, labels = arrays["pooled"], arrays["labels"]
    except (OSError, ValueError, KeyError, EOFError):
        return None
    activations: Array | None = None
    if (folder / _ACTIVATIONS).is_file():
        try:
            activations = np.load(folder / _ACTIVATIONS, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
    return Features(pooled, labels, activations)


def remove_features(folder: Path) -> None:
    """Removes the features from a folder."""
    for name in (_FEATURES, _ACTIVATIONS):
        with contextlib.suppress(OSError):
            (folder / name).unlink(missing_ok=True)
