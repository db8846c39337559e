"""Downloads into files: complete or absent under their name, and continued where they broke off."""

import os
import sys
from pathlib import Path
from typing import BinaryIO

import httpx
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

from app.cli.connection.client import Client, Params
from app.cli.failures import UsageProblem
from app.cli.output import error_console

STDOUT = Path("-")
_TRIES = 5


def choose_path(output: Path | None, file_name: str, *, force: bool) -> Path:
    """The file to write: `output`, or a file in it where it is a folder. Raises UsageProblem if it exists."""
    path = output or Path(file_name)
    if path == STDOUT:
        return path
    if path.is_dir():
        path = path / file_name
    if path.exists() and not force:
        raise UsageProblem(f"{path} is there already.", hint="--force writes over it; -o names another file.")
    return path


def download(
    client: Client, url_path: str, path: Path, *, params: Params | None = None, size: int | None = None
) -> int:
    """Write what is at a path of the API to a file, or to standard output. Returns its size in bytes.

    `size` is the expected one, for the bar. A server that has ranges continues a download that broke off.
    """
    if path == STDOUT:
        return _fetch(client, url_path, sys.stdout.buffer, params, size)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as target:
            _fetch(client, url_path, target, params, size)
        os.replace(partial, path)
    except OSError as error:
        raise UsageProblem(f"{path} can't be written: {error.strerror}.") from None
    finally:
        partial.unlink(missing_ok=True)
    return path.stat().st_size


def _fetch(client: Client, url_path: str, target: BinaryIO, params: Params | None, size: int | None) -> int:
    screen = error_console()
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
    written = 0
    etag: str | None = None
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
        bar = progress.add_task("", total=size)
        for tries_left in reversed(range(_TRIES)):
            headers = {"range": f"bytes={written}-", "if-range": etag} if etag and written else {}
            try:
                with client.stream("GET", url_path, params=params, headers=headers) as response:
                    etag = response.headers.get("etag")
                    if written and response.status_code != httpx.codes.PARTIAL_CONTENT:
                        raise client.unreachable(httpx.ReadError("the download broke off"))
                    for chunk in response.iter_bytes():
                        target.write(chunk)
                        written += len(chunk)
                        progress.advance(bar, len(chunk))
                    return written
            except httpx.TransportError as error:
                if not (etag and written and tries_left):
                    raise client.unreachable(error) from None
    raise AssertionError("the last try returns or raises")
