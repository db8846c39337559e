"""Uploads files of rows to the API; the same content is uploaded once a day."""

import hashlib
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from app.cli.connection.client import Client
from app.cli.connection.upload_progress import watched
from app.cli.failures import CommandFailed, ExitCode, UsageProblem
from app.cli.jobs.files import JobFile
from app.cli.names import find_dataset_id, looks_like_file
from app.cli.output import note

_READ_BYTES = 1 << 20
_CHOICES = ("on_problem=skip", "on_unused=ignore")
_DATASET_FIELDS = ("dataset", "validation_dataset")


def upload(client: Client, path: Path, fields: dict[str, str]) -> Any:
    """Upload a file. Returns its dataset, or that of an earlier upload of the same content within a day."""
    with _open(path) as file:
        key = _content_key(file, path.name, fields)
    try:
        return _send(client, path, fields, key)
    except CommandFailed as failure:
        if failure.exit_code is not ExitCode.NOT_FOUND:
            raise
        # The dataset of the earlier upload was deleted; its idempotency key still refers to it.
        return _send(client, path, fields, f"cli-{uuid.uuid4()}")


def inspect(client: Client, path: Path, fields: dict[str, str]) -> Any:
    """The first records of a file and how they are read. Nothing is stored."""
    with _open(path) as file, watched(file, path.name) as seen:
        return client.upload("/datasets/inspect", files={"file": (path.name, seen)}, fields=fields)


def fill_in_datasets(client: Client, job_file: JobFile) -> dict[str, Any]:
    """The job's body with dataset ids in place of names and files. Uploads the files."""
    body = dict(job_file.body)
    for field in _DATASET_FIELDS:
        named = body.get(field)
        if isinstance(named, str) and not named.startswith("ds_"):
            try:
                body[field] = _find_or_upload(client, job_file.folder, named)
            except CommandFailed as failure:
                failure.param = field
                raise job_file.locate(failure) from None
    return body


def _find_or_upload(client: Client, folder: Path, named: str) -> str:
    for path in (folder / named, Path(named)):
        if path.is_file():
            dataset = _upload_for_job(client, path)
            note(f"{path}: {dataset['rows']} rows, {dataset['id']}", "dim")
            return str(dataset["id"])
    if looks_like_file(named):
        try:
            return find_dataset_id(client, named)  # a dataset is often named like its file
        except CommandFailed as failure:
            if failure.exit_code is ExitCode.NOT_FOUND:
                failure.message = f"There is neither a file nor a dataset {named!r}."
                failure.hint = f"Files are looked for in {folder.resolve()} and in the current folder."
            raise
    return find_dataset_id(client, named)


def _upload_for_job(client: Client, path: Path) -> Any:
    try:
        return upload(client, path, {})
    except CommandFailed as failure:
        if failure.sample or (failure.hint and any(choice in failure.hint for choice in _CHOICES)):
            choose = f"Use `tunesmith datasets add {path}`, and name the dataset's id in the job."
            failure.hint = f"{failure.hint or ''} {choose}".strip()
        raise


def _send(client: Client, path: Path, fields: dict[str, str], key: str) -> Any:
    with _open(path) as file, watched(file, path.name) as seen:
        return client.upload("/datasets", files={"file": (path.name, seen)}, fields=fields, key=key)


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise UsageProblem(f"{path} can't be read: {error.strerror}.") from None
    with file:
        yield file


def _content_key(file: BinaryIO, name: str, fields: dict[str, str]) -> str:
    total = hashlib.sha256(json.dumps([name, sorted(fields.items())]).encode())
    while piece := file.read(_READ_BYTES):
        total.update(piece)
    return f"cli-{total.hexdigest()}"
