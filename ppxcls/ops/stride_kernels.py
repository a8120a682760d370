"""Numba kernels that copy the pixels of a stride to [C, N, H', W'], and back."""

from __future__ import annotations

from ppxcls.system.kernels import compile_kernel


@compile_kernel
def take(images, stride, rows, begin, end):  # type: ignore[no-untyped-def]
    """Copies every ``stride``-th row and column of float32 [N, C, H, W] to [C, N, H', W'].

    Only the channels from ``begin`` to ``end`` are copied, without ``end``.
    """
    for channel in range(begin, end):
        for image in range(rows.shape[1]):
            for y in range(rows.shape[2]):
                source, target = images[image, channel, y * stride], rows[channel, image, y]
                for x in range(target.size):
                    target[x] = source[x * stride]


@compile_kernel
def spread(rows, stride, images, begin, end):  # type: ignore[no-untyped-def]
    """Copies float32 [C, N, H', W'] to every ``stride``-th row and column of [N, C, H, W].

    The pixels between them become zero. Only the channels from ``begin`` to ``end`` are copied, without
    ``end``.
    """
    for channel in range(begin, end):
        for image in range(rows.shape[1]):
            images[image, channel] = 0
            for y in range(rows.shape[2]):
                source, target = rows[channel, image, y], images[image, channel, y * stride]
                for x in range(source.size):
                    target[x * stride] = source[x]
