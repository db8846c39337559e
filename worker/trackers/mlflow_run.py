"""A run in MLflow, found again by its id or by the tag that has the job's id.

Uses `mlflow-skinny`. The server and its keys are MLflow's own environment variables.
"""

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from app.core.specs.states import JobState
from worker.trackers.messages import TrackedPoint, TrackingRequest

JOB_TAG = "tunesmith.job"
_MAX_PARAM = 500
_MAX_PARAMS = 100  # of one request, as MLflow's REST API allows
_STATUSES = {JobState.SUCCEEDED: "FINISHED", JobState.FAILED: "FAILED", JobState.CANCELLED: "KILLED"}


class MlflowRun:
    """An open run."""

    def __init__(self, request: TrackingRequest) -> None:
        self._client = MlflowClient()
        experiment_id = self._find_experiment(request.project)
        self.run_id: str | None = request.run_id or self._find(experiment_id, request.job_id)
        if self.run_id is None:
            self.run_id = self._create(experiment_id, request)
        else:
            self._client.update_run(self.run_id, status="RUNNING")
        self._id: str = self.run_id
        self.url: str | None = _make_url(mlflow.get_tracking_uri(), experiment_id, self._id)

    def log(self, point: TrackedPoint) -> None:
        """Log the values of a step."""
        at = int(point.at.timestamp() * 1000)
        metrics = [Metric(name, value, at, point.step) for name, value in point.values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def flush(self) -> None:
        """Nothing is left to write: each point is a request of its own."""

    def finish(self, state: JobState) -> None:
        """Record how the job ended; a job that waits again is `SCHEDULED`."""
        if state.has_ended:
            self._client.set_terminated(self._id, _STATUSES[state])
        else:
            self._client.update_run(self._id, status="SCHEDULED")

    def _find_experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException:
                found = self._client.get_experiment_by_name(name)  # another job has just made it
                if found is None:
                    raise
        return str(found.experiment_id)

    def _find(self, experiment_id: str, job_id: str) -> str | None:
        found = self._client.search_runs([experiment_id], f"tags.`{JOB_TAG}` = '{job_id}'", max_results=1)
        return found[0].info.run_id if found else None

    def _create(self, experiment_id: str, request: TrackingRequest) -> str:
        tags = {JOB_TAG: request.job_id} | dict.fromkeys(request.tags, "true")
        run_id: str = self._client.create_run(experiment_id, run_name=request.run_name, tags=tags).info.run_id
        params = [Param(name, value[:_MAX_PARAM]) for name, value in flatten(request.config)]
        for start in range(0, len(params), _MAX_PARAMS):
            self._client.log_batch(run_id, params=params[start : start + _MAX_PARAMS])
        return run_id


def open_run(request: TrackingRequest) -> MlflowRun:
    """Open the job's run."""
    return MlflowRun(request)


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The settings that are not null as names with dots and texts."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", str(value)


def _make_url(tracking_uri: str, experiment_id: str, run_id: str) -> str | None:
    """The run's page, without the user name and the password of the server's address."""
    parts = urlsplit(tracking_uri)
    if parts.scheme not in ("http", "https"):
        return None
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"
