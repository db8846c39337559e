"""Copies checkpoints of running jobs into the artifact store, so that workers of any host can resume them.

A checkpoint is complete on this machine first. It is copied in a thread, from hard links, which stay when the
trainer removes the checkpoint; the job's row names the copy once all of it is in the store.
"""

import contextlib
import logging
import os
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.core.engine import workers
from app.core.errors.storage import StoreUnreachable
from app.core.errors.work import LeaseLost
from app.core.jobs import checkpoints
from app.core.jobs.checkpoints import StoredCheckpoint
from app.core.jobs.queue import JobLease
from app.core.retention.folders import OUTGOING
from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from app.core.storage.outages import is_unavailable
from worker import checkpoint_folders
from worker.processes.lease_heartbeat import LeaseHeartbeat

log = logging.getLogger(__name__)

_RETRY_SECONDS, _MAX_RETRY_SECONDS = 1.0, 60.0


class CheckpointUploads:
    """The uploads of all running attempts of a worker, by the tokens of their leases."""

    def __init__(self, settings: Settings, database: Database, store: ArtifactStore) -> None:
        self._settings = settings
        self._database = database
        self._store = store
        self._uploads: dict[str, _Upload] = {}

    def add(self, lease: JobLease, heartbeat: LeaseHeartbeat, step: int) -> None:
        """Begin to copy a checkpoint that is complete in the job's folder, where other hosts need a copy."""
        if not self._is_wanted():
            return
        upload = self._uploads.get(lease.token)
        if upload is None:
            folder = self._settings.job_folder(lease.job_id)
            upload = self._uploads[lease.token] = _Upload(self._store, lease, heartbeat, folder)
        upload.add(step)

    def finish(self, lease: JobLease, timeout_seconds: float) -> None:
        """Wait until the newest checkpoint is in the store, at most so long; not for a store that is away."""
        upload = self._uploads.get(lease.token)
        if upload and not upload.finish(timeout_seconds):
            log.warning("Job %s: its last checkpoint is not in the artifact store", lease.job_id)

    def drop(self, lease: JobLease) -> None:
        """Begin no further copy for an attempt that has ended."""
        upload = self._uploads.pop(lease.token, None)
        if upload:
            upload.close()

    def _is_wanted(self) -> bool:
        """Whether the store reaches further than the checkpoint's own folder.

        It does not where it is a folder in the data folder, or where no other host has a worker that trains.
        """
        folder = self._store.local_folder
        if folder is None:
            return True
        if folder.is_relative_to(self._settings.data_dir):
            return False
        try:
            with self._database.snapshot() as session:
                alive = workers.find_alive(session, lease_seconds=self._settings.lease_seconds, role="train")
        except SQLAlchemyError as error:
            if not is_unavailable(error):
                raise
            return True  # a copy that nobody needs does no harm
        return any(workers.host_of(worker.id) != workers.name_host() for worker in alive)


@dataclass(frozen=True)
class _Copy:
    """Hard links to the files of a checkpoint, and to the best adapters that it may name."""

    step: int
    folder: Path


class _Upload:
    """Copies the checkpoints of one attempt, one at a time; of those that wait, only the newest."""

    def __init__(
        self, store: ArtifactStore, lease: JobLease, heartbeat: LeaseHeartbeat, job_folder: Path
    ) -> None:
        self._store = store
        self._lease = lease
        self._heartbeat = heartbeat
        self._job_folder = job_folder
        self._outgoing = job_folder / OUTGOING
        self._changed = threading.Condition()
        self._waiting: _Copy | None = None
        self._is_copying = False
        self._is_finishing = False
        self._is_closed = False
        # What a killed worker left.
        shutil.rmtree(self._outgoing, ignore_errors=True)
        threading.Thread(target=self._run, daemon=True, name=f"checkpoints of {lease.job_id}").start()

    def add(self, step: int) -> None:
        try:
            copy = self._link(step)
        except OSError as error:
            # A full disk, say; or the trainer has written two newer ones meanwhile.
            log.warning(
                "Job %s: the checkpoint of step %d is not stored: %s", self._lease.job_id, step, error
            )
            return
        with self._changed:
            replaced, self._waiting = self._waiting, copy
            self._changed.notify_all()
        if replaced:
            shutil.rmtree(replaced.folder, ignore_errors=True)

    def finish(self, timeout_seconds: float) -> bool:
        """Returns whether all that was added is in the store."""
        with self._changed:
            self._is_finishing = True
            self._changed.notify_all()
            self._changed.wait_for(self._is_idle, timeout_seconds)
            return self._is_idle() and not self._is_closed

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _is_idle(self) -> bool:
        return self._is_closed or (self._waiting is None and not self._is_copying)

    def _run(self) -> None:
        delay = _RETRY_SECONDS
        while copy := self._take():
            try:
                self._upload(copy)
                delay = _RETRY_SECONDS
            except StoreUnreachable as error:
                log.warning(
                    "Job %s: its checkpoint is to be stored later: %s", self._lease.job_id, error.message
                )
                self._put_back(copy, delay)
                delay = min(2 * delay, _MAX_RETRY_SECONDS)
                continue
            except LeaseLost:
                self.close()
            except Exception:  # the job goes on; its next checkpoint is copied
                if not self._is_closed:
                    log.exception("Job %s: a checkpoint could not be stored", self._lease.job_id)
            shutil.rmtree(copy.folder, ignore_errors=True)
            with self._changed:
                self._is_copying = False
                self._changed.notify_all()
        shutil.rmtree(self._outgoing, ignore_errors=True)

    def _take(self) -> _Copy | None:
        """Wait for a checkpoint; returns None once the attempt has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            if self._is_closed:
                return None
            copy, self._waiting, self._is_copying = self._waiting, None, True
            return copy

    def _put_back(self, copy: _Copy, delay_seconds: float) -> None:
        """Copy it again after a while, or a newer one that was added meanwhile; at the end give it up."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_finishing or self._is_closed, delay_seconds)
            self._is_copying = False
            if self._is_finishing or self._is_closed:
                self._is_closed = True
            elif self._waiting is None:
                self._waiting = copy
            self._changed.notify_all()
        if self._waiting is not copy:
            shutil.rmtree(copy.folder, ignore_errors=True)

    def _upload(self, copy: _Copy) -> None:
        stored = StoredCheckpoint(checkpoints.name_artifact(self._lease, copy.step), copy.step)
        before: list[str | None] = []

        def name(session: Session) -> None:
            before[:] = [checkpoints.record_stored(session, self._lease, stored, size_bytes)]

        try:
            size_bytes = self._store.put_folder(stored.artifact, copy.folder)
            self._heartbeat.write(name)
        except BaseException:
            with contextlib.suppress(Exception):
                self._store.discard(stored.artifact)
            raise
        log.info("Job %s: the checkpoint of step %d is in the store", self._lease.job_id, copy.step)
        if before[0]:
            self._store.discard(before[0])

    def _link(self, step: int) -> _Copy:
        """Link the files of a checkpoint. Raises OSError."""
        folder = self._outgoing / f"step-{step}"
        parts = [checkpoint_folders.folder_of(self._job_folder / "checkpoints", step)]
        parts += [path for path in (self._job_folder / "best-adapters").glob("step-*") if path.suffix == ""]
        try:
            for part in parts:
                target = folder / part.relative_to(self._job_folder)
                shutil.copytree(part, target, copy_function=_link_or_copy)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return _Copy(step, folder)


def _link_or_copy(source: str, target: str) -> None:
    """Link a file, or copy it where the file system has no hard links."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy2(source, target)
