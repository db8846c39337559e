"""Errors of exports: states that do not allow a call, and the reasons why an export failed."""

from app.core.errors import Conflict, NotFound, TunesmithError


class ExportNotFound(NotFound):
    """There is no such export."""

    code = "export_not_found"


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


class QuantizerMissing(ExportFailure):
    """What rounds the weights, or reads them back, is not installed on the worker."""

    code = "quantizer_missing"


class TokenizerUnfit(ExportFailure):
    """The tokenizer and the model do not fit each other, or the format can't hold the tokenizer."""

    code = "tokenizer_unfit"


class ExportDiskFull(ExportFailure):
    """The disk has no room for the export."""

    code = "disk_full"


class NoMemoryForVerification(ExportFailure):
    """There is not enough memory to load the model and compare."""

    code = "out_of_memory"


class HubRefused(ExportFailure):
    """The Hub does not take the repository."""

    code = "hub_refused"


class HubRepositoryExists(ExportFailure):
    """The repository exists already."""

    code = "hub_repository_exists"
