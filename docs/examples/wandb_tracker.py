"""Sends a run's metrics to Weights & Biases.

Install it with ``pip install wandb``. The first training needs ``--trust``. In the YAML:

    Global:
      plugins: [wandb_tracker.py]
      trackers: [{WandB: {}}]
"""

from pathlib import Path

import wandb

import ppxcls


@ppxcls.TRACKERS.register
class WandB(ppxcls.Tracker):
    """With ``mode: offline``, the metrics are written to the run's folder, for ``wandb sync``.

    A resumed run continues the same run there.
    """

    files = ("wandb", "wandb_run.txt")  # a new run moves them aside with the earlier run

    def __init__(self, folder: Path, project: str = "ppxcls", mode: str = "offline") -> None:
        self.folder = folder
        self.project = project
        self.mode = mode
        self.id_file = folder / "wandb_run.txt"

    def start(self, progress) -> None:
        run_id = self.id_file.read_text() if progress.step and self.id_file.exists() else None
        self.run = wandb.init(
            project=self.project,
            mode=self.mode,
            dir=self.folder,
            id=run_id,
            name=self.folder.name,
            resume="allow" if run_id else None,
        )
        self.id_file.write_text(self.run.id)

    def log(self, kind, place, figures) -> None:
        self.run.log({f"{kind}/{name}": value for name, value in figures.items()} | {"step": place["step"]})

    def close(self) -> None:
        self.run.finish()
