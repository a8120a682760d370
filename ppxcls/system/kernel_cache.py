"""The cache of compiled kernels, in a folder that no other user can change.

numba's own cache unpickles whatever is in its folder, which runs code of whoever wrote it. It trusts an index
that a crash or a full disk may have cut. So this package has its own: a file for each kernel and each kind of
arguments, which begins with a digest of its key and its content.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import caching, config
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from ppxcls.system.atomic_files import reason_of, whole_file
from ppxcls.system.logs import warn_once
from ppxcls.system.own_folders import cache_folder, file_problem

_DIGEST_BYTES = 32
_MAX_FILE_BYTES = 1 << 26  # the largest kernel has 0.3 MB
# Settings of numba that change the code and are not in the processor's name and features.
_CODE_SETTINGS = (
    "OPT",
    "BOUNDSCHECK",
    "LOOP_VECTORIZE",
    "SLP_VECTORIZE",
    "DISABLE_INTEL_SVML",
    "DEBUGINFO_DEFAULT",
)


class KernelCache(caching._Cache):
    """Stores and loads the compiled code of one kernel, as numba's dispatcher asks for it.

    Whatever is wrong with a stored file, the kernel is compiled again.

    Args:
        function: the kernel in Python.
        folder: folder of the files.
        source_digest: digest of everything that the code is made from.
    """

    def __init__(self, function: Callable[..., Any], folder: Path, source_digest: str) -> None:
        self._function = function
        self._folder = folder
        self._source_digest = source_digest

    @property
    def cache_path(self) -> str:
        """Folder of the files."""
        return str(self._folder)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Returns the code for a kind of arguments; None if it is not stored, or if its file is not whole."""
        target_context.refresh()
        file, key = self._place(sig, target_context.codegen())
        try:
            content = _read(file)
            if content[:_DIGEST_BYTES] != _digest(key, content[_DIGEST_BYTES:]):
                return None
            parts = pickle.loads(content[_DIGEST_BYTES:])  # noqa: S301  a file that only this user can write
            return CompileResult._rebuild(target_context, *parts)
        except Exception:  # also of a code that this version of LLVM does not load
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Stores the code for a kind of arguments, if it can be stored."""
        if data.lifted or data.library.has_dynamic_globals:
            return
        file, key = self._place(sig, data.codegen)
        content = dumps(data._reduce())
        try:
            with whole_file(file, mode=0o600) as stream:  # only this user can write to it, as ``_read`` needs
                stream.write(_digest(key, content) + content)
        except OSError as error:
            _warn_of_folder(self._folder, reason_of(error))

    def _place(self, sig: Any, codegen: Any) -> tuple[Path, bytes]:
        """Returns the file of a kind of arguments, and its key."""
        settings = [repr(getattr(config, name, None)) for name in _CODE_SETTINGS]
        code = hashlib.sha256(self._function.__code__.co_code).hexdigest()
        parts = (numba.__version__, sys.version, *settings, self._source_digest, code, sig)
        key = "\n".join(map(str, (*parts, *codegen.magic_tuple()))).encode()
        name = f"{self._function.__module__.rpartition('.')[2]}.{self._function.__name__}"
        return self._folder / f"{name}-{hashlib.sha256(key).hexdigest()[:16]}.nbc", key

    def enable(self) -> None:
        """Does nothing: the cache is always on."""

    def disable(self) -> None:
        """Does nothing: the cache is always on."""

    def flush(self) -> None:
        """Does nothing: no file of another key is ever loaded."""


def kernel_cache_folder(source: Path) -> Path | None:
    """Returns the folder for the compiled kernels of a source file; None if there is no safe one.

    It is the first of these that this user can write to, and nobody else: ``NUMBA_CACHE_DIR``, or else
    ``__pycache__`` beside the source; and then ``ppxcls/kernels`` in the user's cache.
    """
    chosen_folder = os.environ.get("NUMBA_CACHE_DIR")
    return cache_folder("kernels", chosen_folder or str(source.parent / "__pycache__"))


@functools.cache
def _warn_of_folder(folder: Path, reason: str) -> None:
    warn_once(f"compiled kernels can't be stored in {folder}: {reason}")


def _digest(key: bytes, content: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(key).digest() + content).digest()


def _read(file: Path) -> bytes:
    """Reads a file that only this user can have written. Raises OSError."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with open(os.open(file, flags | getattr(os, "O_BINARY", 0)), "rb") as stream:
        if (problem := file_problem(os.fstat(stream.fileno()))) is not None:
            raise OSError(problem)
        return stream.read(_MAX_FILE_BYTES)
