"""Rows of jobs, of their attempts and of their events."""

from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.core.specs.states import JobState
from app.core.storage.tables.base import LeasedRow, Table

if TYPE_CHECKING:
    from app.core.storage.tables.adapters import AdapterRow


class JobRow(LeasedRow, Table):
    """A job, its progress, and the lease of the worker that runs it."""

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16), default=JobState.QUEUED)
    phase: Mapped[str | None] = mapped_column(String(16))
    spec: Mapped[dict[str, Any]]
    base_model: Mapped[str] = mapped_column(String(200))
    dataset_id: Mapped[str] = mapped_column(String(32))

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

    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    attempts: Mapped[list["AttemptRow"]] = relationship(order_by="AttemptRow.number", lazy="selectin")
    adapter: Mapped["AdapterRow | None"] = relationship(
        primaryjoin="and_(JobRow.id == foreign(AdapterRow.job_id), AdapterRow.step.is_(None))",
        lazy="selectin",
        viewonly=True,
        uselist=False,
    )
    # Only for writing: a job and its first event are inserted together, in this order.
    events: Mapped[list["EventRow"]] = relationship(lazy="raise", passive_deletes="all")

    __table_args__ = (
        Index("ix_jobs_state_created_at", "state", "created_at", "id"),
        Index("ix_jobs_created_at_id", "created_at", "id"),
    )


class AttemptRow(Table):
    """One attempt of one worker to run a job."""

    __tablename__ = "attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    worker_id: Mapped[str] = mapped_column(String(64))
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    exit_reason: Mapped[str | None] = mapped_column(String(32))


class EventRow(Table):
    """One event of one job; `seq` counts from 1 within the job, without gaps."""

    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    level: Mapped[str] = mapped_column(String(8))
    type: Mapped[str] = mapped_column(String(16))
    data: Mapped[dict[str, Any]]
