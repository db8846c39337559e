"""Rows of adapters, and of imports that have not become adapters yet."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, select
from sqlalchemy.orm import Mapped, column_property, mapped_column

from app.core.storage.tables.base import Table
from app.core.storage.tables.jobs import JobRow


class AdapterRow(Table):
    """A LoRA adapter that can be served, and the key of its files.

    `step` is set for an adapter of a job's checkpoint. `origin` has the LoRA settings and the chat template
    of an imported adapter, as far as they are known. `general_path` says why the engine serves it on its
    general path; it is empty where the paged one does, and null where that is not known.
    """

    __tablename__ = "adapters"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(400), unique=True)
    base_model: Mapped[str] = mapped_column(String(200))
    quantization: Mapped[dict[str, Any]]
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"), index=True)
    step: Mapped[int | None]
    origin: Mapped[dict[str, Any] | None]
    general_path: Mapped[list[Any] | None]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    artifact: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[datetime]

    # Read with the adapter, so that a list of adapters needs no query for each.
    job_name: Mapped[str | None] = column_property(
        select(JobRow.name).where(JobRow.id == job_id).scalar_subquery()
    )
    dataset_id: Mapped[str | None] = column_property(
        select(JobRow.dataset_id).where(JobRow.id == job_id).scalar_subquery()
    )

    __table_args__ = (
        Index("ix_adapters_created_at_id", "created_at", "id"),
        Index("ix_adapters_base_model", "base_model"),
    )


class AdapterImportRow(Table):
    """An adapter that was trained elsewhere and is not verified yet, or failed verification.

    `origin` is as in `adapters`; `error` says why it failed, or what it waits for.
    """

    __tablename__ = "adapter_imports"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(80), index=True)
    state: Mapped[str] = mapped_column(String(16), index=True)
    error: Mapped[dict[str, Any] | None]
    lost_attempts: Mapped[int] = mapped_column(default=0)
    base_model: Mapped[str] = mapped_column(String(200))
    quantization: Mapped[dict[str, Any]]
    origin: Mapped[dict[str, Any]]
    artifact: Mapped[str] = mapped_column(String(255))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]

    __table_args__ = (Index("ix_adapter_imports_created_at_id", "created_at", "id"),)
