"""Sends a run's metrics to MLflow.

Install it with ``pip install mlflow``. The first training needs ``--trust``. In the YAML:

    Global:
      plugins: [mlflow_tracker.py]
      trackers: [{MLflow: {}}]
"""

from pathlib import Path

import mlflow

import ppxcls


@ppxcls.TRACKERS.register
class MLflow(ppxcls.Tracker):
    """Sends metrics to the server of MLFLOW_TRACKING_URI, or to MLflow's default folder.

    A resumed run continues the same run there.
    """

    files = ("mlflow_run.txt",)  # a new run moves it aside with the earlier run

    def __init__(self, folder: Path, experiment: str = "ppxcls") -> None:
        self.id_file = folder / "mlflow_run.txt"
        self.experiment = experiment
        self.name = str(folder)

    def start(self, progress) -> None:
        mlflow.set_experiment(self.experiment)
        run_id = self.id_file.read_text() if progress.step and self.id_file.exists() else None
        run = mlflow.start_run(run_id=run_id, run_name=None if run_id else self.name)
        self.id_file.write_text(run.info.run_id)

    def log(self, kind, place, figures) -> None:
        metrics = {f"{kind}/{name}": float(value) for name, value in figures.items()}
        mlflow.log_metrics(metrics, step=place["step"])

    def close(self) -> None:
        mlflow.end_run()
