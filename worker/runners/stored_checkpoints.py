"""Fetches a job's newest checkpoint from the artifact store, where another host has written it."""

import logging

from app.core.engine import workers
from app.core.jobs import checkpoints, queue
from app.core.jobs.checkpoints import NewestCheckpoint, StoredCheckpoint
from app.core.jobs.events import AnyEventData, Log, Warn
from app.core.jobs.queue import JobLease
from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from worker import checkpoint_folders
from worker.atomic_folders import appearing

log = logging.getLogger(__name__)


def restore(settings: Settings, database: Database, store: ArtifactStore, lease: JobLease) -> None:
    """Fetch the newest checkpoint where this host has none so new; record where the job starts earlier.

    Raises LeaseLost, StoreUnreachable, DiskFull, OSError.
    """
    with database.snapshot() as session:
        newest = checkpoints.find(session, lease.job_id)
    if newest.step is None and newest.stored is None:
        return
    parent = settings.job_folder(lease.job_id) / "checkpoints"
    entries: list[AnyEventData] = []
    is_lost = False

    def warn_damaged(step: int, damage: str) -> None:
        entries.append(
            Warn(code="checkpoint_damaged", message=checkpoint_folders.explain_damage(step, damage))
        )

    def find_step() -> int:
        found = checkpoint_folders.find_newest(parent, warn_damaged)
        return checkpoint_folders.step_of(found) if found else 0

    step = find_step()
    if newest.stored and newest.stored.step > step:
        is_lost = not _fetch(settings, store, lease, newest.stored)
        step = find_step()
        if step == newest.stored.step:
            entries.append(Log(message=f"The checkpoint of step {step} was fetched from the artifact store."))
        else:
            is_lost = True
    if newest.step and step < newest.step:
        entries.append(Warn(code="resumed_earlier", message=_explain(newest, step)))
    if entries:
        with database.transaction() as session:
            if is_lost:
                checkpoints.forget_stored(session, lease)
            queue.record(session, lease, entries)


def _fetch(settings: Settings, store: ArtifactStore, lease: JobLease, stored: StoredCheckpoint) -> bool:
    """Copy a checkpoint from the store; returns whether it was there."""
    files = store.list_files(stored.artifact)
    # The best adapters come first: a checkpoint that is there may name one.
    for kind, name in sorted({(path.split("/")[0], path.split("/")[1]) for path in files}):
        with appearing(settings.job_folder(lease.job_id) / kind / name) as folder:
            store.download(f"{stored.artifact}/{kind}/{name}", folder)
    if not files:
        log.warning("Job %s: the artifact store has lost %s", lease.job_id, stored.artifact)
    return bool(files)


def _explain(newest: NewestCheckpoint, step: int) -> str:
    is_here = newest.host == workers.name_host()
    place = "no longer on this machine" if is_here else f"on {newest.host} and nowhere else"
    start = f"step {step}" if step else "its start"
    return f"The newest checkpoint, of step {newest.step}, is {place}. The job goes on from {start}."
