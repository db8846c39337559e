"""Every error that a person may see. Only app/api/http/errors.py turns them into HTTP.

The docstring of an error is its default message. Errors without a module below are defined here; the others
are in the module of this package whose name stands before the colon.

TunesmithError
├── InvalidRequest      the payload is wrong; `param` names the field
│   ├── adapters:       AdapterInvalid, AdapterIncompatible
│   ├── aliases:        AliasInvalid, AliasAmbiguous
│   ├── base_models:    ModelNotAllowed, UnknownModel
│   ├── bodies:         EncodingUnsupported, BodyNotGzip
│   ├── connections:    RequestUnreadable, HeadersTooLarge, RequestTooSlow
│   ├── datasets:       DatasetInvalid (its `problems` name the lines), FieldsUnused,
│   │                   DatasetUnfit
│   ├── engine:         PromptTooLong
│   ├── responses:      PreviousResponseNotFound, ResponseNotInBackground
│   ├── storage:        IdempotencyKeyReused
│   └── webhooks:       TargetRefused
├── NotFound            there is nothing under this id or name
│   ├── adapters:       AdapterNotFound
│   ├── aliases:        AliasNotFound
│   ├── base_models:    ModelNotDownloaded, DownloadNotFound
│   ├── datasets:       DatasetNotFound
│   ├── evaluations:    EvaluationNotFound, EvalNotFound
│   ├── exports:        ExportNotFound
│   ├── jobs:           JobNotFound
│   ├── responses:      ResponseNotFound
│   └── webhooks:       WebhookNotFound, DeliveryNotFound
├── Conflict            the present state of the thing does not allow the call
│   ├── adapters:       AdapterInUse, AdapterNotReady, AdapterNameTaken
│   ├── aliases:        AliasNameTaken, AliasTargetGone
│   ├── access:         FirstKeyNotAdmin
│   ├── base_models:    ModelInUse, ModelNotOurs, DownloadEnded
│   ├── datasets:       DatasetInUse, DatasetNotReady
│   ├── evaluations:    EvaluationAlreadyEnded, EvaluationNotRetryable, EvaluationNotEnded
│   ├── exports:        ExportNotReady, ExportAlreadyEnded, ExportNotRetryable, ExportNotEnded
│   ├── jobs:           JobAlreadyEnded, JobNotEnded, JobHasAdapters, JobNotRetryable, JobNotPausable,
│   │                   JobNotPaused
│   ├── storage:        NotEmpty
│   ├── webhooks:       WebhookFixed
│   └── work:           NotWaiting
├── PreconditionFailed  it was changed since the version that the request expects
│   └── aliases:        AliasChanged
├── TooLarge            the request body is over the limit
├── QueueFull           too many of this kind are waiting
├── Unavailable         nothing can answer now; `retry_after_seconds` says when to try again
│   ├── engine:         NoEngine, GpuTaken, EngineFailed, VllmUnreachable, AdaptersNotShared,
│   │                   AdaptersNotUpdatable
│   └── storage:        DatabaseUnavailable, StoreUnreachable
├── connections:        TooManyConnections
├── access:             Unauthorized (no valid key)
├── access:             Forbidden (refused because of the Origin or Host header, or of the key's scopes)
│   └── access:         OriginRefused, HostRefused, ScopeMissing
├── access:             RateLimited (a limit of the key is reached; `retry_after_seconds` says for how long)
│   └── access:         TokensSpent, KeyQueueFull
├── storage:            StorageFull, DatabaseTooNew, BackupUnusable
├── work:               LeaseLost (another worker owns the work: stop and drop the result)
├── datasets:           FetchFailure (why a Hub dataset could not be fetched; recorded with the dataset)
│   └── datasets:       HubDatasetMissing, HubDatasetGated, UnknownConfig, UnknownSplit, HubDatasetUnfit,
│                       HubDatasetUnreadable, DatasetDiskFull
├── evaluations:        EvaluationFailure (why an evaluation failed; recorded with the evaluation)
│   └── evaluations:    EvaluationDiskFull, EvaluationDatasetUnfit
├── exports:            ExportFailure (why an export failed; recorded with the export)
│   └── exports:        ExportMismatch, ExportUnsupported, GgufFamilyUnknown, QuantizerMissing,
│                       TokenizerUnfit, ExportDiskFull, NoMemoryForVerification, HubRefused,
│                       HubRepositoryExists
└── jobs:               JobFailure (why a job failed; recorded with the job)
    ├── base_models:    ModelGated, ModelMissing, ModelDiskFull, HubUnreachable, BaseModelChanged,
    │                   ModelUnreadable
    └── jobs:           NothingToLearn, BadTarget, AdapterUnfit, TooFewDevices, ClusterUnfit,
                        OutOfMemory, DiskFull, LossNotFinite, LossExploded, AdapterInert,
                        TemplateMismatch, TemplateExceedsLimits
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


class NotFound(TunesmithError):
    """There is no such thing."""

    type = "not_found_error"
    code = "not_found"


class Conflict(TunesmithError):
    """The present state does not allow this."""

    type = "conflict_error"
    code = "conflict"


class PreconditionFailed(TunesmithError):
    """It was changed since the version that the request expects."""

    type = "conflict_error"
    code = "precondition_failed"


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
