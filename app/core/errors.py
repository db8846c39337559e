"""Every error that a person may see. Core and worker raise them; only `api/errors.py` turns them into HTTP.

TunesmithError
├── InvalidRequest            the payload is wrong; `param` names the field
│   ├── PromptTooLong         it does not fit the base model's context
│   ├── DatasetInvalid        lines that can't be used, each with its number
│   ├── ModelNotAllowed
│   ├── UnknownModel
│   ├── AdapterInvalid        an upload that is no LoRA adapter, or tries a trick
│   ├── AdapterIncompatible   the adapter to continue from is of another kind; the message says how
│   ├── TargetRefused         webhooks do not go there
│   └── IdempotencyKeyReused  the same key with another body
├── Unauthorized              no key, or a wrong one
├── Forbidden                 refused because of where it comes from
│   └── OriginRefused, HostRefused
├── NotFound
│   └── JobNotFound, DatasetNotFound, AdapterNotFound, ExportNotFound, WebhookNotFound, DeliveryNotFound
├── Conflict                  the thing is in a state that does not allow this
│   └── JobAlreadyEnded, JobNotRetryable, JobNotPausable, JobNotPaused, DatasetInUse, DatasetNotReady,
│       AdapterInUse, AdapterNotReady, AdapterNameTaken, NotEmpty, WebhookFixed, ExportNotReady,
│       ExportAlreadyEnded, ExportNotRetryable, ExportNotEnded
├── TooLarge
├── QueueFull
├── Unavailable               nothing can answer now; `retry_after_seconds` says when to come back
│   └── NoEngine, GpuTaken, EngineFailed
├── BackupUnusable            not a whole backup
├── LeaseLost                 another worker owns the job now: stop and drop the result
├── FetchFailure              why a Hub dataset could not be fetched; recorded with the dataset
│   └── HubDatasetMissing, HubDatasetGated, UnknownConfig, UnknownSplit, HubDatasetUnfit,
│       HubDatasetUnreadable, NoRoomForDataset
├── ExportFailure             why an export failed; recorded with the export
│   └── ExportMismatch, ExportUnsupported, GgufFamilyUnknown, TokenizerUnfit, NoRoomForExport,
│       NoMemoryForProof, HubRefused, HubRepositoryExists
└── JobFailure                why a job failed; recorded with the job
    └── ModelGated, ModelMissing, HubUnreachable, BaseModelChanged, ModelUnreadable, NothingToLearn,
        OutOfMemory, DiskFull, LossNotFinite, LossExploded, AdapterInert, TemplateMismatch, BadTarget,
        AdapterUnfit
"""

from typing import ClassVar


class TunesmithError(Exception):
    """Something went wrong."""

    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str = "", *, param: str | None = None, hint: str | None = None) -> None:
        self.message = message or (self.__doc__ or "").strip()
        self.param = param
        self.hint = hint
        super().__init__(self.message)


class InvalidRequest(TunesmithError):
    """The request is malformed."""

    type = "invalid_request_error"
    code = "invalid_request"


class PromptTooLong(InvalidRequest):
    """The prompt does not fit the base model's context."""

    code = "context_length_exceeded"


class DatasetInvalid(InvalidRequest):
    """The dataset can't be used."""

    code = "dataset_invalid"

    def __init__(
        self, message: str, *, problems: list[dict[str, object]] | None = None, hint: str | None = None
    ):
        super().__init__(message, param="file", hint=hint)
        self.problems = problems or []


class ModelNotAllowed(InvalidRequest):
    """This base model is not on the allow-list."""

    code = "model_not_allowed"


class UnknownModel(InvalidRequest):
    """There is no such base model."""

    code = "model_unknown"


class AdapterInvalid(InvalidRequest):
    """The upload is no LoRA adapter that can be used."""

    code = "adapter_invalid"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, param="file", hint=hint)


class AdapterIncompatible(InvalidRequest):
    """The job can't continue from this adapter."""

    code = "adapter_incompatible"


class TargetRefused(InvalidRequest):
    """Webhooks do not go there."""

    code = "webhook_target_refused"

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message, param="url", hint=hint)


class IdempotencyKeyReused(InvalidRequest):
    """This Idempotency-Key was used with another body."""

    code = "idempotency_key_reused"


class Unauthorized(TunesmithError):
    """A key is needed: send `Authorization: Bearer <key>`."""

    type = "authentication_error"
    code = "unauthorized"


class Forbidden(TunesmithError):
    """This may not be asked from there."""

    type = "permission_error"
    code = "forbidden"


class OriginRefused(Forbidden):
    """A page of another origin may not change anything here."""

    code = "origin_refused"


class HostRefused(Forbidden):
    """An API without a key answers only under a name of its own machine."""

    code = "host_refused"


class NotFound(TunesmithError):
    """There is no such thing."""

    type = "not_found_error"
    code = "not_found"


class JobNotFound(NotFound):
    """There is no such job."""

    code = "job_not_found"


class DatasetNotFound(NotFound):
    """There is no such dataset."""

    code = "dataset_not_found"


class AdapterNotFound(NotFound):
    """There is no such adapter."""

    code = "adapter_not_found"


class ExportNotFound(NotFound):
    """There is no such export."""

    code = "export_not_found"


class WebhookNotFound(NotFound):
    """There is no such webhook."""

    code = "webhook_not_found"


class DeliveryNotFound(NotFound):
    """There is no such delivery."""

    code = "delivery_not_found"


class Conflict(TunesmithError):
    """The present state does not allow this."""

    type = "conflict_error"
    code = "conflict"


class JobAlreadyEnded(Conflict):
    """The job has ended."""

    code = "job_already_ended"


class JobNotRetryable(Conflict):
    """Only a failed or cancelled job can be retried."""

    code = "job_not_retryable"


class JobNotPausable(Conflict):
    """Only a waiting or running job can be paused."""

    code = "job_not_pausable"


class JobNotPaused(Conflict):
    """Only a paused job can be resumed."""

    code = "job_not_paused"


class DatasetInUse(Conflict):
    """A job that has not ended needs this dataset."""

    code = "dataset_in_use"


class DatasetNotReady(Conflict):
    """The rows of this dataset are not there."""

    code = "dataset_not_ready"


class AdapterInUse(Conflict):
    """A job that has not ended starts from this adapter."""

    code = "adapter_in_use"


class AdapterNotReady(Conflict):
    """The adapter is still being imported, or failed to be."""

    code = "adapter_not_ready"


class AdapterNameTaken(Conflict):
    """Another adapter has this name."""

    code = "adapter_name_taken"


class ExportNotReady(Conflict):
    """The export has no files to download."""

    code = "export_not_ready"


class ExportAlreadyEnded(Conflict):
    """The export has ended."""

    code = "export_already_ended"


class ExportNotRetryable(Conflict):
    """Only a failed or cancelled export can be retried."""

    code = "export_not_retryable"


class ExportNotEnded(Conflict):
    """The export has not ended."""

    code = "export_not_ended"


class NotEmpty(Conflict):
    """There are rows here already, and a restore would mix with them."""

    code = "not_empty"


class WebhookFixed(Conflict):
    """The settings have it so."""

    code = "webhook_fixed"


class TooLarge(TunesmithError):
    """The request is too large."""

    type = "invalid_request_error"
    code = "too_large"


class QueueFull(TunesmithError):
    """Too many are waiting."""

    type = "rate_limit_error"
    code = "queue_full"


class Unavailable(TunesmithError):
    """Nothing can answer now."""

    type = "unavailable_error"
    code = "unavailable"

    def __init__(self, message: str = "", *, hint: str | None = None, retry_after_seconds: int = 5) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_seconds = retry_after_seconds


class NoEngine(Unavailable):
    """No worker that serves is running."""

    code = "no_engine"


class GpuTaken(Unavailable):
    """A training job has the GPU; serving is paused until it ends."""

    code = "gpu_taken"


class EngineFailed(Unavailable):
    """The engine stopped while it was answering."""

    code = "engine_failed"


class BackupUnusable(TunesmithError):
    """This is not a whole backup."""

    code = "backup_unusable"


class LeaseLost(TunesmithError):
    """Another worker owns this job now."""

    code = "lease_lost"


class FetchFailure(TunesmithError):
    """The dataset could not be fetched."""

    type = "fetch_error"
    code = "fetch_failed"


class HubDatasetMissing(FetchFailure):
    """There is no such dataset on the Hub."""

    code = "hub_dataset_missing"


class HubDatasetGated(FetchFailure):
    """The dataset is gated."""

    code = "hub_dataset_gated"


class UnknownConfig(FetchFailure):
    """The dataset has no such configuration."""

    code = "config_unknown"


class UnknownSplit(FetchFailure):
    """The dataset has no such split."""

    code = "split_unknown"


class HubDatasetUnfit(FetchFailure):
    """The dataset is of a kind that can't be trained on."""

    code = "hub_dataset_unfit"


class HubDatasetUnreadable(FetchFailure):
    """The dataset's files can't be read."""

    code = "hub_dataset_unreadable"


class NoRoomForDataset(FetchFailure):
    """The disk is full."""

    code = "disk_full"

    def __init__(self) -> None:
        super().__init__(hint="Free some space, then POST /datasets again.")


class ExportFailure(TunesmithError):
    """The export failed."""

    type = "export_error"
    code = "export_failed"


class ExportMismatch(ExportFailure):
    """The files do not answer as the live adapter does."""

    code = "export_mismatch"


class ExportUnsupported(ExportFailure):
    """The format can't hold this adapter."""

    code = "export_unsupported"


class GgufFamilyUnknown(ExportFailure):
    """This family of models can't be written as GGUF."""

    code = "gguf_family_unknown"


class TokenizerUnfit(ExportFailure):
    """The tokenizer and the model do not fit each other, or the format can't hold the tokenizer."""

    code = "tokenizer_unfit"


class NoRoomForExport(ExportFailure):
    """The disk has no room for the export."""

    code = "disk_full"


class NoMemoryForProof(ExportFailure):
    """There is not enough memory to load the model and compare."""

    code = "out_of_memory"


class HubRefused(ExportFailure):
    """The Hub does not take the repository."""

    code = "hub_refused"


class HubRepositoryExists(ExportFailure):
    """The repository exists already."""

    code = "hub_repository_exists"


class JobFailure(TunesmithError):
    """The job failed."""

    type = "job_error"
    code = "job_failed"


class ModelGated(JobFailure):
    """The base model is gated."""

    code = "model_gated"


class ModelMissing(JobFailure):
    """The base model was not found."""

    code = "model_missing"


class HubUnreachable(JobFailure):
    """The model hub can't be reached."""

    code = "hub_unreachable"


class BaseModelChanged(JobFailure):
    """The base model is not the one that the adapter was trained on."""

    code = "base_model_changed"


class ModelUnreadable(JobFailure):
    """The base model's files can't be loaded."""

    code = "model_unreadable"


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
