"""Features of photographs from the frozen network, which are computed only once."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle
from paddle import nn
from tqdm import tqdm

from ppxcls.config.sections import Config
from ppxcls.data.device import ModelInput
from ppxcls.data.loader import Loader
from ppxcls.models.common_keys import MODELS
from ppxcls.models.parts import NetworkParts, split_network
from ppxcls.models.weights import load_weights
from ppxcls.system.arrays import Array
from ppxcls.system.atomic_files import whole_file
from ppxcls.train.fast_forward import FastForward

_FEATURES = "features_{size}.npz"  # one for each size, because folds of a cross-validation share them
_PIXELS_AT_ONCE = 8 * 299 * 299  # of the images that a CPU computes at once; more take longer for each image
_DEVICE_PIXELS_AT_ONCE = 8 * _PIXELS_AT_ONCE
_MAX_COMPARED_PHOTOGRAPHS = 8  # photographs whose features the network itself computes, too


class FeatureComputer:
    """Computes features of batches by the fastest path of this machine.

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

    def __call__(self, images: Array) -> Array:
        """Returns the pooled features [N, F].

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
        return exit_flow(trunk(images))

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
    """Features of photographs.

    Attributes:
        pooled: features, float32 [copies, N, F]. The first copy is the photograph, the second one its mirror
            image.
        labels: class of each photograph, int64 [N].
        exact: features of the last few photographs in float32, [n, F], if ``pooled`` was computed in
            bfloat16; None otherwise.
    """

    pooled: Array
    labels: Array
    exact: Array | None = None

    def rows(self, indices: Array) -> Features:
        """Returns the features of some photographs, without those in float32.

        Args:
            indices: indices of the photographs, int [n].
        """
        return Features(self.pooled[:, indices], self.labels[indices])

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


def compute_features(
    computer: FeatureComputer, loader: Loader, *, folder: Path, copies: int, size: int
) -> Features:
    """Computes the features of all photographs of a loader, and writes them to a folder.

    Args:
        computer: computer of the features.
        loader: loader without shuffling.
        folder: folder for the features; it must exist.
        copies: 1 for the photographs alone, 2 for their mirror images too.
        size: side of the loader's images, pixels.

    Raises:
        DataError: a photograph can't be loaded.
        OSError: a file can't be written.
    """
    to_input = ModelInput(loader.dataset.device_stage)
    count = len(loader.dataset)
    pooled: Array | None = None
    exact: Array | None = None
    with tqdm(total=count, desc="features", unit="image", disable=None, leave=False) as bar:
        for batch in loader.epoch():
            indices = batch.plan.indices
            images = to_input(batch.images)
            for copy in range(copies):
                inputs = paddle.flip(images, axis=[3]) if copy else images
                features = computer(inputs.numpy())
                if pooled is None:
                    pooled = np.zeros((copies, count, features.shape[1]), np.float32)
                pooled[copy, indices] = features
            if indices[-1] == count - 1:
                exact = computer.float32_features(images[-_MAX_COMPARED_PHOTOGRAPHS:].numpy())
            bar.update(len(indices))
    loader.close()
    assert pooled is not None
    labels = np.asarray(loader.dataset.labels[:count], np.int64)
    arrays = {} if exact is None else {"exact": exact}
    with whole_file(folder / _FEATURES.format(size=size)) as stream:
        np.savez(stream, pooled=pooled, labels=labels, **arrays)  # type: ignore[arg-type]
    return Features(pooled, labels, exact=exact)


def read_features(folder: Path, size: int) -> Features | None:
    """Reads the features that ``compute_features`` wrote to a folder.

    Args:
        folder: folder of the features.
        size: side of the images, pixels.

    Returns:
        The features; None if there are none of this size, or if they are not whole.
    """
    try:
        with np.load(folder / _FEATURES.format(size=size), allow_pickle=False) as arrays:
            return Features(arrays["pooled"], arrays["labels"], exact=arrays.get("exact"))
    except (OSError, ValueError, KeyError, EOFError):
        return None


def remove_features(folder: Path) -> None:
    """Removes the features of all sizes from a folder."""
    for file in folder.glob(_FEATURES.format(size="*")):
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


def network_with_weights(config: Config, weights: str | None) -> nn.Layer:
    """Returns the network of a config in evaluation mode, with weights and a fresh classifier.

    The average of the weights (EMA) is used if the file is a checkpoint that has one.

    Raises:
        CheckpointError: the weights can't be used.
    """
    network: nn.Layer = MODELS.build(config.Arch)
    if weights:
        load_weights(network, weights, keep_trunk=True, average=True)
    network.eval()
    return network
