"""A small tmpfs file system, on which a full disk raises the system's own ENOSPC."""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILLER = "filler"


@contextmanager
def mounted(folder: Path, megabytes: int) -> Iterator[bool]:
    """Mount a tmpfs of this size on a new folder. Yields whether that succeeded: mounting needs root."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    is_mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            # Lazily: a test may still have files of it memory-mapped.
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, spare_bytes: int = 0) -> None:
    """Write a filler file that leaves `spare_bytes` free."""
    try:
        (folder / FILLER).write_bytes(bytes(free_bytes(folder) - spare_bytes))
    except OSError as error:
        # Another process may have taken the last bytes meanwhile.
        if error.errno != errno.ENOSPC:
            raise


def remove_filler(folder: Path) -> None:
    """Remove the filler file."""
    (folder / FILLER).unlink()


def free_bytes(folder: Path) -> int:
    """The free bytes of the file system."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_bsize
