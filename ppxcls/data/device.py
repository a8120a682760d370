"""Moves batches to the device and completes their transforms there."""

from __future__ import annotations

import cv2
import numpy as np
import paddle
from paddle import nn

from ppxcls.data.transforms import DeviceStage, NormalizeImage
from ppxcls.ops import cpu
from ppxcls.system import kernels
from ppxcls.system.arrays import Array


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
            self.register_buffer("mean", paddle.to_tensor(stage.normalize.mean.reshape(1, 3, 1, 1)))
            self.register_buffer("std", paddle.to_tensor(stage.normalize.std.reshape(1, 3, 1, 1)))

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        """Converts a batch to float32 [N, 3, H, W], and normalises it.

        Args:
            images: batch of any dtype, [N, H, W, 3], or [N, 3, H, W] if the host's transforms return this.
        """
        x = images.astype("float32")  # first, because Paddle 2.6 does not transpose uint8 in a static graph
        x = x if self._is_chw else x.transpose([0, 3, 1, 2])
        return x if self._scale is None else (x * self._scale - self.mean) / self.std


class ModelInput:
    """Moves a batch to the device and applies ``DeviceTransform`` there.

    On a CPU, a lookup table on the host gives the same numbers ten times faster than Paddle's broadcasting.

    Args:
        stage: transforms that run on the device.
        pin_memory: True to copy batches to a GPU from pinned memory without waiting. The copy is queued
            behind the computation.
    """

    def __init__(self, stage: DeviceStage, *, pin_memory: bool = False) -> None:
        self._stage = stage
        self._transform = DeviceTransform(stage)
        self._uses_pinned_memory = pin_memory
        # Pinned memory of the last batches. Their copies may still be queued.
        self._pinned_batches: list[paddle.Tensor] = []

    def __call__(self, images: Array) -> paddle.Tensor:
        """Returns the batch on the device, float32 [N, 3, H, W].

        Args:
            images: batch, uint8 [N, H, W, 3], or what the host's transforms return.
        """
        normalize = self._stage.normalize
        if normalize and not self._stage.chw and images.dtype == np.uint8 and paddle.get_device() == "cpu":
            return self._normalize_by_table(normalize, images)
        if self._uses_pinned_memory and paddle.get_device().startswith("gpu"):
            pinned_images = paddle.to_tensor(images, place=paddle.CUDAPinnedPlace())
            self._pinned_batches = [*self._pinned_batches[-2:], pinned_images]
            return self._transform(pinned_images.cuda(blocking=False))
        return self._transform(paddle.to_tensor(images))

    @staticmethod
    def _normalize_by_table(normalize: NormalizeImage, images: Array) -> paddle.Tensor:
        if kernels.HAS_NUMBA and images.size:
            from ppxcls.data.normalize_kernels import normalize as normalize_rows

            output = paddle.empty([len(images), 3, *images.shape[1:3]], "float32")
            arguments = (
                np.ascontiguousarray(images),
                np.ascontiguousarray(normalize.table.T),
                cpu.view(output),
            )
            kernels.run(normalize_rows, len(images) * images.shape[1], *arguments)
            return output
        batch = np.empty((len(images), 3, *images.shape[1:3]), np.float32)
        for image, planes in zip(images, batch, strict=True):
            cv2.split(cv2.LUT(image, normalize.table[None]), list(planes))
        return paddle.to_tensor(batch)
