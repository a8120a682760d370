"""A tracker that writes metrics and settings for SwanLab."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppxcls.train.continued_tracker import ContinuedTracker
from ppxcls.train.trackers import TRACKERS

_MODE_VARIABLE = "SWANLAB_MODE"


@TRACKERS.register
class SwanLab(ContinuedTracker):
    """Writes metrics and settings for SwanLab to ``swanlab/`` in the run's folder.

    Nothing is sent, unless the variable ``SWANLAB_MODE`` is ``online``. ``swanlab sync`` sends the files
    later. A run that resumes continues the same run there, without double points. If SwanLab fails, a warning
    is logged and the run continues without it.

    Args:
        folder: folder of the run.
        project: name of SwanLab's project.

    Raises:
        ValueError: SwanLab is not installed.
    """

    files = ("swanlab",)

    def __init__(self, folder: Path, project: str = "ppxcls") -> None:
        super().__init__(folder, "SwanLab")
        self._mode = os.environ.get(_MODE_VARIABLE) or "offline"
        try:
            import swanlab
        except ImportError:
            raise ValueError("SwanLab is not installed: pip install 'ppxcls[swanlab]'") from None
        self._swanlab = swanlab
        self._project = project
        self._run: Any = None

    def open_run(self, run_id: str | None, settings: Mapping[str, Any]) -> str:
        """Opens a run. SwanLab begins new files for each start, and joins them by the id of the run."""
        continuing = {"id": run_id, "resume": "allow"} if run_id else {}
        self._run = self._swanlab.init(
            project=self._project,
            mode=self._mode,
            log_dir=str(self.home),
            name=self.run_name,
            config=dict(settings),
            **continuing,
        )
        return str(self._run.id)

    def send(self, values: Mapping[str, float], step: int) -> None:
        """Adds a point to each curve."""
        self._run.log(dict(values), step=step)

    def close_run(self) -> None:
        """Writes what is left, and closes the run."""
        self._run.finish()
