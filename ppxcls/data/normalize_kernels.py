"""Normalisation of uint8 batches as a numba kernel, for all cores."""

from __future__ import annotations

from typing import Any

import numpy as np

from ppxcls.system.kernels import compiled

Array = np.ndarray[Any, Any]


@compiled
def normalize(images: Array, table: Array, out: Array, begin: int, end: int) -> None:
    """uint8 [N, H, W, 3] by a table float32 [3, 256] to float32 [N, 3, H, W]; some of the N H rows."""
    for i in range(begin, end):
        number, row = i // images.shape[1], i % images.shape[1]
        pixels = images[number, row]
        red, green, blue = out[number, 0, row], out[number, 1, row], out[number, 2, row]
        for x in range(pixels.shape[0]):
            red[x] = table[0, pixels[x, 0]]
            green[x] = table[1, pixels[x, 1]]
            blue[x] = table[2, pixels[x, 2]]
