"""Folders that exist whole or not at all, also after a crash, a power cut or on a full disk."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.core.errors.jobs import DiskFull
from app.core.storage.disk import has_space

_PARTIAL = ".partial"


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder to fill, renamed to its final name once all of it is on the disk. Raises DiskFull."""
    # A name of its own: a process that lost its lease may still be writing the same folder.
    staging = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}{_PARTIAL}")
    try:
        staging.mkdir(parents=True)
        yield staging
        for path in [*staging.rglob("*"), staging]:
            _flush(path)
    except BaseException as error:
        # Before anything is removed: torch.save says no more than that writing failed.
        is_full = isinstance(error, Exception) and not has_space(staging)
        shutil.rmtree(staging, ignore_errors=True)
        if is_full:
            raise DiskFull() from error
        raise
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)
    _flush(folder.parent)


def remove_partial(parent: Path) -> None:
    """Remove what a killed process left half-written."""
    for leftover in parent.glob(f"*{_PARTIAL}"):
        shutil.rmtree(leftover, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
