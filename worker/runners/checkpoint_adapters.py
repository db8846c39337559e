"""Checkpoint adapters: from the child's folder into the store; the oldest are removed."""

import logging
import shutil

from sqlalchemy.orm import Session

from app.core.adapters import records as adapter_records
from app.core.adapters.files import recorded_general_path
from app.core.errors.adapters import AdapterInUse
from app.core.jobs import queue
from app.core.jobs.events import Log
from app.core.jobs.queue import JobLease
from app.core.storage.artifacts import ArtifactStore
from worker.processes.lease_heartbeat import LeaseHeartbeat
from worker.processes.reports import CheckpointAdapterSaved

log = logging.getLogger(__name__)


def deliver(
    store: ArtifactStore, heartbeat: LeaseHeartbeat, lease: JobLease, saved: CheckpointAdapterSaved
) -> None:
    """Store an adapter, add its row, and delete those past the spec's `keep_checkpoints`.

    Raises LeaseLost, OSError.
    """
    adapter_id, artifact = adapter_records.name_checkpoint_artifact(lease.job_id, saved.step)
    deleted: list[str] = []

    def add(session: Session) -> None:
        deleted.clear()
        known = {checkpoint.step for checkpoint in adapter_records.find_checkpoints(session, lease.job_id)}
        if saved.step in known:
            return  # An earlier attempt came this far: it has the same weights.
        adapter = adapter_records.add(
            session,
            adapter_id,
            spec=lease.spec,
            job_id=lease.job_id,
            artifact=artifact,
            size_bytes=size_bytes,
            step=saved.step,
            general_path=general_path,
        )
        line = Log(message=f"The adapter of step {saved.step} is kept and answers as {adapter.name}.")
        queue.record(session, lease, [line])
        deleted.extend(_delete_oldest(session, lease))

    general_path = recorded_general_path(saved.folder)
    size_bytes = store.put_folder(artifact, saved.folder)
    heartbeat.write(add)
    for key in deleted:
        store.discard(key)
    shutil.rmtree(saved.folder, ignore_errors=True)


def _delete_oldest(session: Session, lease: JobLease) -> list[str]:
    artifacts = []
    most = lease.spec.training.keep_checkpoints
    for checkpoint in adapter_records.find_checkpoints(session, lease.job_id)[most:]:
        try:
            artifacts.append(adapter_records.delete(session, checkpoint.id))
        except AdapterInUse as error:
            log.info("Job %s: %s", lease.job_id, error.message)
    return artifacts
