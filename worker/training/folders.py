"""Folders that are there whole or not at all, also after a crash or a power cut."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PARTIAL = ".partial"


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder to fill that takes its name once everything in it is on the disk."""
    staging = folder.with_name(folder.name + _PARTIAL)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        for path in [*staging.rglob("*"), staging]:
            _flush(path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
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
