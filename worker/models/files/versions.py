"""Which version of a file there is, by what the file system says of it, without a read of it."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FileVersion:
    """A file and what changes whenever it is written or replaced: times in nanoseconds."""

    path: str
    size: int
    modified: int
    changed: int
    inode: int


def read_version(path: Path) -> FileVersion | None:
    """Returns the version of a file; None where there is no regular file. Follows links."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return FileVersion(str(path), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
