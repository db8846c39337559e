"""Everything that a Tunesmith holds as one tar: rows, datasets, adapters, checkpoints. Base models stay out.

It may run while jobs do. The rows are those of one moment; every file that they name is held by a link before
any is read, and when one was deleted in between, another moment is taken. Files never change once named.
"""

import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core.settings import Settings
from app.core.specs.states import AdapterState, JobState
from app.core.storage import tables
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database, migrate
from app.core.storage.row_copy import copy_rows, one_state

DATABASE, ARTIFACTS, JOBS, MANIFEST = "tunesmith.db", "artifacts", "jobs", "manifest.json"
FORMAT = 1
# What only a job that has not succeeded needs. Their folders appear whole, under names without a dot.
RESUME_FOLDERS = ("checkpoints", "best-adapters")

_MOMENTS = 5


@dataclass
class Summary:
    """What went into a backup."""

    datasets: int = 0
    adapters: int = 0
    jobs: int = 0
    files: int = 0
    bytes: int = 0
    lost: list[str] = field(default_factory=list)


def write_backup(settings: Settings, target: BinaryIO) -> Summary:
    """Write the tar to a stream. `lost` in the answer names artifacts that rows name and the store lacks."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=settings.data_dir, prefix="backup-") as scratch:
        staging = Path(scratch)
        summary = _gather(settings, staging)
        files = [path for path in sorted(staging.rglob("*")) if path.is_file()]
        with tarfile.open(fileobj=target, mode="w|", dereference=True) as tar:
            for path in files:
                tar.add(path, arcname=path.relative_to(staging).as_posix())
            summary.files, summary.bytes = len(files), sum(path.stat().st_size for path in files)
            # The last member: a tar that has it is whole.
            tar.add(_write_manifest(staging, summary), arcname=MANIFEST)
    return summary


def _gather(settings: Settings, staging: Path) -> Summary:
    database = Database(settings.database_url)
    store = ArtifactStore(settings.artifacts_url)
    try:
        for _ in range(_MOMENTS):
            summary = _take_moment(settings, database, store, staging)
            if not summary.lost:
                break
    finally:
        database.close()
    return summary


def _take_moment(settings: Settings, database: Database, store: ArtifactStore, staging: Path) -> Summary:
    for path in staging.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    _copy_database(database, staging / DATABASE)
    moment = Database(f"sqlite:///{staging / DATABASE}")
    try:
        with moment.snapshot() as session:
            summary = _count(session)
            for artifact in _named_artifacts(session):
                if not _hold_artifact(store, artifact, staging):
                    summary.lost.append(artifact)
            for job_id in session.scalars(
                select(tables.JobRow.id).where(tables.JobRow.state != JobState.SUCCEEDED)
            ):
                _hold_job(settings, job_id, staging)
    finally:
        moment.close()
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
    # A dataset that is still being fetched from the Hub has none yet.
    yield from session.scalars(select(tables.DatasetRow.artifact).where(tables.DatasetRow.artifact != ""))
    originals = select(tables.DatasetRow.original).where(tables.DatasetRow.original.is_not(None))
    yield from (original for original in session.scalars(originals) if original)
    yield from session.scalars(select(tables.AdapterRow.artifact))
    unproved = tables.AdapterImportRow.state == AdapterState.IMPORTING
    yield from session.scalars(select(tables.AdapterImportRow.artifact).where(unproved))


def _hold_artifact(store: ArtifactStore, artifact: str, staging: Path) -> bool:
    try:
        # From an object store it is fetched; in a folder it is linked, which takes neither time nor room.
        found = store.fetch(artifact, staging / ARTIFACTS)
        held = staging / ARTIFACTS / artifact
        if found != held:
            _hold(found, held)
    except FileNotFoundError:
        return False
    return True


def _hold_job(settings: Settings, job_id: str, staging: Path) -> None:
    for kind in RESUME_FOLDERS:
        for folder in (settings.job_folder(job_id) / kind).glob("*"):
            held = staging / JOBS / job_id / kind / folder.name
            if "." in folder.name:
                continue  # still being written
            try:
                _hold(folder, held)
            except FileNotFoundError:
                shutil.rmtree(held, ignore_errors=True)  # a newer one has taken its place


def _hold(source: Path, held: Path) -> None:
    """Keep a file, or the files of a folder, from going away. Raises FileNotFoundError."""
    files = [path for path in source.rglob("*") if path.is_file()] if source.is_dir() else [source]
    for path in files:
        target = held / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target)
        except FileNotFoundError:
            raise
        except OSError:
            shutil.copyfile(path, target)  # another file system, or one without links


def _count(session: Session) -> Summary:
    def count(table: type[tables.Table]) -> int:
        return session.query(table).count()

    return Summary(count(tables.DatasetRow), count(tables.AdapterRow), count(tables.JobRow))


def _write_manifest(staging: Path, summary: Summary) -> Path:
    path = staging / MANIFEST
    content = {"format": FORMAT, "made_at": datetime.now(UTC).isoformat(), "files": summary.files}
    path.write_text(json.dumps(content))
    return path
