"""Moves batches to the device and completes their transforms there."""

from __future__ import annotations

import functools
import time
from collections import deque

import cv2
import numpy as np
import paddle
from paddle import nn
from paddle.framework import _current_expected_place

from ppxcls.data.transforms import DeviceStage, NormalizeImage
from ppxcls.ops import cpu
from ppxcls.system import kernels
from ppxcls.system.arrays import Array

_MAX_QUEUED_COPIES = 8  # copies whose sources are kept, about four batches


def device_array(images: Array) -> Array:
    """Returns images in a type that Paddle has. It would read uint16 as the bits of bfloat16 numbers."""
    return images.astype(np.float32) if images.dtype == np.uint16 else images


def check_batch_channels(images: Array, normalize: NormalizeImage) -> None:
    """Checks that a batch [N, H, W, C] has the channels of a normalisation, before a kernel reads it.

    Raises:
        ValueError: it has others.
    """
    if images.ndim != 4 or images.shape[3] != len(normalize.mean):
        raise ValueError(
            f"NormalizeImage: expected images of {len(normalize.mean)} channels, as mean and std have, "
            f"received {list(images.shape[1:])}"
        )


def to_device(array: Array) -> paddle.Tensor:
    """Copies an array to the device without waiting for the computation that is queued there.

    ``paddle.to_tensor`` of an array waits for all queued operators, and keeps Python's lock meanwhile. Here
    the copy is queued behind them, on GPUs from pinned memory.

    Args:
        array: array of any type and shape.
    """
    device = paddle.get_device()
    if device == "cpu":
        return paddle.to_tensor(array)
    if device.startswith("gpu"):
        source = paddle.to_tensor(array, place=paddle.CUDAPinnedPlace())
        tensor = source.cuda(blocking=False)
    else:
        source = paddle.to_tensor(array, place=paddle.CPUPlace())
        tensor = source._copy_to(_current_expected_place(), not _has_events(device))
    if _has_events(device):
        _QUEUED_COPIES.add(source)
    return tensor


class _QueuedCopies:
    """Keeps the sources of copies until the device has made the copies."""

    def __init__(self) -> None:
        self._pending: deque[tuple[paddle.device.Event, paddle.Tensor]] = deque()

    def add(self, source: paddle.Tensor) -> None:
        """Adds the source of the last copy. Waits if the device is several batches behind."""
        event = paddle.device.Event()
        event.record()
        self._pending.append((event, source))
        while self._pending and self._pending[0][0].query():
            self._pending.popleft()
        while len(self._pending) > _MAX_QUEUED_COPIES:
            while not self._pending[0][0].query():
                time.sleep(0.0005)  # without Python's lock, unlike the event's own waiting
            self._pending.popleft()


_QUEUED_COPIES = _QueuedCopies()


@functools.cache
def _has_events(device: str) -> bool:  # noqa: ARG001  the key of the cache
    """True if Paddle can tell when a copy to this device is complete."""
    try:
        event = paddle.device.Event()
        event.record()
        event.query()
    except Exception:  # builds of Paddle without such events raise many kinds
        return False
    return True


class DeviceTransform(nn.Layer):
    """The transforms that ``split_for_device`` leaves to the device: layout, float32, normalisation.

    Exported models contain this layer.
    """

    def __init__(self, stage: DeviceStage) -> None:
        super().__init__()
        self._is_chw = stage.chw
        self._scale = None
        if stage.normalize:
            self._scale = float(stage.normalize.scale)
            self.register_buffer("mean", paddle.to_tensor(stage.normalize.mean.reshape(1, -1, 1, 1)))
            self.register_buffer("std", paddle.to_tensor(stage.normalize.std.reshape(1, -1, 1, 1)))

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        """Converts a batch to float32 [N, C, H, W], and normalises it.

        Args:
            images: batch of any dtype, [N, H, W, C], or [N, C, H, W] if the host's transforms return this.
        """
        x = images.astype("float32")  # first, because Paddle 2.6 does not transpose uint8 in a static graph
        x = x if self._is_chw else x.transpose([0, 3, 1, 2])
        return x if self._scale is None else (x * self._scale - self.mean) / self.std


class ModelInput:
    """Moves a batch to the device and applies ``DeviceTransform`` there.

    On a CPU, a lookup table on the host gives the same numbers ten times faster than Paddle's broadcasting.

    Args:
        stage: transforms that run on the device.
    """

    def __init__(self, stage: DeviceStage) -> None:
        self._stage = stage
        self._transform = DeviceTransform(stage)

    def __call__(self, images: Array) -> paddle.Tensor:
        """Returns the batch on the device, float32 [N, C, H, W].

        Args:
            images: batch, uint8 or uint16 [N, H, W, C], or what the host's transforms return.
        """
        normalize = self._stage.normalize
        if normalize and not self._stage.chw and images.dtype == np.uint8 and paddle.get_device() == "cpu":
            return self._normalize_by_table(normalize, images)
        return self._transform(to_device(device_array(images)))

    @staticmethod
    def _normalize_by_table(normalize: NormalizeImage, images: Array) -> paddle.Tensor:
        check_batch_channels(images, normalize)
        if kernels.HAS_NUMBA and images.size:
            from ppxcls.data.normalize_kernels import normalize as normalize_rows

            output = paddle.empty([len(images), images.shape[3], *images.shape[1:3]], "float32")
            arguments = (
                np.ascontiguousarray(images),
                np.ascontiguousarray(normalize.table.T),
                cpu.view(output),
            )
            kernels.run(normalize_rows, len(images) * images.shape[1], *arguments)
            return output
        batch = np.empty((len(images), images.shape[3], *images.shape[1:3]), np.float32)
        for image, planes in zip(images, batch, strict=True):
            cv2.split(cv2.LUT(image, normalize.table[None]), list(planes))
        return paddle.to_tensor(batch)
