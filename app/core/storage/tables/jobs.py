"""Rows of jobs, of their attempts and of their events."""

from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.core.storage.tables.base import QueuedRow, Table

if TYPE_CHECKING:
    from app.core.storage.tables.adapters import AdapterRow
    from app.core.storage.tables.tracking import TrackedRunRow


class JobRow(QueuedRow, Table):
    """A job, its progress, and the lease of the worker that runs it.

    `result_bytes` is the size of its loss curve as OpenAI's result file; null where it was not measured yet.
    `queued_at` is when it last began to wait; null: when it was submitted. `checkpoint_step` and
    `checkpoint_host` are of the newest checkpoint that a worker wrote on its disk; `stored_checkpoint` is the
    key of the newest complete one in the artifact store, if any is there.
    """

    __tablename__ = "jobs"

    name: Mapped[str] = mapped_column(String(64))
    phase: Mapped[str | None] = mapped_column(String(16))
    base_model: Mapped[str] = mapped_column(String(200))
    dataset_id: Mapped[str] = mapped_column(String(32))
    gpus: Mapped[int] = mapped_column(default=1, server_default="1")

    step: Mapped[int] = mapped_column(default=0)
    total_steps: Mapped[int | None]
    epoch: Mapped[float | None]
    loss: Mapped[float | None]
    eta_seconds: Mapped[float | None]

    error_code: Mapped[str | None] = mapped_column(String(64))
    error_message: Mapped[str | None] = mapped_column(Text)
    error_hint: Mapped[str | None] = mapped_column(Text)

    cancel_requested_at: Mapped[datetime | None]
    pause_requested_at: Mapped[datetime | None]
    lost_attempts: Mapped[int] = mapped_column(default=0)
    last_event_seq: Mapped[int] = mapped_column(default=0)
    result_bytes: Mapped[int | None] = mapped_column(BigInteger)

    checkpoint_step: Mapped[int | None]
    checkpoint_host: Mapped[str | None] = mapped_column(String(48))
    stored_checkpoint: Mapped[str | None] = mapped_column(String(255))
    stored_checkpoint_step: Mapped[int | None]
    stored_checkpoint_bytes: Mapped[int | None] = mapped_column(BigInteger)

    queued_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    attempts: Mapped[list["AttemptRow"]] = relationship(order_by="AttemptRow.number", lazy="selectin")
    adapter: Mapped["AdapterRow | None"] = relationship(
        primaryjoin="and_(JobRow.id == foreign(AdapterRow.job_id), AdapterRow.step.is_(None))",
        lazy="selectin",
        viewonly=True,
        uselist=False,
    )
    tracked_runs: Mapped[list["TrackedRunRow"]] = relationship(
        lazy="selectin", viewonly=True, order_by="TrackedRunRow.tracker"
    )
    # Only for writing: a job and its first event are inserted together, in this order.
    events: Mapped[list["EventRow"]] = relationship(lazy="raise", passive_deletes="all")
    # The same as in the spec, for queries.
    metadata_rows: Mapped[list["JobMetadataRow"]] = relationship(
        lazy="raise", passive_deletes="all", order_by="JobMetadataRow.key"
    )

    __table_args__ = (
        Index("ix_jobs_state_created_at", "state", "created_at", "id"),
        Index("ix_jobs_created_at_id", "created_at", "id"),
        Index("ix_jobs_key_id_state", "key_id", "state"),
        Index("ix_jobs_key_id_taken_at", "key_id", "taken_at"),
        Index("ix_jobs_state_finished_at", "state", "finished_at", "id"),
    )


class JobMetadataRow(Table):
    """One entry of a job's metadata, by which jobs are found."""

    __tablename__ = "job_metadata"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(String(512))

    __table_args__ = (Index("ix_job_metadata_key_value", "key", "value", "job_id"),)


class AttemptRow(Table):
    """One attempt of one worker to run a job. `trained_tokens` are those of the job until its end."""

    __tablename__ = "attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    worker_id: Mapped[str] = mapped_column(String(64))
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    exit_reason: Mapped[str | None] = mapped_column(String(32))
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger)


class EventRow(Table):
    """One event of one job; `seq` counts from 1 within the job, without gaps."""

    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    level: Mapped[str] = mapped_column(String(8))
    type: Mapped[str] = mapped_column(String(16))
    data: Mapped[dict[str, Any]]
