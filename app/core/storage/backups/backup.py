"""Writes a backup as one tar: rows, datasets, adapters, checkpoints. Base models and exports are left out.

A backup may run while jobs do. The rows are those of one snapshot. Every file that they name is linked into a
staging folder before any is read; when one was deleted in between, another snapshot is taken. Files never
change once a row names them.
"""

import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, BinaryIO

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core.settings import Settings
from app.core.specs.states import AdapterState, JobState
from app.core.storage import tables
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.backups.row_copy import copy_rows, one_state
from app.core.storage.database import Database, migrate, refuse_newer
from app.core.storage.scratch import scratch_folder

DATABASE, ARTIFACTS, JOBS, MANIFEST = "tunesmith.db", "artifacts", "jobs", "manifest.json"
FORMAT = 1
# Subfolders of a job from which it resumes. What is in them is complete once its name has no dot.
RESUME_FOLDERS = ("checkpoints", "best-adapters")

_MAX_SNAPSHOTS = 5


@dataclass
class Summary:
    """What a backup contains; `lost` lists artifacts that rows name and the store does not have."""

    datasets: int = 0
    adapters: int = 0
    jobs: int = 0
    files: int = 0
    bytes: int = 0
    lost: list[str] = field(default_factory=list)


def write_backup(settings: Settings, target: BinaryIO) -> Summary:
    """Write the tar to a stream. Returns what it contains. Raises DatabaseTooNew."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with scratch_folder(settings.data_dir) as staging:
        summary = _gather(settings, staging)
        files = [path for path in sorted(staging.rglob("*")) if path.is_file()]
        checksums: dict[str, str] = {}
        with tarfile.open(fileobj=target, mode="w|", dereference=True) as tar:
            for path in files:
                name = path.relative_to(staging).as_posix()
                checksums[name] = _add(tar, path, name)
            summary.files, summary.bytes = len(files), sum(path.stat().st_size for path in files)
            # Written last: a tar that has it is complete.
            tar.add(_write_manifest(staging, summary, checksums), arcname=MANIFEST)
    return summary


def _gather(settings: Settings, staging: Path) -> Summary:
    database = Database(settings.database_url)
    store = ArtifactStore(settings.artifacts_url)
    try:
        refuse_newer(database)
        for _ in range(_MAX_SNAPSHOTS):
            summary = _stage_snapshot(settings, database, store, staging)
            if not summary.lost:
                break
    finally:
        database.close()
    return summary


def _stage_snapshot(settings: Settings, database: Database, store: ArtifactStore, staging: Path) -> Summary:
    """Put a copy of the rows, and links to the files that they name, into an empty staging folder."""
    for path in staging.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    _copy_database(database, staging / DATABASE)
    copied = Database(f"sqlite:///{staging / DATABASE}")
    try:
        with copied.snapshot() as session:
            summary = _count(session)
            for artifact in _named_artifacts(session):
                if not _link_artifact(store, artifact, staging):
                    summary.lost.append(artifact)
            job = tables.JobRow
            unfinished = select(job.id, job.stored_checkpoint).where(job.state != JobState.SUCCEEDED)
            for job_id, checkpoint in session.execute(unfinished):
                _link_job(settings, job_id, staging)
                # A running job may have replaced it meanwhile: without it, it starts earlier and says so.
                if checkpoint and not _link_artifact(store, checkpoint, staging):
                    shutil.rmtree(staging / ARTIFACTS / checkpoint, ignore_errors=True)
    finally:
        copied.close()
    return summary


def _copy_database(database: Database, path: Path) -> None:
    url = f"sqlite:///{path}"
    migrate(url)
    copy = Database(url)
    try:
        with one_state(database) as source, copy.engine.begin() as target:
            copy_rows(source, target)
    finally:
        copy.close()


def _named_artifacts(session: Session) -> Iterator[str]:
    # A dataset that is still being fetched from the Hub has no artifact yet.
    yield from session.scalars(select(tables.DatasetRow.artifact).where(tables.DatasetRow.artifact != ""))
    originals = select(tables.DatasetRow.original).where(tables.DatasetRow.original.is_not(None))
    yield from (original for original in session.scalars(originals) if original)
    yield from session.scalars(select(tables.AdapterRow.artifact))
    is_importing = tables.AdapterImportRow.state == AdapterState.IMPORTING
    yield from session.scalars(select(tables.AdapterImportRow.artifact).where(is_importing))


def _link_artifact(store: ArtifactStore, artifact: str, staging: Path) -> bool:
    """Returns False where the store does not have the artifact."""
    try:
        # From an object store it is downloaded; in a folder it is linked, which takes no disk space.
        target = staging / ARTIFACTS / artifact
        if store.local_folder:
            _link(store.local_folder / artifact, target)
        else:
            store.download(artifact, target)
    except FileNotFoundError:
        return False
    return True


def _link_job(settings: Settings, job_id: str, staging: Path) -> None:
    for kind in RESUME_FOLDERS:
        for folder in (settings.job_folder(job_id) / kind).glob("*"):
            target = staging / JOBS / job_id / kind / folder.name
            if "." in folder.name:
                continue  # still being written
            try:
                _link(folder, target)
            except FileNotFoundError:
                shutil.rmtree(target, ignore_errors=True)  # a newer checkpoint has replaced it


def _link(source: Path, target: Path) -> None:
    """Hard-link a file, or the files of a folder, so that deleting the source does not lose them.

    Copies where links are not possible. Raises FileNotFoundError.
    """
    files = [path for path in source.rglob("*") if path.is_file()] if source.is_dir() else [source]
    for path in files:
        link = target / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, link)
        except FileNotFoundError:
            raise
        except OSError:
            shutil.copyfile(path, link)  # another file system, or one without links


def _count(session: Session) -> Summary:
    def count(table: type[tables.Table]) -> int:
        return session.query(table).count()

    return Summary(count(tables.DatasetRow), count(tables.AdapterRow), count(tables.JobRow))


def _add(tar: tarfile.TarFile, path: Path, name: str) -> str:
    """Add a file to the tar. Returns the SHA-256 of the bytes that were written."""
    with path.open("rb") as file:
        hashed = HashingReader(file)
        tar.addfile(tar.gettarinfo(arcname=name, fileobj=file), hashed)
    return hashed.hexdigest()


class HashingReader:
    """A file that hashes what is read of it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Read at most `size` bytes."""
        found = self._file.read(size)
        self._hash.update(found)
        return found

    def hexdigest(self) -> str:
        """SHA-256 of what was read."""
        return self._hash.hexdigest()


def _write_manifest(staging: Path, summary: Summary, checksums: dict[str, str]) -> Path:
    path = staging / MANIFEST
    content = {
        "format": FORMAT,
        "made_at": datetime.now(UTC).isoformat(),
        "files": summary.files,
        "sha256": checksums,
    }
    path.write_text(json.dumps(content))
    return path
