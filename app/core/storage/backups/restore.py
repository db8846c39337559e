"""Restores a backup into an empty Tunesmith, on SQLite or PostgreSQL, on a folder or an object store.

Files are restored first, rows last and in one transaction: an interruption leaves no row without its file.
"""

import json
import shutil
import tarfile
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from app.core.errors.storage import BackupUnusable, NotEmpty
from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.backups.backup import ARTIFACTS, DATABASE, FORMAT, JOBS, MANIFEST, HashingReader
from app.core.storage.backups.row_copy import copy_rows, is_empty, one_state
from app.core.storage.database import Database, migrate
from app.core.storage.scratch import scratch_folder


def restore_backup(settings: Settings, source: BinaryIO) -> bool:
    """Read a backup's tar from a stream and restore its files and rows.

    Returns whether the backup has checksums: those of earlier versions have none. Raises NotEmpty where the
    database has rows, BackupUnusable where the tar is not a complete backup or a file of it has changed, and
    DatabaseTooNew where the backup or the database is of a newer version.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    migrate(settings.database_url)
    database = Database(settings.database_url)
    try:
        _refuse_rows(database)
        with scratch_folder(settings.data_dir) as staging:
            is_checked = _unpack(source, staging)
            # A backup of an older version: its schema is brought to this version before its rows are read.
            migrate(f"sqlite:///{staging / DATABASE}")
            _place_artifacts(ArtifactStore(settings.artifacts_url), staging / ARTIFACTS)
            _place_jobs(settings, staging / JOBS)
            _place_rows(database, staging / DATABASE)
    finally:
        database.close()
    return is_checked


def _refuse_rows(database: Database) -> None:
    with one_state(database) as connection:
        if not is_empty(connection):
            raise NotEmpty(hint="Restore into a new data folder or volume, and a new database.")


def _unpack(source: BinaryIO, staging: Path) -> bool:
    """Write the files of the tar, and compare them with its manifest. Returns whether it has checksums."""
    checksums: dict[str, str] = {}
    try:
        with tarfile.open(fileobj=source, mode="r|*") as tar:
            for member in tar:
                content = tar.extractfile(member)
                if content is None or not _is_ours(member.name):
                    raise BackupUnusable(f"This is not a backup of Tunesmith: it holds {member.name!r}.")
                path = staging / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                hashed = HashingReader(content)
                with path.open("wb") as file:
                    shutil.copyfileobj(hashed, file)
                checksums[member.name] = hashed.hexdigest()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise BackupUnusable(f"The backup can't be read: {error}") from error
    checksums.pop(MANIFEST, None)
    return _check_manifest(staging / MANIFEST, checksums)


def _is_ours(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return ".." not in parts and (name in (DATABASE, MANIFEST) or parts[0] in (ARTIFACTS, JOBS))


def _check_manifest(path: Path, checksums: dict[str, str]) -> bool:
    if not path.is_file():
        raise BackupUnusable("The backup is not whole: its end is missing.")
    try:
        manifest = json.loads(path.read_bytes())
        made_by, files, expected = manifest["format"], manifest["files"], manifest.get("sha256")
        if not isinstance(expected, dict | None):
            raise TypeError(expected)
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
        raise BackupUnusable("The backup is damaged: its manifest can't be read.") from None
    if made_by != FORMAT or files != len(checksums):
        raise BackupUnusable(
            f"The backup is not whole, or of another version: its manifest names {files} files of format "
            f"{made_by}, and {len(checksums)} were found."
        )
    if expected is None:
        return False
    if changed := sorted(name for name, found in checksums.items() if expected.get(name) != found):
        raise BackupUnusable(
            f"The backup is damaged: {changed[0]} is not what was written"
            + (f", nor are {len(changed) - 1} other files." if changed[1:] else "."),
            hint="Take another copy of the backup, or another backup.",
        )
    return True


def _place_artifacts(store: ArtifactStore, folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            store.put_file(path.relative_to(folder).as_posix(), path)
            path.unlink()  # so that the disk never holds two copies of everything


def _place_jobs(settings: Settings, folder: Path) -> None:
    for source in folder.glob("*"):
        shutil.copytree(source, settings.job_folder(source.name), dirs_exist_ok=True)


def _place_rows(database: Database, path: Path) -> None:
    backup = Database(f"sqlite:///{path}")
    try:
        with one_state(backup) as source, database.engine.begin() as target:
            copy_rows(source, target)
    finally:
        backup.close()
