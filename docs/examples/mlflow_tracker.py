"""Figures of a run to MLflow: ``Global: {plugins: [mlflow_tracker.py], trackers: [{MLflow: {}}]}``, and
``pip install mlflow``."""

from pathlib import Path

import mlflow

import ppxcls


@ppxcls.TRACKERS.register
class MLflow(ppxcls.Tracker):
    """To the server of MLFLOW_TRACKING_URI, or else where MLflow writes by itself.

    A run that goes on is the same run there.
    """

    def __init__(self, folder: Path, experiment: str = "ppxcls") -> None:
        self.note, self.experiment, self.name = folder / "mlflow_run.txt", experiment, str(folder)

    def start(self, progress) -> None:
        mlflow.set_experiment(self.experiment)
        known = self.note.read_text() if progress.step and self.note.exists() else None
        self.note.write_text(
            mlflow.start_run(run_id=known, run_name=None if known else self.name).info.run_id
        )

    def log(self, kind, place, figures) -> None:
        mlflow.log_metrics(
            {f"{kind}/{name}": float(value) for name, value in figures.items()}, step=place["step"]
        )

    def close(self) -> None:
        mlflow.end_run()
