"""Thumbnails of samples, and Grad-CAM pictures of what the network looked at."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import paddle
from paddle import nn

from ppxcls.build.choices import transforms_for, weights_for
from ppxcls.build.network import build_network
from ppxcls.config.sections import Config
from ppxcls.data.decode import decode_image
from ppxcls.data.device import ModelInput
from ppxcls.data.errors import DataError
from ppxcls.data.transforms import build_transforms, split_for_device
from ppxcls.data.visible_channels import visible_channels
from ppxcls.reports.record import Images
from ppxcls.system.arrays import Array
from ppxcls.system.atomic_files import read_inside

_MAX_PNG_BYTES, _MAX_PNG_PIXELS = 1 << 24, 1 << 22
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SIDE_PIXELS = 128  # pixels, the longer side of a thumbnail


def data_uri(data: bytes, kind: str = "png") -> str:
    """Returns a picture as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def thumbnail(file: str, images: Images) -> str | None:
    """Returns a small JPEG of an image file as a data URI; None if the file can't be read."""
    try:
        image = decode_image(images.read(file))
    except (OSError, ValueError, MemoryError):
        return None
    return _jpeg(_resize_to_thumbnail(image))


def own_png(file: Path) -> str | None:
    """Returns a PNG that a run has written, as a data URI; None if it is none.

    The picture is decoded and encoded again, so that no other bytes of the file get into the page.

    Args:
        file: PNG in the run's folder. A link out of the folder, and a large picture, count as none.
    """
    try:
        data = read_inside(file, [file.parent], _MAX_PNG_BYTES)
        size = int.from_bytes(data[16:20], "big") * int.from_bytes(data[20:24], "big")
        if not data.startswith(_PNG_SIGNATURE) or size > _MAX_PNG_PIXELS:
            return None
        image = decode_image(data)
    except (OSError, ValueError, MemoryError):
        return None
    _, encoded = cv2.imencode(".png", image[..., ::-1])
    return data_uri(encoded.tobytes())


def _resize_to_thumbnail(image: Array) -> Array:
    scale = _SIDE_PIXELS / max(image.shape[:2])
    size = max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)


def _jpeg(image: Array) -> str:
    _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    return data_uri(data.tobytes(), "jpeg")


class GradCam:
    """Shows which regions of an image raise the score of a class.

    This is Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391, eq. 1 and 2). It uses the last feature map of
    the network with more than one position.

    Args:
        config: config of a run with weights.

    Raises:
        ConfigError, CheckpointError: there are no weights, or they can't be used.
    """

    def __init__(self, config: Config) -> None:
        self._network = build_network(config, "export", weights_for(config, "export"))
        self._network.eval()
        self._host_transforms, stage = split_for_device(build_transforms(transforms_for(config)))
        self._to_input = ModelInput(stage)
        self._is_chw = stage.chw

    def overlay(self, file: str, images: Images, class_id: int) -> str | None:
        """Returns the image as the network sees it, with the regions marked.

        Args:
            file: image file.
            images: reader of the image files.
            class_id: class with the score to explain.

        Returns:
            A data URI; None if the picture can't be made.
        """
        try:
            pixels = self._host_transforms(images.read(file), np.random.default_rng(0))
        except (OSError, ValueError, MemoryError, DataError):
            return None
        activation_map = self._activation_map(self._to_input(pixels[None]), class_id)
        is_picture = pixels.dtype in (np.uint8, np.uint16) and pixels.ndim == 3 and not self._is_chw
        if activation_map is None or not is_picture:
            return None
        pixels = visible_channels(pixels)
        heat = cv2.resize(activation_map, pixels.shape[1::-1], interpolation=cv2.INTER_CUBIC)
        colors = cv2.applyColorMap((np.clip(heat, 0, 1) * 255).astype(np.uint8), cv2.COLORMAP_VIRIDIS)[
            ..., ::-1
        ]
        return _jpeg(_resize_to_thumbnail((0.5 * pixels + 0.5 * colors).astype(np.uint8)))

    def _activation_map(self, images: paddle.Tensor, class_id: int) -> Array | None:
        """Returns weights from 0 to 1, float32 [h, w]; None if the network has no feature map."""
        maps: list[paddle.Tensor] = []

        def keep(layer: nn.Layer, inputs: Any, output: Any) -> None:
            if (
                isinstance(output, paddle.Tensor)
                and output.ndim == 4
                and output.shape[2] * output.shape[3] > 1
            ):
                maps.append(output)

        hooks = [layer.register_forward_post_hook(keep) for layer in self._network.sublayers()]
        try:
            images.stop_gradient = False
            logits = self._network(images)
        finally:
            for hook in hooks:
                hook.remove()
        if not maps:
            return None
        (gradient,) = paddle.grad(logits[0, class_id], [maps[-1]], allow_unused=True)
        if gradient is None:
            return None
        weights = gradient.mean(axis=[2, 3], keepdim=True)
        activation_map = (
            nn.functional.relu((weights * maps[-1]).sum(axis=1))[0].detach().astype("float32").numpy()
        )
        return activation_map / max(float(activation_map.max()), 1e-12)


def overlays(config: Config, images: Images, samples: Sequence[tuple[str, int]]) -> list[str | None]:
    """Returns Grad-CAM pictures of several images; see ``GradCam``.

    Args:
        config: config of the run.
        images: reader of the image files.
        samples: pairs of image file and class id.
    """
    cam = GradCam(config)
    return [cam.overlay(file, images, class_id) for file, class_id in samples]
