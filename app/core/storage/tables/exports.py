"""Rows of exports."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.storage.tables.base import CountedRow, QueuedRow, Table


class ExportRow(QueuedRow, CountedRow, Table):
    """An export of an adapter to another format, the lease of the worker that makes it, and its files.

    `job_id` is that of a job that asked for it, by `push_to_hub`. A row outlives its adapter, so it has the
    adapter's name and base model too.
    """

    __tablename__ = "exports"

    adapter_id: Mapped[str] = mapped_column(String(32), index=True)
    adapter_name: Mapped[str] = mapped_column(String(400))
    base_model: Mapped[str] = mapped_column(String(200))
    job_id: Mapped[str | None] = mapped_column(String(32), index=True)
    phase: Mapped[str | None] = mapped_column(String(16))
    progress: Mapped[float] = mapped_column(default=0.0)
    agreement: Mapped[dict[str, Any] | None]
    notes: Mapped[list[Any]]
    files: Mapped[list[Any]]
    url: Mapped[str | None] = mapped_column(String(600))
    artifact: Mapped[str | None] = mapped_column(String(255))
    error: Mapped[dict[str, Any] | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        Index("ix_exports_state_created_at", "state", "created_at", "id"),
        Index("ix_exports_created_at_id", "created_at", "id"),
        Index("ix_exports_key_id_state", "key_id", "state"),
        Index("ix_exports_key_id_taken_at", "key_id", "taken_at"),
    )
