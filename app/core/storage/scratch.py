"""Folders for files that live no longer than the process that made them, also where it is killed.

Each holds a lock of its process (`flock`). A lock ends with its process, however that ends, so a folder whose
lock can be taken was left behind: the next API removes it. Several processes, of several users, may share a
data folder. Where the file system has no `flock`, a folder has no lock and is never removed by others.
"""

import contextlib
import fcntl
import logging
import os
import re
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_log = logging.getLogger(__name__)

_FOLDER = "scratch"
_LOCK = ".lock"
_UNNAMED_LOCK = ".lock-new"
_NAME = re.compile(r"\d+-[a-z0-9_]{8}")
# Earlier versions made these in the data folder itself, without a lock: names by kind and permissions. Names
# end as `tempfile` ends them; one without a digit or without a letter may as well be a date or a word, and so
# be a user's own.
_RANDOM = r"(?=[a-z_]*\d)(?=[\d_]*[a-z])[a-z0-9_]{8}"
_EARLIER = {
    stat.S_IFDIR | 0o700: re.compile(rf"(import|backup|restore|rows)-{_RANDOM}"),
    stat.S_IFREG | 0o600: re.compile(rf"upload-{_RANDOM}\.jsonl|unpacked-{_RANDOM}"),
}
_KIND_AND_PERMISSIONS = 0o170777
_EARLIER_SECONDS = 24 * 3600


class Scratch:
    """A process's own folder below a data folder. It is made when it is first used; safe among threads."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._guard = threading.Lock()
        self._folder: Path | None = None
        self._lock: int | None = None

    def folder(self) -> Path:
        """The folder, which exists: it is made again where something has removed it."""
        with self._guard:
            if self._folder is None or not self._folder.is_dir():
                self._unlock()
                parent = _make_parent(self._data_dir)
                self._folder = Path(tempfile.mkdtemp(dir=parent, prefix=f"{os.getpid()}-"))
                try:
                    self._lock = _lock_folder(self._folder)
                except BaseException:
                    shutil.rmtree(self._folder, ignore_errors=True)
                    raise
            return self._folder

    def close(self) -> None:
        """Remove the folder, and what is in it."""
        with self._guard:
            if self._folder is not None:
                with contextlib.suppress(OSError):
                    _remove_folder(self._folder)
                self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
        self._folder = self._lock = None


@contextlib.contextmanager
def scratch_folder(data_dir: Path) -> Iterator[Path]:
    """An empty folder that is removed when the context ends."""
    scratch = Scratch(data_dir)
    try:
        folder = scratch.folder() / "files"
        folder.mkdir()
        yield folder
    finally:
        scratch.close()


def remove_abandoned(data_dir: Path) -> list[Path]:
    """Remove what processes that are gone have left. What can't be removed is logged, and stays.

    Returns what was removed.
    """
    removed = []
    found: list[tuple[Path, Callable[[Path], bool]]] = [
        (path, _is_abandoned) for path in _list(data_dir / _FOLDER)
    ]
    found += [(path, _is_of_earlier_version) for path in _list(data_dir)]
    for path, is_left in found:
        try:
            if is_left(path):
                _remove_folder(path) if path.is_dir() else path.unlink()
                removed.append(path)
        except FileNotFoundError:
            continue  # another process has just removed it
        except OSError as error:
            _log.warning("%s, which a killed process left, can't be removed: %s", path, error)
    return removed


def _list(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        _log.warning("What killed processes left in %s can't be removed: %s", folder, error)
        return []


def _make_parent(data_dir: Path) -> Path:
    """The folder of all scratch folders, made for the same users as the data folder."""
    data_dir.mkdir(parents=True, exist_ok=True)
    parent = data_dir / _FOLDER
    with contextlib.suppress(FileExistsError):
        parent.mkdir()
        of_data = data_dir.stat()
        with contextlib.suppress(OSError):  # a file system without owners, or a group of others
            os.chown(parent, of_data.st_uid if os.geteuid() == 0 else -1, of_data.st_gid)
        with contextlib.suppress(OSError):
            parent.chmod(stat.S_IMODE(of_data.st_mode))
    return parent


def _lock_folder(folder: Path) -> int | None:
    """Returns the open lock, or None where the file system has no `flock`."""
    unnamed = folder / _UNNAMED_LOCK
    lock = os.open(unnamed, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Named only once it is locked: others look for the name, and never find it unlocked.
        unnamed.rename(folder / _LOCK)
    except OSError:
        os.close(lock)
        unnamed.unlink(missing_ok=True)
        return None
    return lock


def _is_abandoned(folder: Path) -> bool:
    """Whether the folder's lock can be taken. A folder whose lock is absent or can't be read is not."""
    if folder.is_symlink() or not _NAME.fullmatch(folder.name):
        return False
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True


def _is_of_earlier_version(path: Path) -> bool:
    """Whether an earlier version made this with `tempfile`, more than a day ago and as this user."""
    found = path.lstat()
    name = _EARLIER.get(found.st_mode & _KIND_AND_PERMISSIONS)
    return (
        name is not None
        and name.fullmatch(path.name) is not None
        and found.st_uid == os.geteuid()
        and found.st_mtime < time.time() - _EARLIER_SECONDS
    )


def _remove_folder(folder: Path) -> None:
    """Remove a folder, its lock last: what an interrupted removal leaves can be removed later.

    Raises OSError where something in it can't be removed.
    """
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink(missing_ok=True)
    (folder / _LOCK).unlink(missing_ok=True)
    folder.rmdir()
