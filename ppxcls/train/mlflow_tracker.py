"""A tracker that writes metrics and settings for MLflow."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppxcls.system.logs import logger
from ppxcls.train.continued_tracker import ContinuedTracker
from ppxcls.train.trackers import TRACKERS

_ADDRESS_VARIABLE = "MLFLOW_TRACKING_URI"
_MISSING_ERROR = "RESOURCE_DOES_NOT_EXIST"  # MLflow's error code
_TELEMETRY_SWITCH = "MLFLOW_DISABLE_TELEMETRY"
_MAX_VALUE_LENGTH = 500  # characters of a setting; MLflow up to 2.7 takes no more
_SETTINGS_AT_ONCE = 100  # MLflow's limit for one call


@TRACKERS.register
class MLflow(ContinuedTracker):
    """Writes metrics and settings for MLflow, by default to ``mlflow/mlflow.db`` in the run's folder.

    If the variable ``MLFLOW_TRACKING_URI`` is set, they are sent to the server or written to the data base
    that it names. A run that resumes continues the same run there, without double points, or gets a new run
    if there is none. If MLflow fails, a warning is logged and the run continues without it.

    Args:
        folder: folder of the run.
        experiment: name of MLflow's experiment.

    Raises:
        ValueError: MLflow is not installed.
    """

    files = ("mlflow",)

    def __init__(self, folder: Path, experiment: str = "ppxcls") -> None:
        super().__init__(folder, "MLflow")
        os.environ.setdefault(_TELEMETRY_SWITCH, "true")  # otherwise MLflow reports its use to its makers
        try:
            from mlflow import MlflowClient
            from mlflow.entities import Metric, Param
            from mlflow.exceptions import MlflowException
        except ImportError:
            raise ValueError("MLflow is not installed: pip install 'ppxcls[mlflow]'") from None
        self._make_client = MlflowClient
        self._metric = Metric
        self._param = Param
        self._error = MlflowException
        self._experiment = experiment
        self._client: Any = None
        self._mlflow_id = ""

    def open_run(self, run_id: str | None, settings: Mapping[str, Any]) -> str:
        """Opens an earlier run, or creates one with the settings as its parameters."""
        address = os.environ.get(_ADDRESS_VARIABLE) or f"sqlite:///{self.home.resolve()}/mlflow.db"
        self._client = self._make_client(address)
        if run_id is not None and self._has_opened(run_id):
            self._mlflow_id = run_id
            return run_id
        experiment = self._client.get_experiment_by_name(self._experiment)
        number = experiment.experiment_id if experiment else self._client.create_experiment(self._experiment)
        run = self._client.create_run(number, run_name=self.run_name)
        self._mlflow_id = str(run.info.run_id)
        params = [
            self._param(key, str(value)[:_MAX_VALUE_LENGTH])
            for key, value in settings.items()
            if str(value) != ""
        ]
        for start in range(0, len(params), _SETTINGS_AT_ONCE):
            self._client.log_batch(self._mlflow_id, params=params[start : start + _SETTINGS_AT_ONCE])
        return self._mlflow_id

    def _has_opened(self, run_id: str) -> bool:
        """Marks an earlier run as running. Returns False if there is no such run at this address."""
        try:
            self._client.update_run(run_id, status="RUNNING")
        except self._error as error:
            if getattr(error, "error_code", None) != _MISSING_ERROR:
                raise
            logger.warning(f"MLflow has no run {run_id} at this address: it gets a new run")
            return False
        return True

    def send(self, values: Mapping[str, float], step: int) -> None:
        """Adds a point to each metric."""
        milliseconds = int(1000 * time.time())
        metrics = [self._metric(name, value, milliseconds, step) for name, value in values.items()]
        self._client.log_batch(self._mlflow_id, metrics=metrics)

    def close_run(self) -> None:
        """Marks the run as finished. A run that resumes marks it as running again."""
        self._client.set_terminated(self._mlflow_id)
