"""A run in trackio, in a local folder or in a Space, as trackio's own environment variables say.

trackio finds a run by its name.
"""

import os

import trackio

from app.core.specs.states import JobState
from worker.trackers.messages import TrackedPoint, TrackingRequest


class TrackioRun:
    """An open run."""

    def __init__(self, request: TrackingRequest) -> None:
        self._run = trackio.init(
            project=request.project,
            name=request.run_name,
            config={**request.config, "tags": request.tags},
            resume="allow" if request.has_begun else "never",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self.run_id: str | None = self._run.name
        space = os.environ.get("TRACKIO_SPACE_ID")
        self.url: str | None = f"https://huggingface.co/spaces/{space}" if space else None

    def log(self, point: TrackedPoint) -> None:
        """Log the values of a step."""
        self._run.log(dict(point.values), step=point.step)

    def flush(self) -> None:
        """Write what was logged, as `finish` does: here, or for a Space into the file that it is sent from.

        trackio has no public call for that; its thread holds the lock while it sends.
        """
        with self._run._client_lock:
            self._run._flush_queues_inline()

    def finish(self, state: JobState) -> None:
        """Write what is left; trackio has no state of a run."""
        self._run.finish()


def open_run(request: TrackingRequest) -> TrackioRun:
    """Open the job's run."""
    return TrackioRun(request)
