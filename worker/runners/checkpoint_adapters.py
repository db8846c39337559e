"""Adapters that a job keeps on its way: from the child's folder into the store, the oldest making room."""

import logging
import shutil

from sqlalchemy.orm import Session

from app.core.adapters import records as adapter_records
from app.core.errors.adapters import AdapterInUse
from app.core.jobs import queue
from app.core.jobs.events import Log
from app.core.jobs.queue import JobLease
from app.core.storage.artifacts import ArtifactStore
from worker.processes.lease_heartbeat import LeaseKeeper
from worker.processes.reports import Kept

log = logging.getLogger(__name__)


def deliver(store: ArtifactStore, keeper: LeaseKeeper, lease: JobLease, kept: Kept) -> None:
    """Store one, name it, and forget those past the spec's `keep_checkpoints`. Raises LeaseLost, OSError."""
    adapter_id, artifact = adapter_records.name_checkpoint_artifact(lease.job_id, kept.step)
    forgotten: list[str] = []

    def name(session: Session) -> None:
        forgotten.clear()
        known = {checkpoint.step for checkpoint in adapter_records.find_checkpoints(session, lease.job_id)}
        if kept.step in known:
            return  # An earlier attempt came this far: it has the same weights.
        adapter = adapter_records.add(
            session,
            adapter_id,
            spec=lease.spec,
            job_id=lease.job_id,
            artifact=artifact,
            size_bytes=size_bytes,
            step=kept.step,
        )
        said = Log(message=f"The adapter of step {kept.step} is kept and answers as {adapter.name}.")
        queue.record(session, lease, [said])
        forgotten.extend(_forget_oldest(session, lease))

    size_bytes = store.put_folder(artifact, kept.folder)
    keeper.write(name)
    for gone in forgotten:
        store.delete(gone)
    shutil.rmtree(kept.folder, ignore_errors=True)


def _forget_oldest(session: Session, lease: JobLease) -> list[str]:
    artifacts = []
    most = lease.spec.training.keep_checkpoints
    for checkpoint in adapter_records.find_checkpoints(session, lease.job_id)[most:]:
        try:
            artifacts.append(adapter_records.delete(session, checkpoint.id))
        except AdapterInUse as error:
            log.info("Job %s: %s", lease.job_id, error.message)
    return artifacts
