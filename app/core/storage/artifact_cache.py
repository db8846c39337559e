"""Copies of artifacts in a folder that processes share, within a limit; the least recently used go first.

Each entry has a file next to the copies: its time says when the copy was last used, and its lock (flock) says
that a process uses the copy now. Knows nothing of the store.
"""

import fcntl
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote

_ENTRIES, _PARTIAL = ".entries", ".partial"
# A copy without a lock is read at once, as the engine reads an adapter.
_RECENT_SECONDS = 600.0
# A copy that takes longer was begun by a process that was killed.
_ABANDONED_SECONDS = 24 * 3600.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ArtifactCache:
    """Copies of artifacts by their keys. Without a limit nothing is removed."""

    folder: Path
    limit_bytes: int | None = None

    def get(self, key: str, fill: Callable[[Path], None], hold: ExitStack | None = None) -> Path:
        """Returns the path of the copy; where there is none, `fill` makes it at the path that it is given.

        The copy appears whole or not at all, and stays until `hold` is closed; without it, for ten minutes.
        """
        with ExitStack() as short:
            entry = (hold or short).enter_context(self._locked(key))
            target = self.folder / key
            if not target.exists():
                self._make(target, fill)
            os.utime(entry)
            if self.limit_bytes is not None:
                self.shrink(self.limit_bytes)
        return target

    def shrink(self, limit_bytes: int) -> None:
        """Remove copies that are not in use, the least recently used first, until the rest is so small."""
        self._remove_abandoned()
        entries = sorted((self.folder / _ENTRIES).iterdir(), key=_used_at)
        sizes = {entry: _size(self._copy_of(entry)) for entry in entries}
        total = sum(sizes.values())
        for entry in entries:
            if total <= limit_bytes or time.time() - _used_at(entry) < _RECENT_SECONDS:
                return
            if self._remove(entry):
                total -= sizes[entry]
                log.info("Removed %s from the cache", self._copy_of(entry).relative_to(self.folder))

    def _make(self, target: Path, fill: Callable[[Path], None]) -> None:
        # A name of its own: another process may be making the same copy.
        partial = self.folder / _PARTIAL / secrets.token_hex(8)
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            fill(partial)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                partial.rename(target)
            except OSError:
                if not target.exists():
                    raise  # else another process was faster; a folder does not replace one with files
        finally:
            _delete(partial)

    @contextmanager
    def _locked(self, key: str) -> Iterator[Path]:
        """The file of an entry, with a lock that keeps others from removing the copy."""
        entry = self.folder / _ENTRIES / quote(key, safe="")
        entry.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with entry.open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_SH)
                if _is_open_file(file, entry):
                    yield entry
                    return
            # It was removed before it was locked: that lock would keep nobody from anything.

    def _remove(self, entry: Path) -> bool:
        """Remove an entry and its copy; returns False where a process uses it."""
        try:
            with entry.open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not _is_open_file(file, entry):
                    return False
                removed = self.folder / _PARTIAL / secrets.token_hex(8)
                removed.parent.mkdir(exist_ok=True)
                copy = self._copy_of(entry)
                if copy.exists():
                    copy.rename(removed)
                entry.unlink()
        except OSError:
            return False
        _delete(removed)
        return True

    def _remove_abandoned(self) -> None:
        for partial in (self.folder / _PARTIAL).glob("*"):
            if time.time() - _used_at(partial) > _ABANDONED_SECONDS:
                _delete(partial)

    def _copy_of(self, entry: Path) -> Path:
        return self.folder / unquote(entry.name)


def _is_open_file(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _used_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _size(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    size = 0
    for file in files:
        try:
            size += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:
            continue  # another process removes it now
    return size


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
