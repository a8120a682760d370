"""A numba kernel that normalises uint8 batches on all cores."""

from __future__ import annotations

from ppxcls.system.arrays import Array
from ppxcls.system.kernels import compile_kernel


@compile_kernel
def normalize(images: Array, table: Array, out: Array, begin: int, end: int) -> None:
    """Normalises some rows of a batch with a table.

    Args:
        images: images, uint8 [N, H, W, 3].
        table: normalised value of each byte in each channel, float32 [3, 256].
        out: result, float32 [N, 3, H, W].
        begin: first of the N * H rows to normalise.
        end: row after the last one to normalise.
    """
    for row_index in range(begin, end):
        image_index, row = row_index // images.shape[1], row_index % images.shape[1]
        pixels = images[image_index, row]
        red, green, blue = out[image_index, 0, row], out[image_index, 1, row], out[image_index, 2, row]
        for x in range(pixels.shape[0]):
            red[x] = table[0, pixels[x, 0]]
            green[x] = table[1, pixels[x, 1]]
            blue[x] = table[2, pixels[x, 2]]
