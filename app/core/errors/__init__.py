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
│       HubDatasetUnreadable, DatasetDiskFull
├── ExportFailure             why an export failed; recorded with the export
│   └── ExportMismatch, ExportUnsupported, GgufFamilyUnknown, TokenizerUnfit, ExportDiskFull,
│       NoMemoryForVerification, HubRefused, HubRepositoryExists
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


class NotFound(TunesmithError):
    """There is no such thing."""

    type = "not_found_error"
    code = "not_found"


class Conflict(TunesmithError):
    """The present state does not allow this."""

    type = "conflict_error"
    code = "conflict"


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
