"""A file system of its own, on which a full disk is the system's own ENOSPC and no pretence."""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILLER = "filler"


@contextmanager
def mounted(folder: Path, megabytes: int) -> Iterator[bool]:
    """Mount it on a new folder; answers whether that could be done: it needs root."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    is_mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            # Lazily: files of it may still be mapped by what a test has not let go of.
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, room: int = 0) -> None:
    """Let something else take all the space but `room` bytes."""
    try:
        (folder / FILLER).write_bytes(bytes(free_bytes(folder) - room))
    except OSError as error:
        # Others write meanwhile: then the last byte is taken already.
        if error.errno != errno.ENOSPC:
            raise


def make_room(folder: Path) -> None:
    """Take it away again."""
    (folder / FILLER).unlink()


def free_bytes(folder: Path) -> int:
    """What is left."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_bsize
