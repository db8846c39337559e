"""What job folders hold: checkpoints, TensorBoard files and logs; measured and removed. Knows no database."""

import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

# Checkpoints that are being copied into the artifact store.
OUTGOING = "outgoing-checkpoints"
# What only an interrupted job needs.
CHECKPOINTS = ("best-adapters", "checkpoints", "kept-adapters", OUTGOING)
# The files of trackers: W&B writes its own here.
TENSORBOARD = ("tensorboard", "wandb")
# Parts that are about to be deleted; one that a killed process has left is deleted with the next.
_REMOVED = ".removed-"


def size_of(path: Path) -> int:
    """Returns the size of a file, or of all files below a folder, in bytes. What vanishes meanwhile is 0."""
    try:
        if not path.is_dir():
            return path.stat().st_size
        return sum(size_of(Path(entry.path)) for entry in os.scandir(path) if not entry.is_symlink())
    except OSError:
        return 0


def find_parts(job_folder: Path, names: tuple[str, ...]) -> list[Path]:
    """Returns those of the folders that a job has, and leftovers of their deletion."""
    found = [job_folder / name for name in names if (job_folder / name).is_dir()]
    leftovers = [path for name in names for path in job_folder.glob(f"{name}{_REMOVED}*")]
    return found + leftovers


def find_logs(job_folder: Path) -> list[Path]:
    """Returns the logs of a job's attempts."""
    return sorted(job_folder.glob("attempt-*.log"))


def set_aside(parts: list[Path]) -> list[Path]:
    """Rename folders, which takes no time, so that no worker finds them. Returns what is to be deleted."""
    return list(_rename(parts))


def delete(paths: list[Path]) -> int:
    """Delete files and folders. Returns their size in bytes."""
    size = sum(map(size_of, paths))
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return size


def _rename(parts: list[Path]) -> Iterator[Path]:
    for part in parts:
        if _REMOVED in part.name or not part.is_dir():
            yield part
            continue
        target = part.with_name(f"{part.name}{_REMOVED}{secrets.token_hex(4)}")
        try:
            part.rename(target)
        except FileNotFoundError:
            continue
        yield target
