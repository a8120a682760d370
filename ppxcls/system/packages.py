"""Tells why an optional package can't be used."""

from __future__ import annotations

import importlib
import importlib.util


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
