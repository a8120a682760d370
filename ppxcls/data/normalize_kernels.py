"""A numba kernel that normalises uint8 batches on all cores."""

from __future__ import annotations

from ppxcls.system.arrays import Array
from ppxcls.system.kernels import compile_kernel


@compile_kernel
def normalize(images: Array, table: Array, out: Array, begin: int, end: int) -> None:
    """Normalises some rows of a batch with a table.

    The caller checks that images and table have the same number of channels.

    Args:
        images: images, uint8 [N, H, W, C].
        table: normalised value of each byte in each channel, float32 [C, 256].
        out: result, float32 [N, C, H, W].
        begin: first of the N * H rows to normalise.
        end: row after the last one to normalise.
    """
    for row_index in range(begin, end):
        image_index, row = row_index // images.shape[1], row_index % images.shape[1]
        pixels = images[image_index, row]
        for channel in range(table.shape[0]):
            values, plane = table[channel], out[image_index, channel, row]
            for x in range(pixels.shape[0]):
                plane[x] = values[pixels[x, channel]]
