"""Features of photographs from the frozen network, which are computed only once."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn
from tqdm import tqdm

from ppxcls.data.device import ModelInput
from ppxcls.data.loader import Loader
from ppxcls.models.parts import NetworkParts, split_network
from ppxcls.system.arrays import Array
from ppxcls.system.atomic_files import reason_of, whole_file
from ppxcls.system.logs import logger
from ppxcls.train.fast_forward import FastForward

_FEATURES, _ACTIVATIONS = "features.npz", "activations.npy"
_MAX_FREE_DISK_SHARE = 0.5  # fraction of the free disk that the activations may take
_MAX_ACTIVATION_BYTES = 16 << 30
_MAX_FLOAT16 = 65504.0
_PIXELS_AT_ONCE = 8 * 299 * 299  # of the images that a CPU computes at once; more take longer for each image
_DEVICE_PIXELS_AT_ONCE = 8 * _PIXELS_AT_ONCE
_MAX_COMPARED_PHOTOGRAPHS = 8  # photographs whose features the network itself computes, too
_CHUNK_BYTES = 1 << 24


class FeatureComputer:
    """Computes activations and features of batches by the fastest path of this machine.

    Args:
        network: network in evaluation mode, with a declaration of its parts. Its weights before the
            classifier must not change meanwhile.
        count: number of photographs.
    """

    def __init__(self, network: nn.Layer, count: int) -> None:
        self.network = network
        self._parts = network_parts(network)
        self._count = count
        self._forwards: dict[tuple[int, ...], tuple[FastForward, FastForward]] = {}

    def images_at_once(self, size: int) -> int:
        """Returns the number of images of a size that are computed at once. Batches should have this number.

        It divides the photographs into equal batches, because a smaller batch takes as long.

        Args:
            size: side of the images, pixels.
        """
        pixels = _PIXELS_AT_ONCE if paddle.get_device() == "cpu" else _DEVICE_PIXELS_AT_ONCE
        batches = math.ceil(self._count / max(1, pixels // size**2))
        return math.ceil(self._count / batches)

    def __call__(self, images: Array) -> tuple[Array, Array]:
        """Returns the activations before the exit flow, and the pooled features [N, F].

        Args:
            images: float32 [N, 3, H, W].
        """
        shape = images.shape[1:]
        if shape not in self._forwards:
            counts = {"count": 2 * self._count, "at_once": self.images_at_once(max(shape[1:]))}
            trunk = FastForward(self._parts.trunk, shape, **counts)
            exit_flow = FastForward(self._parts.exit_flow, trunk(images).shape[1:], **counts)
            self._forwards[shape] = trunk, exit_flow
        trunk, exit_flow = self._forwards[shape]
        activations = trunk(images)
        return activations, exit_flow(activations)

    def float32_features(self, images: Array) -> Array | None:
        """Returns the features that the network itself computes; None if ``__call__`` is as exact.

        Args:
            images: float32 [N, 3, H, W], of a shape that has been computed.
        """
        if all(forward.kind != "bfloat16" for forward in self._forwards[images.shape[1:]]):
            return None
        with paddle.no_grad():
            features: Array = self._parts.exit_flow(self._parts.trunk(paddle.to_tensor(images))).numpy()
        return features


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
        activations: input of the exit flow divided by ``scale``, float16 [N, copies, ...], in a file; None if
            it was not kept.
        scale: a power of 2, which is above 1 if the activations are too large for float16.
        exact: features of the last few photographs in float32, [n, F], if ``pooled`` was computed in
            bfloat16; None otherwise.
    """

    pooled: Array
    labels: Array
    activations: Array | None
    scale: float = 1.0
    exact: Array | None = None

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
        return np.asarray(self.activations[indices, copies], np.float32) * np.float32(self.scale)

    def precision_note(self, logits: Callable[[Array], Array]) -> str:
        """Returns a line about logits of features in bfloat16 and in float32; empty if there are none.

        Args:
            logits: function from features [n, F] to logits [n, class_num].
        """
        if self.exact is None:
            return ""
        expected = logits(self.exact)
        received = logits(self.pooled[0, -len(expected) :])
        same_count = int((received.argmax(1) == expected.argmax(1)).sum())
        return (
            f"features in bfloat16: the logits of {len(expected)} photographs differ from those in float32 "
            f"by up to {np.abs(received - expected).max():.2g}; {same_count} have the same best class"
        )


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
        keeps_activations: True to write the activations too, if the disk has room for them.

    Raises:
        DataError: a photograph can't be loaded.
        OSError: a file can't be written.
    """
    to_input = ModelInput(loader.dataset.device_stage)
    count = len(loader.dataset)
    pooled: Array | None = None
    store: _ActivationStore | None = None
    exact: Array | None = None
    with tqdm(total=count, desc="features", unit="image", disable=None, leave=False) as bar:
        for batch in loader.epoch():
            indices = batch.plan.indices
            images = to_input(batch.images)
            for copy in range(copies):
                inputs = paddle.flip(images, axis=[3]) if copy else images
                values, features = computer(inputs.numpy())
                if pooled is None:
                    pooled = np.zeros((copies, count, features.shape[1]), np.float32)
                    store = _ActivationStore(folder, (count, copies), values) if keeps_activations else None
                pooled[copy, indices] = features
                if store:
                    store.write(indices, copy, values)
            if indices[-1] == count - 1:
                exact = computer.float32_features(images[-_MAX_COMPARED_PHOTOGRAPHS:].numpy())
            bar.update(len(indices))
    loader.close()
    assert pooled is not None
    labels = np.asarray(loader.dataset.labels[:count], np.int64)
    scale = store.scale if store else 1.0
    arrays = {} if exact is None else {"exact": exact}
    write_named_arrays(folder / _FEATURES, pooled=pooled, labels=labels, scale=np.array(scale), **arrays)
    return Features(pooled, labels, store.finished() if store else None, scale=scale, exact=exact)


class _ActivationStore:
    """A file of activations.

    Args:
        folder: folder of the file.
        counts: number of photographs, and number of copies of each.
        values: activations of some images, [N, ...].

    Raises:
        OSError: the file can't be written.
    """

    def __init__(self, folder: Path, counts: tuple[int, int], values: Array) -> None:
        # with room for images with larger activations
        self.scale = 2.0 ** max(0, math.ceil(math.log2(max(10 * np.abs(values).max() / _MAX_FLOAT16, 1))))
        self._file = folder / _ACTIVATIONS
        self._array: np.memmap[Any, Any] | None = None
        shape = (*counts, *values.shape[1:])
        try:
            self._array = np.lib.format.open_memmap(self._file, "w+", "float16", shape)
            _allocate(self._file, self._array.offset)
        except OSError as error:
            self._array = None  # closes the file
            with contextlib.suppress(OSError):
                self._file.unlink(missing_ok=True)
            logger.warning(
                f"the activations are not kept, so the exit flow is not trained: {reason_of(error)}"
            )

    def write(self, indices: Array, copy: int, values: Array) -> None:
        """Writes the activations of one copy of some photographs."""
        if self._array is not None:
            self._array[indices, copy] = np.clip(values / self.scale, -_MAX_FLOAT16, _MAX_FLOAT16)

    def finished(self) -> Array | None:
        """Returns the activations; None if the disk had no room."""
        if self._array is not None:
            self._array.flush()
        return self._array


def _allocate(file: Path, start: int) -> None:
    """Reserves the disk space of a new file. If the disk is full, writing to a mapped file ends the process.

    Args:
        file: file of zeros, which may be sparse.
        start: first byte that may be written.

    Raises:
        OSError: the disk is full.
    """
    size = file.stat().st_size
    with open(file, "r+b") as stream:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, size)
            return
        stream.seek(start)
        for position in range(start, size, _CHUNK_BYTES):
            stream.write(bytes(min(_CHUNK_BYTES, size - position)))


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
        scale = float(arrays["scale"])
    except (OSError, ValueError, KeyError, EOFError):
        return None
    activations: Array | None = None
    if (folder / _ACTIVATIONS).is_file():
        try:
            activations = np.load(folder / _ACTIVATIONS, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
    return Features(pooled, labels, activations, scale=scale, exact=arrays.get("exact"))


def remove_features(folder: Path) -> None:
    """Removes the features from a folder."""
    for name in (_FEATURES, _ACTIVATIONS):
        with contextlib.suppress(OSError):
            (folder / name).unlink(missing_ok=True)
