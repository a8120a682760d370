"""Figures of a run to W&B: ``Global: {plugins: [wandb_tracker.py], trackers: [{WandB: {}}]}``, and
``pip install wandb``."""

from pathlib import Path

import wandb

import ppxcls


@ppxcls.TRACKERS.register
class WandB(ppxcls.Tracker):
    """``mode: offline`` writes to the run's folder, for ``wandb sync``.

    A run that goes on is the same run there.
    """

    def __init__(self, folder: Path, project: str = "ppxcls", mode: str = "offline") -> None:
        self.folder, self.project, self.mode, self.note = folder, project, mode, folder / "wandb_run.txt"

    def start(self, progress) -> None:
        known = self.note.read_text() if progress.step and self.note.exists() else None
        settings = {
            "project": self.project,
            "mode": self.mode,
            "dir": self.folder,
            "id": known,
            "name": self.folder.name,
        }
        self.run = wandb.init(**settings, resume="allow" if known else None)
        self.note.write_text(self.run.id)

    def log(self, kind, place, figures) -> None:
        self.run.log({f"{kind}/{name}": value for name, value in figures.items()} | {"step": place["step"]})

    def close(self) -> None:
        self.run.finish()
