"""Folders of checkpoints: complete or absent, and compared with their manifest before they are used.

Knows of a checkpoint's files only that a manifest lists them, with size and checksum. Imports no torch: the
worker moves checkpoints between hosts.
"""

import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import BaseModel

from worker import atomic_folders

MAX_CHECKPOINTS = 2
_MANIFEST = "manifest.json"
_CHUNK_BYTES = 1 << 22


class _File(BaseModel):
    """Size and checksum of a file. CRC-32 is as fast as the disk; it need not resist forgery."""

    size: int
    crc32: int


class _Manifest(BaseModel):
    files: dict[str, _File]


def folder_of(parent: Path, step: int) -> Path:
    """Returns the folder of a step's checkpoint."""
    return parent / f"checkpoint-{step}"


def step_of(folder: Path) -> int:
    """Returns the optimizer step at which a checkpoint was taken."""
    return int(folder.name.rpartition("-")[2])


def seal(folder: Path) -> None:
    """Write the manifest, which is the last file of a checkpoint."""
    files = {str(path.relative_to(folder)): _describe(path) for path in _files(folder)}
    (folder / _MANIFEST).write_text(_Manifest(files=files).model_dump_json())


def find_newest(parent: Path, report_damaged: Callable[[int, str], None]) -> Path | None:
    """Returns the newest intact checkpoint. Damaged ones are removed, and reported with step and damage.

    A damaged checkpoint that stayed would count as newer than those written after resuming before it.
    """
    if not parent.is_dir():
        return None
    atomic_folders.remove_partial(parent)
    for folder in reversed(list_by_age(parent)):
        damage = find_damage(folder)
        if damage is None:
            return folder
        report_damaged(step_of(folder), damage)
        shutil.rmtree(folder, ignore_errors=True)
    return None


def remove_older(parent: Path) -> None:
    """Remove all but the newest two checkpoints: the second is a fallback should the first be damaged."""
    for folder in list_by_age(parent)[:-MAX_CHECKPOINTS]:
        shutil.rmtree(folder, ignore_errors=True)


def list_by_age(parent: Path) -> list[Path]:
    """Returns the folders of all checkpoints, the oldest step first."""
    found = [path for path in parent.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    return sorted(found, key=step_of)


def find_damage(folder: Path) -> str | None:
    """Returns how a checkpoint differs from its manifest; None where it does not."""
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


def explain_damage(step: int, damage: str) -> str:
    """Returns the warning about a damaged checkpoint."""
    return (
        f"The checkpoint of step {step} is damaged and was removed: {damage}. The job goes on from the "
        "one before it, or else from the start."
    )


def _describe(path: Path) -> _File:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            checksum = zlib.crc32(chunk, checksum)
    return _File(size=path.stat().st_size, crc32=checksum)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
