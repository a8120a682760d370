"""Tells the format of a file of weights by its content.

A cache names its files by their digests, and a download may have any name.
"""

from __future__ import annotations

from pathlib import Path

from ppxcls.checkpoints.archives import open_archive
from ppxcls.checkpoints.pickle_whitelist import RefusedError
from ppxcls.checkpoints.torch_reader import LEGACY_MAGIC, ZIP_SIGNATURE
from ppxcls.checkpoints.wrong_files import is_safetensors
from ppxcls.system.atomic_files import open_regular

HDF5_SIGNATURE = b"\x89HDF"
KERAS_MEMBER = "model.weights.h5"  # name of the weights in a .keras archive
_HEADER_BYTES = 64
# The first pickle of torch's older files is one number, after the two bytes of the protocol.
_LEGACY_START = b"\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little")


def format_extension(file: Path) -> str | None:
    """Returns the usual extension of a file's format; None if the file can't be read, or has another format.

    Args:
        file: file with any name.
    """
    try:
        with open_regular(file) as stream:
            header = stream.read(_HEADER_BYTES)
            if header.startswith(ZIP_SIGNATURE):
                return ".keras" if KERAS_MEMBER in open_archive(stream).namelist() else ".pth"
    except (OSError, ValueError):
        return None
    except RefusedError:
        return ".pth"  # its reader tells what is wrong
    if header.startswith(HDF5_SIGNATURE):
        return ".h5"
    if is_safetensors(header):
        return ".safetensors"
    if header[2:].startswith(_LEGACY_START):
        return ".pth"
    return ".pdparams" if header.startswith(b"\x80") else None
