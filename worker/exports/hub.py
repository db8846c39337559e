"""Pushes a folder to a repository of the Hub in one commit, with the worker's own HF_TOKEN."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import HfApi, ModelCard, ModelInfo, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

from app.core.errors import TunesmithError
from app.core.errors.base_models import HubUnreachable
from app.core.errors.exports import HubRefused, HubRepositoryExists
from app.core.specs.export import ExportSpec, HubSpec
from worker.exports.model_card import CARD
from worker.processes.redaction import redact

log = logging.getLogger(__name__)

_NO_NETWORK = {"TransportError", "ConnectionError", "TimeoutError"}


@dataclass
class HubPush:
    """The push of a folder to a repository. The files appear there in one commit, or not at all."""

    repository: str
    private: bool
    update: bool
    revision: str | None = None
    tags: tuple[str, ...] = ()
    _created_repository: bool = False

    @classmethod
    def of(cls, spec: ExportSpec) -> "HubPush | None":
        """The push that the spec asks for; None where it asks for none."""
        if not isinstance(spec, HubSpec):
            return None
        return cls(spec.repository, spec.private, spec.update, spec.revision, tuple(spec.tags))

    def check(self) -> None:
        """Check the token and the repository before any files are produced.

        Raises HubRefused, HubRepositoryExists, HubUnreachable.
        """
        if get_token() is None:
            raise HubRefused(
                "The worker has no token for the Hub.",
                hint="Set HF_TOKEN for the worker to a token with write rights, and start it again.",
            )
        with _translated_errors(self.repository):
            api = HfApi()
            if api.whoami().get("auth", {}).get("accessToken", {}).get("role") == "read":
                raise _unwritable(self.repository)
            self._find(api)

    def run(self, folder: Path, message: str) -> str:
        """Push the folder and return the repository's URL. A repository created for a failed push is deleted.

        Raises HubRefused, HubRepositoryExists, HubUnreachable.
        """
        api = HfApi()
        try:
            with _translated_errors(self.repository):
                if not self._find(api):
                    # Set before the repository is created: a stop in between deletes it.
                    self._created_repository = True
                    api.create_repo(self.repository, private=self.private)
                if self.revision:
                    api.create_branch(self.repository, branch=self.revision, exist_ok=True)
                self._add_tags(folder)
                api.upload_folder(
                    repo_id=self.repository,
                    folder_path=folder,
                    commit_message=message,
                    revision=self.revision,
                )
                _check_sizes(api, self.repository, folder, self.revision)
        except BaseException:
            self.undo()
            raise
        self._created_repository = False
        branch = f"/tree/{quote(self.revision, safe='')}" if self.revision else ""
        return f"{api.endpoint}/{self.repository}{branch}"

    def _add_tags(self, folder: Path) -> None:
        """Add the tags to the model card."""
        path = folder / CARD
        if self.tags and path.is_file():
            card = ModelCard.load(path)
            card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *self.tags]))
            card.save(path)

    def undo(self) -> None:
        """Delete the repository where it was created for this push and the push did not succeed."""
        if self._created_repository:
            self._created_repository = False
            with suppress(Exception):
                HfApi().delete_repo(self.repository, missing_ok=True)

    def _find(self, api: HfApi) -> bool:
        """Whether the repository exists and may be pushed to. Raises HubRefused, HubRepositoryExists."""
        try:
            found = api.model_info(self.repository)
        except RepositoryNotFoundError:
            return False
        # An attempt that was killed leaves an empty repository. A public one is not used for a private push.
        is_left_over = not _list_files(found) and (found.private or not self.private)
        if not self.update and not is_left_over:
            raise _exists(self.repository)
        if self.private and not found.private:
            raise HubRefused(
                f"{self.repository} is public on the Hub, and the push is private.",
                hint='Set "private" to false to push into it, or make it private there.',
            )
        return True


def _list_files(found: ModelInfo) -> list[str]:
    """The repository's files except .gitattributes, which the Hub creates."""
    return [file.rfilename for file in found.siblings or [] if file.rfilename != ".gitattributes"]


def _check_sizes(api: HfApi, repository: str, folder: Path, revision: str | None) -> None:
    found = api.model_info(repository, revision=revision, files_metadata=True)
    there = {file.rfilename: file.size for file in found.siblings or []}
    for path in folder.iterdir():
        if there.get(path.name) != path.stat().st_size:
            raise HubRefused(f"After the push, {repository} does not have {path.name} whole.")


@contextmanager
def _translated_errors(repository: str) -> Iterator[None]:
    """Raise errors of the Hub's client as errors of exports, with messages for users."""
    try:
        yield
    except Exception as error:
        # For a large file, the client raises a RuntimeError that names the file; the reason is its cause.
        reason = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error
        known = _translate(reason, repository)
        if known is None:
            raise
        raise known from error


def _translate(error: BaseException, repository: str) -> TunesmithError | None:
    if isinstance(error, HFValidationError):
        return HubRefused(f"The Hub takes no repository named {repository!r}: {error}")
    if isinstance(error, HfHubHTTPError):
        return _translate_status(error, repository)
    if _NO_NETWORK & {cls.__name__ for cls in type(error).__mro__}:
        return HubUnreachable(
            f"The Hub can't be reached: {redact(str(error))}", hint="Check the network, then retry."
        )
    return None


def _translate_status(
    error: HfHubHTTPError, repository: str
) -> HubRefused | HubRepositoryExists | HubUnreachable:
    status = error.response.status_code
    if status == 409:
        return _exists(repository)
    if status in (401, 403) or isinstance(error, RepositoryNotFoundError):
        return _unwritable(repository)
    if status >= 500:
        return HubUnreachable(f"The Hub does not answer: HTTP {status}.", hint="Retry later.")
    reason = redact(error.server_message or f"HTTP {status}")
    return HubRefused(f"The Hub refuses the repository {repository!r}: {reason}")


def _unwritable(repository: str) -> HubRefused:
    return HubRefused(
        f"The worker's token may not write to {repository}.",
        hint="HF_TOKEN must be a token with write rights to that owner's repositories.",
    )


def _exists(repository: str) -> HubRepositoryExists:
    return HubRepositoryExists(
        f"There is a repository {repository} on the Hub already.",
        hint='Choose another name, or set "update" to push into it.',
    )
