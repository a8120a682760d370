"""Shows images of any number of channels as pictures."""

from __future__ import annotations

import numpy as np

from ppxcls.system.arrays import Array

_RGB_CHANNELS = 3


def visible_channels(images: Array) -> Array:
    """Returns images as a screen shows them, [..., 3] or [..., 1].

    Of more than 3 channels the first 3 are shown, and of 2 the first one. Of 16 bits the upper 8 are shown.

    Args:
        images: image or images of any type, [..., C].
    """
    count = _RGB_CHANNELS if images.shape[-1] >= _RGB_CHANNELS else 1
    channels = images[..., :count]
    return (channels >> 8).astype(np.uint8) if images.dtype == np.uint16 else channels
