"""Uploads an adapter that was trained elsewhere, and waits until the engine has answered with it."""

import tarfile
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any, BinaryIO

from app.cli.connection.client import Client
from app.cli.connection.upload_progress import watched
from app.cli.failures import UsageProblem
from app.cli.output import error_console

_POLL_SECONDS = 1.0


def upload_archive(client: Client, path: Path, fields: dict[str, str]) -> Any:
    """Upload an archive, or a folder as a tar of it. Returns the import. Raises UsageProblem."""
    try:
        if path.is_dir():
            with tempfile.TemporaryFile() as packed:
                _pack(path, packed)
                return _send(client, packed, f"{path.resolve().name}.tar", fields)
        with path.open("rb") as file:
            return _send(client, file, path.name, fields)
    except OSError as error:
        raise UsageProblem(f"{path} can't be read: {error.strerror}.") from None


def wait_until_verified(client: Client, adapter: Any) -> Any:
    """Poll an import until it is ready or has failed; say what it waits for. Returns it."""
    with error_console().status("The engine tries it") as status:
        while adapter["state"] == "importing":
            time.sleep(_POLL_SECONDS)
            adapter = client.get(f"/adapters/{adapter['id']}")
            waits_for = adapter.get("error") or {}
            status.update(
                f"The engine tries it: {waits_for['message']}" if waits_for else "The engine tries it"
            )
    return adapter


def _pack(folder: Path, target: BinaryIO) -> None:
    """Write the files of a folder, not those of its subfolders, as a tar."""
    with tarfile.open(fileobj=target, mode="w") as archive:
        for path in sorted(folder.iterdir()):
            if path.is_file():
                archive.add(path, arcname=path.name)
    target.seek(0)


def _send(client: Client, file: BinaryIO, name: str, fields: dict[str, str]) -> Any:
    with watched(file, name) as seen:
        return client.upload(
            "/adapters", files={"file": (name, seen)}, fields=fields, key=f"cli-{uuid.uuid4()}"
        )
