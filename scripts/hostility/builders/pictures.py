"""Writes images of floating-point numbers."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

FORMATS = (".tiff", ".f64.tiff", ".pfm", ".big.tiff")
_TIFF_OPTIONS = [int(cv2.IMWRITE_TIFF_COMPRESSION), 1]
_TYPE_SIZES = {3: 2, 4: 4}


def encoded(kind: str, pixels: np.ndarray[Any, Any]) -> bytes:
    """Returns the file of an image [H, W, 1 or 3].

    Args:
        kind: one of ``FORMATS``.
        pixels: floating-point numbers.
    """
    if kind == ".big.tiff":
        return _big_endian_tiff(pixels)
    if kind == ".f64.tiff":
        pixels = pixels.astype(np.float64)
    options = _TIFF_OPTIONS if kind.endswith(".tiff") else []
    extension = f".{kind.rpartition('.')[2]}"
    return cv2.imencode(extension, np.ascontiguousarray(pixels).squeeze(), options)[1].tobytes()


def _big_endian_tiff(pixels: np.ndarray[Any, Any]) -> bytes:
    """Returns a TIFF in the order of bytes that OpenCV does not write."""
    height, width, channels = pixels.shape
    data = pixels.astype(">f4").tobytes()
    entries = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, 32),
        (259, 3, 1),
        (262, 3, 2 if channels == 3 else 1),
        (273, 4, 8),
        (277, 3, channels),
        (278, 4, height),
        (279, 4, len(data)),
        (339, 3, 3),
    ]
    rows = b""
    for tag, kind, value in entries:
        size = _TYPE_SIZES[kind]
        number = value.to_bytes(size, "big").ljust(4, b"\0")
        rows += tag.to_bytes(2, "big") + kind.to_bytes(2, "big") + (1).to_bytes(4, "big") + number
    directory = len(entries).to_bytes(2, "big") + rows + bytes(4)
    return b"MM\0*" + (8 + len(data)).to_bytes(4, "big") + data + directory
