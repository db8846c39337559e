"""A run in Weights & Biases. Its id is the job's, so any machine goes on with the same run.

wandb writes every point to a file in the job's folder first, also where its server is away:
`wandb sync` uploads such a file later. Keys and addresses are wandb's own environment variables.
"""

import time
from pathlib import Path

import wandb

from app.core.specs.states import JobState
from worker.trackers.messages import TrackedPoint, TrackingRequest
from worker.trackers.wandb_log import TransactionLog

_OPEN_SECONDS = 60
_FLUSH_SECONDS = 0.1
_LOOK_SECONDS = 0.05
# Nothing of this machine is sent but what the job's events have.
_SETTINGS = wandb.Settings(
    console="off",
    disable_code=True,
    disable_git=True,
    init_timeout=_OPEN_SECONDS,
    save_code=False,
    x_disable_machine_info=True,
    x_disable_stats=True,
    x_save_requirements=False,
    x_skip_transaction_log=False,
    x_transaction_log_flush_interval=_FLUSH_SECONDS,
)
_STEP = "train/global_step"
_EXIT_CODES = {JobState.SUCCEEDED: 0, JobState.FAILED: 1, JobState.CANCELLED: 255}


class WandbRun:
    """An open run."""

    def __init__(self, request: TrackingRequest) -> None:
        self._run = wandb.init(
            project=request.project,
            entity=request.entity,
            name=request.run_name,
            id=request.job_id,
            resume="allow",
            tags=request.tags,
            config=request.config,
            dir=request.folder,
            settings=_SETTINGS,
        )
        self._run.define_metric("*", step_metric=_STEP, step_sync=True)
        self.run_id: str | None = self._run.id
        self.url: str | None = None if self._run.offline else self._run.url
        self._log = TransactionLog(Path(self._run.settings.sync_file))
        self._unwritten = 0

    def log(self, point: TrackedPoint) -> None:
        """Log the values of a step. As in transformers' callback the step is a value: wandb's own step would
        be held back until the next one."""
        self._run.log({**point.values, _STEP: point.step})
        self._unwritten += 1

    def flush(self) -> None:
        """Wait until wandb's file has every point. wandb has no call for that: the file is read.

        Who waits for this process gives up on a file that never gets them.
        """
        while True:
            for record in self._log.read_new():
                self._unwritten -= record.WhichOneof("record_type") == "history"
            if self._unwritten <= 0:
                return
            time.sleep(_LOOK_SECONDS)

    def finish(self, state: JobState) -> None:
        """Upload what is left; the exit status becomes the run's state."""
        if not state.has_ended:
            self._run.mark_preempting()
        self._run.finish(exit_code=_EXIT_CODES.get(state, 1))


def open_run(request: TrackingRequest) -> WandbRun:
    """Open the job's run."""
    return WandbRun(request)
