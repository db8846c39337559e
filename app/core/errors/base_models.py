"""Errors of base models: unknown, not allowed, gated, missing, changed, or not readable."""

from app.core.errors import InvalidRequest
from app.core.errors.jobs import JobFailure


class ModelNotAllowed(InvalidRequest):
    """This base model is not on the allow-list."""

    code = "model_not_allowed"


class UnknownModel(InvalidRequest):
    """There is no such base model."""

    code = "model_unknown"


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
