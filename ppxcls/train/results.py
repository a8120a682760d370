"""The files of a run beside its checkpoints, declared by the package or the tracker that writes them.

A package declares their names in ``RESULTS`` of its ``__init__.py``. ``RESULTS_OF_BEST`` has the names of
those that describe ``best_model``. A tracker declares the names in ``files``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path

from ppxcls.train.trackers import TRACKERS, Tracker

_PACKAGE = Path(__file__).resolve().parents[1]


def result_files(trackers: Sequence[Tracker], folder: Path) -> set[str]:
    """Names of the files and folders that runs write into their folder, beside checkpoints and log.

    Args:
        trackers: trackers of this run.
        folder: folder of the run.
    """
    names = _declared("RESULTS")
    for component in TRACKERS.components().values():  # an earlier run may have used any of them
        names |= _files_of(component)
    for tracker in trackers:
        names |= _files_of(tracker) | _files_in_attributes(tracker, folder)
    return names


def result_files_of_best() -> set[str]:
    """Names of the files that describe ``best_model``."""
    return _declared("RESULTS_OF_BEST")


def _declared(constant: str) -> set[str]:
    names: set[str] = set()
    for package in pkgutil.iter_modules([str(_PACKAGE)]):
        if package.ispkg:
            names |= set(getattr(importlib.import_module(f"ppxcls.{package.name}"), constant, ()))
    return names


def _files_of(tracker: object) -> set[str]:
    files = getattr(tracker, "files", ())
    return {files} if isinstance(files, str) else set(files)


def _files_in_attributes(tracker: Tracker, folder: Path) -> set[str]:
    """Names in the folder of the run to which paths among a tracker's attributes lead.

    So a tracker that keeps its file in an attribute declares nothing.
    """
    paths = [value for value in vars(tracker).values() if isinstance(value, Path)]
    return {path.relative_to(folder).parts[0] for path in paths if folder in path.parents}
