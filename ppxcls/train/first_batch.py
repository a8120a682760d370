"""A picture of the first training batch as the network sees it: augmented, mixed and normalised."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import paddle

from ppxcls.system.logs import logger
from ppxcls.system.whole_files import reason_of, write_bytes

_MOST = 16  # images
_SIDE = 160  # pixels of one


def write_first_batch(file: Path, images: paddle.Tensor) -> None:
    """Write the first images side by side. The range of values of the batch becomes the range of the picture.

    Args:
        file: the picture. If it can't be written, a warning says so.
        images: [N, C, H, W], any real dtype.
    """
    pixels = images[:_MOST].astype("float32").numpy()
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        return  # a network of the user's own may take anything else
    low, high = pixels.min(), pixels.max()
    shown = ((pixels - low) * (255 / max(high - low, 1e-6))).astype(np.uint8).transpose(0, 2, 3, 1)
    tiles = [
        cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).reshape(_SIDE, _SIDE, -1)
        for image in shown
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
