"""States of jobs, datasets, adapters, exports and other work, and which job state may follow."""

from enum import StrEnum

# The state of work of any kind that waits for a worker; final states, and the others.
QUEUED = "queued"
ENDED = frozenset({"succeeded", "failed", "cancelled"})
UNFINISHED = frozenset({"queued", "running", "paused"})


class WorkState(StrEnum):
    """The states of work of one kind."""

    @property
    def has_ended(self) -> bool:
        """Whether the work is in a final state; only a request of a person can change it."""
        return self.value in ENDED


class JobState(WorkState):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class DatasetState(StrEnum):
    """Where a dataset stands. An upload is ready; one through /v1/files may have failed."""

    FETCHING = "fetching"
    READY = "ready"
    FAILED = "failed"


class AdapterState(StrEnum):
    """Where an adapter stands; one that a job made is never anything but ready."""

    READY = "ready"
    IMPORTING = "importing"
    FAILED = "failed"


class ExportState(WorkState):
    """Where an export stands."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class DownloadState(WorkState):
    """Where the download of a base model stands."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ExportPhase(StrEnum):
    """What a running export is doing."""

    PREPARING = "preparing"
    MERGING = "merging"
    MEASURING = "measuring"
    CONVERTING = "converting"
    VERIFYING = "proving"
    STORING = "storing"
    PUSHING = "pushing"


class EvaluationState(WorkState):
    """Where an evaluation stands."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class EvaluationPhase(StrEnum):
    """What a running evaluation is doing."""

    PREPARING = "preparing"
    GENERATING = "generating"
    SUMMARIZING = "summarizing"


class Phase(StrEnum):
    """What a running job is doing."""

    PREPARING = "preparing"
    LOADING = "loading"
    TRAINING = "training"
    EVALUATING = "evaluating"
    SAVING = "saving"
    VERIFYING = "verifying"


class ResponseStatus(StrEnum):
    """Where a response of /v1/responses stands; the words are OpenAI's."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will be generated."""
        return self not in UNFINISHED_RESPONSE


UNFINISHED_RESPONSE = frozenset({ResponseStatus.QUEUED, ResponseStatus.IN_PROGRESS})

# running → queued: the lease expired, or the worker released the job because it stops.
# paused → queued: a person resumed it.
# queued → failed: its dataset can't be trained on.
# failed/cancelled → queued: a person asked for a retry.
TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.PAUSED, JobState.CANCELLED, JobState.FAILED}),
    JobState.RUNNING: frozenset(
        {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.QUEUED, JobState.PAUSED}
    ),
    JobState.PAUSED: frozenset({JobState.QUEUED, JobState.CANCELLED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset({JobState.QUEUED}),
    JobState.CANCELLED: frozenset({JobState.QUEUED}),
}


class StopRequest(StrEnum):
    """What a person requested of a running job; a cancel has precedence over a pause."""

    CANCEL = "cancel"
    PAUSE = "pause"


class ExitReason(StrEnum):
    """How one attempt at a job ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PAUSED = "paused"
    HANDED_BACK = "handed_back"  # the worker was asked to stop
    WORKER_LOST = "worker_lost"  # the lease expired
    PROCESS_DIED = "process_died"  # the training process was killed or crashed
