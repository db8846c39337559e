"""Errors of jobs: states that do not allow a call, and the reasons why a job failed."""

from app.core.errors import Conflict, NotFound, TunesmithError


class JobNotFound(NotFound):
    """There is no such job."""

    code = "job_not_found"


class JobAlreadyEnded(Conflict):
    """The job has ended."""

    code = "job_already_ended"


class JobNotEnded(Conflict):
    """The job has not ended."""

    code = "job_not_ended"


class JobHasAdapters(Conflict):
    """Adapters that the job made exist."""

    code = "job_has_adapters"


class JobNotRetryable(Conflict):
    """Only a failed or cancelled job can be retried."""

    code = "job_not_retryable"


class JobNotPausable(Conflict):
    """Only a waiting or running job can be paused."""

    code = "job_not_pausable"


class JobNotPaused(Conflict):
    """Only a paused job can be resumed."""

    code = "job_not_paused"


class JobFailure(TunesmithError):
    """The job failed."""

    type = "job_error"
    code = "job_failed"


class NothingToLearn(JobFailure):
    """No row has a token to learn from."""

    code = "nothing_to_learn"


class BadTarget(JobFailure):
    """The LoRA target modules match nothing in the base model."""

    code = "bad_target_modules"


class AdapterUnfit(JobFailure):
    """The adapter to continue from does not fit the base model or the job's LoRA settings."""

    code = "adapter_incompatible"


class OutOfMemory(JobFailure):
    """The device ran out of memory."""

    code = "out_of_memory"


class TooFewDevices(JobFailure):
    """The job asks for more devices than the worker has."""

    code = "too_few_devices"


class ClusterUnfit(JobFailure):
    """The Ray cluster can't run the job."""

    code = "cluster_unfit"


class DiskFull(JobFailure):
    """The disk is full; the last complete checkpoint is kept."""

    code = "disk_full"

    def __init__(self) -> None:
        super().__init__(
            hint="Free some space, then POST /jobs/{id}/retry goes on from the last complete checkpoint."
        )


class LossNotFinite(JobFailure):
    """The loss became NaN or infinite."""

    code = "loss_not_finite"


class LossExploded(JobFailure):
    """The loss rose far above that of a model that guesses."""

    code = "loss_exploded"


class AdapterInert(JobFailure):
    """The finished adapter does not change what the model says."""

    code = "adapter_inert"


class TemplateMismatch(JobFailure):
    """Serving would render prompts unlike those the adapter was trained on."""

    code = "template_mismatch"


class TemplateExceedsLimits(JobFailure):
    """The chat template takes too long, or too much memory, or writes too much text for a conversation."""

    code = "template_exceeds_limits"
