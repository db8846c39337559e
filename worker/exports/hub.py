"""A folder pushed to a repository of the Hub in one commit. The token is HF_TOKEN of the worker, nobody
else's.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

from app.core.errors import HubRefused, HubRepositoryExists, HubUnreachable
from worker.redaction import redact

log = logging.getLogger(__name__)

_NO_NETWORK = {"TransportError", "ConnectionError", "TimeoutError"}


def check(repository: str, *, update: bool) -> None:
    """What can be told before hours of work. Raises HubRefused, HubRepositoryExists, HubUnreachable."""
    if get_token() is None:
        raise HubRefused(
            "The worker has no token for the Hub.",
            hint="Set HF_TOKEN for the worker to a token with write rights, and start it again.",
        )
    with _explained(repository):
        if HfApi().repo_exists(repository) and not update:
            raise _exists(repository)


def push(folder: Path, repository: str, *, private: bool, update: bool, message: str) -> str:
    """Push the folder; answers the repository's address. A repository that it made is removed where it fails.

    Raises HubRefused, HubRepositoryExists, HubUnreachable.
    """
    api = HfApi()
    with _explained(repository):
        is_new = not api.repo_exists(repository)
        if not is_new and not update:
            raise _exists(repository)
        if is_new:
            api.create_repo(repository, private=private)
    try:
        with _explained(repository):
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
            _check_sizes(api, repository, folder)
    except BaseException:
        if is_new:
            with suppress(HfHubHTTPError):
                api.delete_repo(repository)
        raise
    return f"{api.endpoint}/{repository}"


def _check_sizes(api: HfApi, repository: str, folder: Path) -> None:
    there = {
        file.rfilename: file.size for file in api.model_info(repository, files_metadata=True).siblings or []
    }
    for path in folder.iterdir():
        if there.get(path.name) != path.stat().st_size:
            raise HubRefused(f"After the push, {repository} does not have {path.name} whole.")


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Turn what the Hub's client raises into words for a person."""
    try:
        yield
    except HFValidationError as error:
        raise HubRefused(f"The Hub takes no repository named {repository!r}: {error}") from error
    except HfHubHTTPError as error:
        raise _explain(error, repository) from error
    except Exception as error:
        if _NO_NETWORK & {cls.__name__ for cls in type(error).__mro__}:
            raise HubUnreachable(
                f"The Hub can't be reached: {redact(str(error))}", hint="Check the network, then retry."
            ) from error
        raise


def _explain(error: HfHubHTTPError, repository: str) -> HubRefused | HubRepositoryExists | HubUnreachable:
    status = error.response.status_code
    if status == 409:
        return _exists(repository)
    if status in (401, 403) or isinstance(error, RepositoryNotFoundError):
        return HubRefused(
            f"The worker's token may not write to {repository}.",
            hint="HF_TOKEN must be a token with write rights to that owner's repositories.",
        )
    if status >= 500:
        return HubUnreachable(f"The Hub does not answer: HTTP {status}.", hint="Retry later.")
    reason = redact(error.server_message or f"HTTP {status}")
    return HubRefused(f"The Hub refuses the repository {repository!r}: {reason}")


def _exists(repository: str) -> HubRepositoryExists:
    return HubRepositoryExists(
        f"There is a repository {repository} on the Hub already.",
        hint='Choose another name, or set "update" to push into it.',
    )
