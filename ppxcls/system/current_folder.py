"""Keeps modules in the current folder from being imported in the place of installed ones.

The current folder may be a stranger's, with a ``numpy.py`` in it. Python searches it first in a notebook,
under ``python -m`` and under ``python -c``. This module runs before that is undone. So it imports only
``sys``, which is built into Python, and not even ``__future__``, which is a file.
"""

import sys

_PACKAGE = "ppxcls"


def leave_current_folder() -> None:
    """Takes the current folder off Python's path if this process is ``python -m ppxcls``.

    If this package itself lies in the current folder, as in a checkout, the folder becomes the last one.
    """
    if not _is_module_run() or not sys.path:
        return
    folder = sys.path.pop(0)
    if __file__.startswith((f"{folder}/{_PACKAGE}/", f"{folder}\\{_PACKAGE}\\")):
        sys.path.append(folder)


def _is_module_run() -> bool:
    """True if Python runs this package by ``-m``, and has put the current folder first on its path."""
    # While Python searches for the module, sys.argv begins with "-m". Python 3.10 has no safe_path.
    if sys.argv[:1] != ["-m"] or sys.flags.isolated or getattr(sys.flags, "safe_path", False):
        return False
    word = sys.orig_argv[-len(sys.argv)]
    return word == _PACKAGE or (word.startswith("-") and word.endswith(f"m{_PACKAGE}"))


class CurrentFolderHidden:
    """A block in which Python's path does not have the current folder that a notebook puts there."""

    def __enter__(self) -> None:
        self._place = sys.path.index("") if "" in sys.path else -1
        if self._place >= 0:
            del sys.path[self._place]

    def __exit__(self, *_: object) -> None:
        if self._place >= 0 and "" not in sys.path:
            sys.path.insert(self._place, "")


def module_command(module: str) -> list[str]:
    """Returns the words that run a module as a program, which imports nothing from the current folder."""
    if sys.version_info >= (3, 11):
        return [sys.executable, "-P", "-m", module]
    code = f"import runpy\nrunpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    return code_command(code)


def isolated_command(code: str) -> list[str]:
    """Returns the words that run a program isolated from the current folder and from Python's variables.

    Its path is that of this process, so that it finds the same modules. The current folder, which a notebook
    has on its path, is the last.
    """
    from pathlib import Path  # not above, because this module runs before the current folder is hidden

    paths = [path for path in sys.path if path] + [str(Path(__file__).resolve().parents[2])]
    if "" in sys.path:
        paths.append("")
    return [sys.executable, "-I", "-c", f"import sys\nsys.path[:] = {paths!a}\n{code}"]


def code_command(code: str) -> list[str]:
    """Returns the words that run a program, which imports nothing from the current folder."""
    if sys.version_info >= (3, 11):
        return [sys.executable, "-P", "-c", code]
    return [sys.executable, "-c", f"import sys\nsys.path.remove('')\n{code}"]
