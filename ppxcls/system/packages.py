"""Tells why an optional package can't be used, and imports one without a stranger's settings."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import os
import sys
from typing import Any

from ppxcls.system.atomic_files import read_regular, reason_of

_MATPLOTLIB_SETTINGS = "matplotlibrc"
_MAX_SETTINGS_BYTES = 1 << 20


def import_problem(name: str, hint: str) -> str | None:
    """Returns the reason why a package can't be imported; None if it can.

    Args:
        name: name of the module.
        hint: command that installs it.
    """
    if name.partition(".")[0] != name and (problem := import_problem(name.rpartition(".")[0], hint)):
        return problem
    try:
        if importlib.util.find_spec(name) is None:
            return f"{name}: {hint}"
        importlib.import_module(name)
    except Exception as error:  # a library that is missing or does not fit can raise any class of error
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return f"{name}, which is installed and can't be imported: {reason}"
    return None


def matplotlib_module() -> Any:
    """Returns matplotlib, without the settings of a ``matplotlibrc`` in the current folder.

    matplotlib prefers this file to the user's own. A stranger's file could name a module that draws, or let
    LaTeX draw all texts.

    Raises:
        OSError: the file would block matplotlib, because it is a pipe, or is too large.
        ImportError: matplotlib is not installed.
    """
    if "matplotlib" in sys.modules:
        return importlib.import_module("matplotlib")
    if os.path.exists(_MATPLOTLIB_SETTINGS) and not os.path.isdir(_MATPLOTLIB_SETTINGS):
        try:
            read_regular(_MATPLOTLIB_SETTINGS, _MAX_SETTINGS_BYTES)
        except ValueError as error:
            raise OSError(errno.EINVAL, reason_of(error), os.path.abspath(_MATPLOTLIB_SETTINGS)) from None
    matplotlib = importlib.import_module("matplotlib")
    if not os.path.isabs(matplotlib.matplotlib_fname()):
        matplotlib.rcdefaults()
    return matplotlib
