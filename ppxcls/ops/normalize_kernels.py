"""Normalisation of uint8 batches as a numba kernel, for all cores."""

from __future__ import annotations

from typing import Any

import numpy as np

from ppxcls.ops.cpu import compiled

Array = np.ndarray[Any, Any]


def _normalize(images: Array, table: Array, out: Array, part: int, parts: int) -> None:
    """uint8 [N, H, W, 3] by a table float32 [3, 256] to float32 [N, 3, H, W]; a part of the rows."""
    rows = images.shape[0] * images.shape[1]
    for i in range(rows * part // parts, rows * (part + 1) // parts):
        number, row = i // images.shape[1], i % images.shape[1]
        pixels = images[number, row]
        red, green, blue = out[number, 0, row], out[number, 1, row], out[number, 2, row]
        for x in range(pixels.shape[0]):
            red[x] = table[0, pixels[x, 0]]
            green[x] = table[1, pixels[x, 1]]
            blue[x] = table[2, pixels[x, 2]]


normalize = compiled(_normalize, "normalize", set())
