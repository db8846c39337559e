"""The files of a job on their way between hosts, in parts that fit a message. Knows no Ray and no torch.

Rank 0 writes into a folder of its own host. A unit of that folder is a file in it, or an entry of one of
its subfolders, as `checkpoints/checkpoint-40` or a TensorBoard file. A folder appears whole on the other
side, and of a file that has grown the new bytes are sent.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PART_BYTES = 16 << 20
_PARTIAL = ".partial"  # as atomic_folders names what is not complete
_INCOMING = f".incoming{_PARTIAL}"
_UNFINISHED = (_PARTIAL, ".writing")


@dataclass(frozen=True)
class FilePart:
    """Bytes of a file from an offset on. `name`: its path in the unit; empty where the unit is a file."""

    unit: str
    name: str
    offset: int
    content: bytes


@dataclass(frozen=True)
class UnitComplete:
    """All files of a folder were sent: it replaces what has its name."""

    unit: str


@dataclass(frozen=True)
class UnitRemoved:
    """A unit is gone."""

    unit: str


FileMessage = FilePart | UnitComplete | UnitRemoved


@dataclass(frozen=True)
class _Signature:
    """What differs where a unit changed. `inode`: of a file."""

    inode: int
    files: int
    size: int
    changed_ns: int


class FolderSender:
    """Sends what has changed in a folder since the last time."""

    def __init__(self, root: Path, send: Callable[[FileMessage], None]) -> None:
        """What is in the folder already is known on the other side."""
        self._root = root
        self._send = send
        self._known = self._find_units()

    def send_changes(self) -> None:
        """Send new and changed units, and the names of those that are gone."""
        units = self._find_units()
        for unit, signature in units.items():
            if self._known.get(unit) != signature:
                self._send_unit(unit)
        for unit in self._known.keys() - units.keys():
            self._send(UnitRemoved(unit))
        self._known = units

    def forget(self, unit: str) -> None:
        """Remove a unit that the other side has and may keep."""
        self._known.pop(unit, None)
        shutil.rmtree(self._root / unit, ignore_errors=True)

    def _find_units(self) -> dict[str, _Signature]:
        entries = list(self._root.iterdir())
        paths = [path for path in entries if path.is_file() and path.suffix not in _UNFINISHED]
        paths += [path for folder in entries if folder.is_dir() for path in folder.iterdir()]
        return {
            str(path.relative_to(self._root)): _sign(path)
            for path in sorted(paths)
            if not path.name.endswith(_PARTIAL)
        }

    def _send_unit(self, unit: str) -> None:
        path = self._root / unit
        if path.is_dir():
            send_folder(unit, path, self._send)
            return
        known, found = self._known.get(unit), _sign(path)
        has_grown = known is not None and known.inode == found.inode and known.size < found.size
        for offset, content in read_parts(path, known.size if known and has_grown else 0):
            self._send(FilePart(unit, "", offset, content))


def send_folder(unit: str, folder: Path, send: Callable[[FileMessage], None]) -> None:
    """Send all of a folder, as a unit."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            for offset, content in read_parts(path):
                send(FilePart(unit, str(path.relative_to(folder)), offset, content))
    send(UnitComplete(unit))


def read_parts(path: Path, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """The parts of a file from an offset on, each with its own; of an empty file one empty part."""
    with path.open("rb") as file:
        file.seek(start)
        offset = start
        while (content := file.read(PART_BYTES)) or offset == 0:
            yield offset, content
            offset += len(content)
            if not content:
                return


class FolderReceiver:
    """Writes what a FolderSender sends into a folder of this host."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._begun: set[str] = set()

    def receive(self, message: FileMessage) -> None:
        """Write a part, or complete or remove a unit. Raises OSError."""
        target = self._root / message.unit
        incoming = target.with_name(target.name + _INCOMING)
        if isinstance(message, UnitRemoved):
            _remove(target)
        elif isinstance(message, UnitComplete):
            self._begun.discard(message.unit)
            incoming.mkdir(parents=True, exist_ok=True)
            _remove(target)
            incoming.rename(target)
        elif message.name:
            if message.unit not in self._begun:
                self._begun.add(message.unit)
                _remove(incoming)
            _write(incoming / message.name, message.offset, message.content)
        else:
            _write(target, message.offset, message.content)

    def drop_incomplete(self) -> None:
        """Remove the units of which only a part has come."""
        for unit in self._begun:
            target = self._root / unit
            _remove(target.with_name(target.name + _INCOMING))
        self._begun.clear()


def _write(path: Path, offset: int, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.seek(offset)
        file.write(content)
        file.truncate()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sign(path: Path) -> _Signature:
    inode = path.stat().st_ino if path.is_file() else 0
    files = [path] if inode else [one for one in path.rglob("*") if one.is_file()]
    size = changed = 0
    for file in files:
        with suppress(FileNotFoundError):
            found = file.stat()
            size, changed = size + found.st_size, max(changed, found.st_mtime_ns)
    return _Signature(inode, len(files), size, changed)
