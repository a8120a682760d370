"""Digests of files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ppxcls.system.atomic_files import open_regular

_BLOCK_BYTES = 1 << 20


def file_sha256(file: Path) -> str:
    """Returns the SHA-256 of a regular file, of which only a block is in memory at a time.

    Raises:
        OSError: the file can't be read.
    """
    return _file_digest(file, hashlib.sha256())


def file_md5(file: Path) -> str:
    """Returns the MD5 of a regular file, for comparison with a published one. It protects from nobody.

    Raises:
        OSError: the file can't be read.
    """
    return _file_digest(file, hashlib.md5(usedforsecurity=False))


def _file_digest(file: Path, digest: hashlib._Hash) -> str:
    with open_regular(file) as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
