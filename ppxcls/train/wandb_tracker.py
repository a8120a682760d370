"""A tracker that writes metrics and settings for Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppxcls.train.continued_tracker import ContinuedTracker
from ppxcls.train.trackers import TRACKERS

_MODE_VARIABLE = "WANDB_MODE"
_REPORTING_SWITCH = "WANDB_ERROR_REPORTING"


@TRACKERS.register
class WandB(ContinuedTracker):
    """Writes metrics and settings for Weights & Biases to ``wandb/`` in the run's folder.

    Nothing is sent, unless the variable ``WANDB_MODE`` is ``online``. ``wandb sync`` sends the files later. A
    run that resumes continues the same run there, without double points. If W&B fails, a warning is logged
    and the run continues without it.

    Args:
        folder: folder of the run.
        project: name of W&B's project.

    Raises:
        ValueError: W&B is not installed.
    """

    files = ("wandb",)

    def __init__(self, folder: Path, project: str = "ppxcls") -> None:
        super().__init__(folder, "W&B")
        self._mode = os.environ.get(_MODE_VARIABLE) or "offline"
        if self._mode != "online":
            os.environ.setdefault(_REPORTING_SWITCH, "false")  # W&B sends its own errors to its makers
        try:
            import wandb
        except ImportError:
            raise ValueError("W&B is not installed: pip install 'ppxcls[wandb]'") from None
        self._wandb = wandb
        self._project = project
        self._run: Any = None

    def open_run(self, run_id: str | None, settings: Mapping[str, Any]) -> str:
        """Opens a run. W&B begins new files for each start, and joins them by the id of the run."""
        self._run = self._wandb.init(
            project=self._project,
            mode=self._mode,
            dir=str(self._run_folder),
            id=run_id,
            resume="allow" if run_id else None,
            name=self.run_name,
            config=dict(settings),
            # W&B would read the output of the process, and explain itself in many lines.
            settings=self._wandb.Settings(console="off", silent=True),
        )
        return str(self._run.id)

    def send(self, values: Mapping[str, float], step: int) -> None:
        """Adds a point to each curve. W&B joins the lines of one step, and takes only rising steps."""
        self._run.log(dict(values), step=step)

    def close_run(self) -> None:
        """Writes what is left, and closes the run."""
        self._run.finish()
