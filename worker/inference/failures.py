"""The engine's own errors, and the conversion of any error to the last line of a streamed reply."""

import logging

from app.core.engine.messages import Failed
from app.core.errors import InvalidRequest, NotFound, QueueFull, TunesmithError, Unavailable
from app.core.errors.base_models import HubUnreachable, ModelMissing
from app.core.errors.jobs import JobFailure, OutOfMemory

_log = logging.getLogger(__name__)
_RETRY_AFTER_SECONDS = 5


class AdapterUnsupported(InvalidRequest):
    """The engine can't apply this adapter."""

    code = "adapter_unsupported"


class ModelUnsupported(InvalidRequest):
    """The paged engine can't compute this base model; the general path can."""

    code = "model_unsupported"


class ScoresNotFinite(InvalidRequest):
    """A model computed an infinity or no number where a score or a hidden state belongs."""

    code = "scores_not_finite"

    def __init__(self, of_what: str = "scores for the next token") -> None:
        super().__init__(
            f"The model's {of_what} are not finite numbers.",
            hint="Weights of the adapter or of the base model are too large for its number format.",
        )


class BaseModelBusy(Unavailable):
    """The engine is busy with other base models."""

    code = "base_model_busy"


class EngineStopping(Unavailable):
    """The engine is stopping."""

    code = "engine_stopping"


def failed(error: Exception) -> Failed:
    """The error as a reply. An unexpected error is logged, and its message is not shown to the client."""
    if isinstance(error, NotFound | ModelMissing):
        return _failed("not_found", error)
    if isinstance(error, Unavailable):
        return _failed("unavailable", error, retry_after_seconds=error.retry_after_seconds)
    if isinstance(error, QueueFull):
        return _failed("busy", error, retry_after_seconds=_RETRY_AFTER_SECONDS)
    if isinstance(error, HubUnreachable | OutOfMemory):
        return _failed("unavailable", error, retry_after_seconds=_RETRY_AFTER_SECONDS)
    if isinstance(error, InvalidRequest | JobFailure):
        # What a job on this base model would fail with: gated, changed, or not readable.
        return _failed("invalid", error)
    if isinstance(error, TunesmithError):
        return _failed("internal", error)
    _log.error("An answer failed", exc_info=error)
    return Failed(
        kind="internal",
        code="engine_error",
        message="The engine failed while it was answering.",
        hint="The worker's engine log has the details.",
    )


def _failed(kind: str, error: TunesmithError, retry_after_seconds: int | None = None) -> Failed:
    return Failed.model_validate(
        {
            "kind": kind,
            "code": error.code,
            "message": error.message,
            "param": error.param,
            "hint": error.hint,
            "retry_after_seconds": retry_after_seconds,
        }
    )
