"""Checkpoints of a job on disk: complete or absent, and verified before they are used.

Does not know a checkpoint's files except for three: the job's counters, the last events that it sent, and a
manifest of all files.
"""

import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import BaseModel

from worker import atomic_folders
from worker.training.progress.counters import Counters
from worker.training.progress.history import History

MAX_CHECKPOINTS = 2
_PROGRESS = "progress.json"
_HISTORY = "history.json"
_MANIFEST = "manifest.json"
_CHUNK_BYTES = 1 << 22


class _File(BaseModel):
    """Size and checksum of a file. CRC-32 is as fast as the disk; it need not resist forgery."""

    size: int
    crc32: int


class _Manifest(BaseModel):
    files: dict[str, _File]


def folder_of(parent: Path, step: int) -> Path:
    """The folder of a step's checkpoint."""
    return parent / f"checkpoint-{step}"


def step_of(folder: Path) -> int:
    """The optimizer step at which a checkpoint was taken."""
    return int(folder.name.rpartition("-")[2])


def seal(folder: Path, counters: Counters, history: History) -> None:
    """Write the counters, the events and, last, the manifest."""
    (folder / _PROGRESS).write_text(counters.model_dump_json())
    (folder / _HISTORY).write_text(history.model_dump_json())
    files = {str(path.relative_to(folder)): _describe(path) for path in _files(folder)}
    (folder / _MANIFEST).write_text(_Manifest(files=files).model_dump_json())


def find_newest(parent: Path, report_damaged: Callable[[int, str], None]) -> Path | None:
    """The newest intact checkpoint. Damaged ones are removed, and reported with their step and the damage.

    A damaged checkpoint that stayed would count as newer than those written after resuming before it.
    """
    if not parent.is_dir():
        return None
    atomic_folders.remove_partial(parent)
    for folder in reversed(_by_age(parent)):
        damage = _find_damage(folder)
        if damage is None:
            return folder
        report_damaged(step_of(folder), damage)
        shutil.rmtree(folder, ignore_errors=True)
    return None


def remove_older(parent: Path) -> None:
    """Remove all but the newest two checkpoints: the second is a fallback should the first be damaged."""
    for folder in _by_age(parent)[:-MAX_CHECKPOINTS]:
        shutil.rmtree(folder, ignore_errors=True)


def read_counters(folder: Path) -> Counters:
    """The counters of a checkpoint."""
    return Counters.model_validate_json((folder / _PROGRESS).read_text())


def read_history(folder: Path) -> History:
    """The last events that were sent before a checkpoint."""
    return History.model_validate_json((folder / _HISTORY).read_text())


def read_all_counters(parent: Path) -> list[Counters]:
    """The counters of every checkpoint in a folder."""
    return [read_counters(folder) for folder in _by_age(parent)]


def _by_age(parent: Path) -> list[Path]:
    found = [path for path in parent.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    return sorted(found, key=step_of)


def _find_damage(folder: Path) -> str | None:
    try:
        manifest = _Manifest.model_validate_json((folder / _MANIFEST).read_text())
        for name, expected in manifest.files.items():
            size = (folder / name).stat().st_size
            if size != expected.size:
                return f"{name} has {size:,} bytes instead of {expected.size:,}"
            if _describe(folder / name) != expected:
                return f"{name} is not what was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError) as error:
        return f"it can't be read: {error}"
    return None


def _describe(path: Path) -> _File:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            checksum = zlib.crc32(chunk, checksum)
    return _File(size=path.stat().st_size, crc32=checksum)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
