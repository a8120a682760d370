"""A picture of the first training batch as the network sees it: augmented, mixed and normalised."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import paddle

from ppxcls.data.visible_channels import visible_channels
from ppxcls.system.atomic_files import reason_of, write_bytes
from ppxcls.system.logs import logger

_MAX_IMAGES = 16  # number of images in the picture
_SIDE_PIXELS = 160  # side of each image in the picture, in pixels


def write_first_batch(file: Path, images: paddle.Tensor) -> None:
    """Writes the first images side by side.

    The smallest value of these images becomes 0 in the picture, and the largest value becomes 255.

    Args:
        file: PNG file to write. If it can't be written, a warning is logged.
        images: batch [N, C, H, W] of any real dtype. See ``visible_channels`` about the channels.
    """
    pixels = images[:_MAX_IMAGES].astype("float32").numpy()
    if pixels.ndim != 4:
        return  # a user's own network may take another shape
    pixels = visible_channels(pixels.transpose(0, 2, 3, 1))
    minimum, maximum = pixels.min(), pixels.max()
    scaled_images = ((pixels - minimum) * (255 / max(maximum - minimum, 1e-6))).astype(np.uint8)
    tiles = [
        cv2.resize(image, (_SIDE_PIXELS, _SIDE_PIXELS), interpolation=cv2.INTER_AREA).reshape(
            _SIDE_PIXELS, _SIDE_PIXELS, -1
        )
        for image in scaled_images
    ]
    columns = min(len(tiles), 8)
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    rows = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    picture = np.vstack(rows)
    _, data = cv2.imencode(".png", picture[..., ::-1] if picture.shape[-1] == 3 else picture)
    try:
        write_bytes(file, data.tobytes())
    except OSError as error:
        logger.warning(f"{file}: {reason_of(error)}")
