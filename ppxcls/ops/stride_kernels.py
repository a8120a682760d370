"""The pixels that a stride leaves, channels first, and back, as numba kernels."""

from __future__ import annotations

from ppxcls.ops.cpu import compiled


def _take(images, stride, rows, part, parts):  # type: ignore[no-untyped-def]
    """Copy every ``stride``-th row and column of float32 [N, C, H, W] to [C, N, H', W']; a part of the channels."""
    for channel in range(rows.shape[0] * part // parts, rows.shape[0] * (part + 1) // parts):
        for image in range(rows.shape[1]):
            for y in range(rows.shape[2]):
                source, target = images[image, channel, y * stride], rows[channel, image, y]
                for x in range(target.size):
                    target[x] = source[x * stride]


def _spread(rows, stride, images, part, parts):  # type: ignore[no-untyped-def]
    """Copy float32 [C, N, H', W'] to every ``stride``-th row and column of [N, C, H, W], zeros between; a part of the channels."""
    for channel in range(rows.shape[0] * part // parts, rows.shape[0] * (part + 1) // parts):
        for image in range(rows.shape[1]):
            images[image, channel] = 0
            for y in range(rows.shape[2]):
                source, target = rows[channel, image, y], images[image, channel, y * stride]
                for x in range(source.size):
                    target[x * stride] = source[x]


take = compiled(_take, "take", set())
spread = compiled(_spread, "spread", set())
