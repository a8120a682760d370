"""Tells what a file is that should contain weights and does not."""

from __future__ import annotations

from ppxcls.system.file_kinds import other_kind

_TORCH_NAMES = (".pth", ".pt", ".bin", ".tar", ".ckpt")
# First bytes of each format, and the extensions of the files that have it. The reader's own message about a
# damaged file of its format is better.
_OWN_STARTS = (
    (b"PK\x03\x04", (*_TORCH_NAMES, ".keras")),
    (b"\x89HDF", (".h5", ".hdf5", ".keras")),
)
_MAX_SAFETENSORS_HEADER = 100_000_000  # bytes; the limit of the format


def wrong_kind(data: bytes, extension: str) -> str | None:
    """Describes a file that has no weights, or weights of another format; None if its kind is unknown.

    Args:
        data: bytes of the file, or its first few thousand bytes.
        extension: extension of the file's name, such as ``.pth``.
    """
    if not data:
        return "an empty file"
    if any(data.startswith(start) and extension in names for start, names in _OWN_STARTS):
        return None
    if data.startswith(b"PK\x03\x04") and b"/data.pkl" in data[:256]:
        return "a file of torch; name it .pth"
    if extension != ".safetensors" and is_safetensors(data):
        return "a safetensors file; name it .safetensors"
    if extension == ".safetensors" and data[:1] == b"\x80":
        return "a pickle; name it .pdparams, or .pth if torch wrote it"
    kind = other_kind(data)
    # A pickle of protocol 0 is a text too. Its last byte is a full stop.
    is_pickle = kind is not None and kind.startswith("a text") and data.endswith(b".")
    return None if is_pickle else kind


def is_safetensors(data: bytes) -> bool:
    """True if a file begins with a header of safetensors."""
    return data[8:10] in (b'{"', b"{}") and int.from_bytes(data[:8], "little") <= _MAX_SAFETENSORS_HEADER
