"""Rows of a job's runs in experiment trackers."""

from sqlalchemy import ForeignKey, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.storage.tables.base import Table


class TrackedRunRow(Table):
    """A job's run in one tracker, and how much of the job it has.

    `token` is that of the worker's lease under which the run is written: each write is guarded by it.
    `seq` is that of the last event delivered; `step` and `eval_step` are of the last points.
    """

    __tablename__ = "tracked_runs"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    tracker: Mapped[str] = mapped_column(String(16), primary_key=True)
    token: Mapped[str] = mapped_column(String(32))
    run_id: Mapped[str | None] = mapped_column(String(128))
    url: Mapped[str | None] = mapped_column(Text)
    seq: Mapped[int] = mapped_column(default=0)
    step: Mapped[int] = mapped_column(default=-1)
    eval_step: Mapped[int] = mapped_column(default=-1)
    points: Mapped[int] = mapped_column(default=0)
    problem: Mapped[str | None] = mapped_column(Text)
    is_complete: Mapped[bool] = mapped_column(default=False)
