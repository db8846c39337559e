"""A progress bar for uploads."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from app.cli.output import error_console


@contextmanager
def watched(file: BinaryIO, name: str) -> Iterator[BinaryIO]:
    """The file, wrapped so that reading it moves a progress bar on the terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    screen = error_console()
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
        size = os.fstat(file.fileno()).st_size
        yield progress.wrap_file(file, total=size, description=f"Uploading {name}")
