"""A run in a tracker, as the tracking process writes it, and which trackers this machine has packages for."""

import importlib
import importlib.util
from functools import lru_cache
from typing import Protocol

from app.core.specs.states import JobState
from app.core.specs.tracking import Tracker
from worker.trackers.messages import TrackedPoint, TrackingRequest

# The package of each tracker; the extra of the same name as the tracker installs it.
PACKAGES = {Tracker.WANDB: "wandb", Tracker.MLFLOW: "mlflow", Tracker.TRACKIO: "trackio"}


class TrackerRun(Protocol):
    """An open run. Its methods raise whatever the tracker's package raises."""

    run_id: str | None
    url: str | None

    def log(self, point: TrackedPoint) -> None:
        """Log the values of a step; steps do not decrease."""

    def flush(self) -> None:
        """Wait until what was logged outlives this process."""

    def finish(self, state: JobState) -> None:
        """Write all that is left, and how the job ended; a job that waits again will go on later."""


@lru_cache
def find_installed() -> list[Tracker]:
    """The trackers that this machine can report to."""
    found = [tracker for tracker, package in PACKAGES.items() if importlib.util.find_spec(package)]
    return [Tracker.TENSORBOARD, *found]


def open_run(request: TrackingRequest) -> TrackerRun:
    """Open the job's run; one that was opened before goes on."""
    module = importlib.import_module(f"worker.trackers.{request.tracker}_run")
    run: TrackerRun = module.open_run(request)
    return run
