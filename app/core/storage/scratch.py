"""Folders for files that live no longer than the process that made them, also where it is killed.

Each is locked by its process (`flock`). A lock ends with its process, however that ends, so a folder whose
lock can be taken was left behind: the next process removes it. Several processes may share a data folder.
"""

import fcntl
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FOLDER = "scratch"
_LOCK = ".lock"
# Earlier versions wrote these into the data folder itself, without a lock.
_UNLOCKED = ("upload-*", "import-*", "backup-*", "restore-*", "rows-*", "unpacked-*")
_UNLOCKED_SECONDS = 24 * 3600


class Scratch:
    """A process's own folder below a data folder. It is made when it is first used; safe among threads."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._guard = threading.Lock()
        self._folder: Path | None = None
        self._lock: int | None = None

    def folder(self) -> Path:
        """The folder, which exists."""
        with self._guard:
            if self._folder is None:
                with _locked_parent(self._data_dir) as parent:
                    self._folder = Path(tempfile.mkdtemp(dir=parent, prefix=f"{os.getpid()}-"))
                    self._lock = os.open(self._folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
                    fcntl.flock(self._lock, fcntl.LOCK_EX)
            return self._folder

    def close(self) -> None:
        """Remove the folder, and what is in it."""
        with self._guard:
            if self._folder is not None and self._lock is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                os.close(self._lock)
                self._folder = self._lock = None


@contextmanager
def scratch_folder(data_dir: Path) -> Iterator[Path]:
    """A folder that is removed when the context ends."""
    scratch = Scratch(data_dir)
    try:
        yield scratch.folder()
    finally:
        scratch.close()


def remove_abandoned(data_dir: Path) -> list[Path]:
    """Remove what processes that are gone have left. Returns what was removed."""
    with _locked_parent(data_dir) as parent:
        found = [folder for folder in parent.iterdir() if folder.is_dir() and _is_abandoned(folder)]
    long_ago = time.time() - _UNLOCKED_SECONDS
    for pattern in _UNLOCKED:
        found += [path for path in data_dir.glob(pattern) if path.lstat().st_mtime < long_ago]
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return found


@contextmanager
def _locked_parent(data_dir: Path) -> Iterator[Path]:
    """The folder of all scratch folders, while no other process makes one or looks for abandoned ones."""
    parent = data_dir / _FOLDER
    parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(parent / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield parent
    finally:
        os.close(lock)


def _is_abandoned(folder: Path) -> bool:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True
