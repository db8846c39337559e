"""Errors of adapters: uploads that can't be used, and states that do not allow a call."""

from app.core.errors import Conflict, InvalidRequest, NotFound


class AdapterInvalid(InvalidRequest):
    """The upload is no LoRA adapter that can be used."""

    code = "adapter_invalid"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, param="file", hint=hint)


class AdapterIncompatible(InvalidRequest):
    """The job can't continue from this adapter."""

    code = "adapter_incompatible"


class AdapterNotFound(NotFound):
    """There is no such adapter."""

    code = "adapter_not_found"


class AdapterInUse(Conflict):
    """A job that has not ended starts from this adapter."""

    code = "adapter_in_use"


class AdapterNotReady(Conflict):
    """The adapter is still being imported, or failed to be."""

    code = "adapter_not_ready"


class AdapterNameTaken(Conflict):
    """Another adapter has this name."""

    code = "adapter_name_taken"
