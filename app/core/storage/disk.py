"""Recognizes a full disk: in an error of any origin, and before one happens."""

import errno
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

# The texts of SQLite, of C libraries that pass on no number, and of PostgreSQL.
_TEXTS = (
    "database or disk is full",
    "No space left on device",
    "Disk quota exceeded",
    "could not extend file",
)
# SQLITE_FULL, and SQLITE_IOERR where the write-ahead log's shared memory can't grow.
_SQLITE_CODES = {13, 4874}
_PROBE_BYTES = 4 << 20
_MAX_CAUSES = 20


def is_disk_full_error(error: BaseException) -> bool:
    """Whether an error, or one that caused it, says that a disk is full or a quota on it used up."""
    return any(_says_full(cause) for cause in _causes(error))


def find_full(folders: Sequence[Path]) -> list[Path]:
    """Returns those of the folders on whose disks not even 4 MiB are left for this user."""
    return [folder for folder in dict.fromkeys(folders) if not has_space(folder)]


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if seen is None:
            return
        yield seen
        original = getattr(seen, "orig", None)  # SQLAlchemy's name of the driver's error
        seen = original if isinstance(original, BaseException) else seen.__cause__ or seen.__context__


def _says_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    if getattr(error, "sqlite_errorcode", None) in _SQLITE_CODES:
        return True
    return any(text in str(error) for text in _TEXTS)


def has_space(folder: Path) -> bool:
    """Whether 4 MiB are left, which are reserved for a moment: a quota shows in nothing else."""
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".probe-") as probe:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(probe.fileno(), 0, _PROBE_BYTES)
            else:
                probe.write(bytes(_PROBE_BYTES))
                probe.flush()
    except OSError as error:
        return not is_disk_full_error(error)
    return True
