"""Errors of base models: unknown, not allowed, gated, missing, in use, changed, unreadable; downloads."""

from app.core.errors import Conflict, InvalidRequest, NotFound
from app.core.errors.jobs import JobFailure


class ModelNotAllowed(InvalidRequest):
    """This base model is not on the allow-list."""

    code = "model_not_allowed"


class UnknownModel(InvalidRequest):
    """There is no such base model."""

    code = "model_unknown"


class ModelNotDownloaded(NotFound):
    """There is no such model in the Hub's cache."""

    code = "model_not_downloaded"


class DownloadNotFound(NotFound):
    """There is no such download."""

    code = "download_not_found"


class DownloadEnded(Conflict):
    """The download has ended."""

    code = "download_ended"


class ModelInUse(Conflict):
    """Something needs the base model now."""

    code = "model_in_use"


class ModelNotOurs(Conflict):
    """A person put the base model into the models folder."""

    code = "model_in_folder"


class ModelDiskFull(JobFailure):
    """The disk has no room for the base model."""

    code = "disk_full"


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
