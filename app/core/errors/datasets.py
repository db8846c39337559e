"""Errors of datasets: unusable uploads, states that do not allow a call, failed fetches from the Hub."""

from app.core.errors import Conflict, InvalidRequest, NotFound, TunesmithError


class DatasetInvalid(InvalidRequest):
    """The dataset can't be used.

    `sample` is what a person needs to map its columns, as the API shows it; only an upload sets it.
    """

    code = "dataset_invalid"
    sample: dict[str, object] | None = None

    def __init__(
        self, message: str, *, problems: list[dict[str, object]] | None = None, hint: str | None = None
    ):
        super().__init__(message, param="file", hint=hint)
        self.problems = problems or []


class FieldsUnused(DatasetInvalid):
    """The dataset has fields that change what is learned, and nothing is learned from them."""

    code = "fields_unused"

    def __init__(self, message: str, *, unused_fields: list[dict[str, object]], hint: str | None = None):
        super().__init__(message, hint=hint)
        self.unused_fields = unused_fields


class DatasetUnfit(InvalidRequest):
    """The rows of this dataset are not of the kind that the job's method learns."""

    code = "dataset_unfit"


class DatasetNotFound(NotFound):
    """There is no such dataset."""

    code = "dataset_not_found"


class DatasetInUse(Conflict):
    """A job that has not ended needs this dataset."""

    code = "dataset_in_use"


class DatasetNotReady(Conflict):
    """The rows of this dataset are not there."""

    code = "dataset_not_ready"


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


class DatasetDiskFull(FetchFailure):
    """The disk is full."""

    code = "disk_full"

    def __init__(self) -> None:
        super().__init__(hint="Free some space, then POST /datasets again.")
