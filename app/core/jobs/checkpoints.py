"""What a job's row says of its newest checkpoint: the host that wrote it, and its copy in the artifact store.

Nothing here commits or touches files.
"""

from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.core.jobs.queue import LEASES, JobLease
from app.core.storage import tables


@dataclass(frozen=True)
class StoredCheckpoint:
    """A complete checkpoint in the artifact store."""

    artifact: str
    step: int


@dataclass(frozen=True)
class NewestCheckpoint:
    """The newest checkpoint that a worker wrote, and the newest in the store. Both may be None."""

    step: int | None
    host: str | None
    stored: StoredCheckpoint | None


def name_folder(job_id: str) -> str:
    """Returns the key of the folder of all checkpoints of a job in the store."""
    return f"checkpoints/{job_id}"


def name_artifact(lease: JobLease, step: int) -> str:
    """Returns the key of a checkpoint in the store: no two attempts write the same files."""
    return f"{name_folder(lease.job_id)}/attempt-{lease.attempt}-step-{step}"


def find(session: Session, job_id: str) -> NewestCheckpoint:
    """Returns what the job's row says, which is nothing where there is no such job."""
    row = tables.JobRow
    columns = (row.checkpoint_step, row.checkpoint_host, row.stored_checkpoint, row.stored_checkpoint_step)
    found = session.execute(select(*columns).where(row.id == job_id)).one_or_none()
    if found is None:
        return NewestCheckpoint(None, None, None)
    step, host, artifact, stored_step = found
    return NewestCheckpoint(step, host, StoredCheckpoint(artifact, stored_step or 0) if artifact else None)


def record_written(session: Session, lease: JobLease, step: int, host: str) -> None:
    """A worker of this host has written a checkpoint. Raises LeaseLost."""
    LEASES.update(session, lease, checkpoint_step=step, checkpoint_host=host)


def record_stored(session: Session, lease: JobLease, stored: StoredCheckpoint, size_bytes: int) -> str | None:
    """Name a checkpoint that is complete in the store. Returns the key of the one before.

    Raises LeaseLost.
    """
    LEASES.hold(session, lease)
    before = find(session, lease.job_id).stored
    LEASES.update(
        session,
        lease,
        stored_checkpoint=stored.artifact,
        stored_checkpoint_step=stored.step,
        stored_checkpoint_bytes=size_bytes,
    )
    return before.artifact if before and before.artifact != stored.artifact else None


def forget_stored(session: Session, lease: JobLease) -> None:
    """Name no checkpoint in the store any more: it is not there, or is damaged. Raises LeaseLost."""
    LEASES.update(session, lease, **dict.fromkeys(_STORED))


def find_stored_sizes(session: Session) -> dict[str, int]:
    """Returns the sizes of the checkpoints in the store, in bytes, by job."""
    row = tables.JobRow
    found = session.execute(
        select(row.id, row.stored_checkpoint_bytes).where(row.stored_checkpoint.is_not(None))
    )
    return {job_id: size or 0 for job_id, size in found}


def forget_all(session: Session, job_id: str) -> None:
    """Record that a job has no checkpoints any more. Their files are the caller's to delete."""
    nothing = dict.fromkeys(("checkpoint_step", "checkpoint_host", *_STORED))
    session.execute(update(tables.JobRow).where(tables.JobRow.id == job_id).values(**nothing))


_STORED = ("stored_checkpoint", "stored_checkpoint_step", "stored_checkpoint_bytes")
