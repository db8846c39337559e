"""Translates errors of the Hub's client and of the `datasets` library into Tunesmith's errors. Pure."""

from collections.abc import Iterator

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from app.core.datasets.fetches import HubSource
from app.core.errors import TunesmithError
from app.core.errors.base_models import HubUnreachable
from app.core.errors.datasets import (
    DatasetInvalid,
    FetchFailure,
    FieldsUnused,
    HubDatasetGated,
    HubDatasetMissing,
    HubDatasetUnreadable,
)
from worker.fetching.reports import FetchFailed

# Compared by class name: the HTTP library of the Hub's client differs between its versions.
_NO_NETWORK = {"TransportError", "ConnectionError", "TimeoutError"}
_TOKEN_HINT = "Set HF_TOKEN for the worker to a token that may read it, and accept its terms on its Hub page."
_MAX_REASON_LENGTH = 300


def explain(error: Exception, source: HubSource, rows_read: int = 0) -> TunesmithError:
    """The error for the user. A repository's files are a stranger's, and the libraries raise anything."""
    name = source.hub_dataset
    if isinstance(error, TunesmithError):
        return error
    if _find(error, GatedRepoError) or "is a gated dataset" in str(error):
        return HubDatasetGated(f"The dataset {name} is gated.", hint=_TOKEN_HINT)
    if _find(error, RevisionNotFoundError):
        return HubDatasetMissing(f"The dataset {name} has no revision {source.revision!r}.")
    if _find(error, RepositoryNotFoundError):
        return HubDatasetMissing(
            f"There is no dataset {name} on the Hub, or it is private.",
            hint=f"Check the spelling (owner/name). {_TOKEN_HINT}",
        )
    if unanswered := _find_unanswered(error):
        return HubUnreachable(
            f"The Hub can't be reached, or does not answer: {unanswered}.",
            hint="Check the worker's network and HF_ENDPOINT, then POST /datasets again.",
        )
    return _unreadable(error, name, rows_read)


def to_report(error: TunesmithError, problem_count: int = 0) -> FetchFailed:
    """The error as the child's report, which holds the first of `problem_count` bad rows."""
    problems = error.problems if isinstance(error, DatasetInvalid) else []
    return FetchFailed(
        code=error.code,
        message=error.message,
        hint=error.hint,
        problems=problems,
        problem_count=max(problem_count, len(problems)),
        unused_fields=error.unused_fields if isinstance(error, FieldsUnused) else [],
    )


def _unreadable(error: Exception, name: str, rows_read: int) -> FetchFailure:
    place = f"The rows of {name} after row {rows_read}" if rows_read else f"The files of {name}"
    return HubDatasetUnreadable(
        f"{place} can't be read: {_first_line(_root(error))}",
        hint="Mend the dataset's repository; or download the file and upload it, and every bad row is named.",
    )


def _find_unanswered(error: Exception) -> str | None:
    """Why the Hub did not respond, where that caused the error; else None."""
    for cause in _chain(error):
        if isinstance(cause, HfHubHTTPError) and cause.response.status_code >= 500:
            return f"HTTP {cause.response.status_code}"
        if _NO_NETWORK & {cls.__name__ for cls in type(cause).__mro__}:
            return _first_line(cause)
    return None


def _find(error: Exception, kind: type[Exception]) -> bool:
    return any(isinstance(cause, kind) for cause in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and its chain of causes."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def _root(error: BaseException) -> BaseException:
    """The last cause with a message: the library's own error says only that something failed."""
    *_, last = (cause for cause in _chain(error) if str(cause))
    return last


def _first_line(error: BaseException) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text[:_MAX_REASON_LENGTH].rstrip(".") + ("…" if len(text) > _MAX_REASON_LENGTH else "")
