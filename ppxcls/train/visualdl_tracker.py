"""A tracker that writes curves for VisualDL."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ppxcls.checkpoints.progress import Progress
from ppxcls.system.appended_files import make_own_folder
from ppxcls.system.logs import logger
from ppxcls.train.trackers import NAMES_WITHOUT_CURVE, TRACKERS, Tracker


@TRACKERS.register
class VisualDL(Tracker):
    """Writes curves for VisualDL to ``vdl/`` in the run's folder.

    ``Global.use_visualdl`` adds this tracker too. If the curves can't be written, a warning is logged and the
    run continues without them.

    Args:
        folder: folder of the run.

    Raises:
        ValueError: VisualDL is not installed.
    """

    files = ("vdl",)

    def __init__(self, folder: Path) -> None:
        try:
            from visualdl import LogWriter
        except ImportError:
            raise ValueError("VisualDL is not installed: pip install 'ppxcls[visualdl]'") from None
        self._folder = folder / self.files[0]
        self._make_writer: Callable[[], Any] = lambda: LogWriter(logdir=str(self._folder))
        self._writer: Any = None

    def start(self, progress: Progress) -> None:  # noqa: ARG002  a new file of curves is begun anyway
        """Opens the file. The files of an earlier run have been moved aside before."""
        make_own_folder(self._folder)
        self._writer = self._make_writer()

    def log(self, kind: str, place: dict[str, int], figures: dict[str, Any]) -> None:
        """Adds a point to each curve."""
        for name in sorted(figures.keys() - NAMES_WITHOUT_CURVE):
            self._add(f"{kind}_{name}", figures[name], place["step"])

    def _add(self, name: str, value: float, step: int) -> None:
        if self._writer is None:
            return
        try:
            if not self._is_alive():
                raise OSError("the disk may be full")
            self._writer.add_scalar(name, value, step)
        except OSError as error:
            logger.warning(f"the curves can't be written, the run continues without them: {error}")
            self._writer = None

    def close(self) -> None:
        """Writes the remaining points and closes the file."""
        if self._writer is not None and self._is_alive():
            with contextlib.suppress(OSError):
                self._writer.close()

    def _is_alive(self) -> bool:
        """True if VisualDL's thread runs. A full disk ends it, and adding points would then wait for ever."""
        try:
            return bool(self._writer._get_file_writer()._async_writer._worker.is_alive())
        except AttributeError:  # these attributes are private and may change
            return True
