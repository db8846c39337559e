"""Rows of downloads of base models."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.storage.tables.base import CountedRow, Table


class ModelDownloadRow(CountedRow, Table):
    """A download of a base model of the Hub, the lease of the worker that runs it, and how far it is."""

    __tablename__ = "model_downloads"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    base_model: Mapped[str] = mapped_column(String(200))
    state: Mapped[str] = mapped_column(String(16), index=True)
    done_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    total_bytes: Mapped[int | None] = mapped_column(BigInteger)
    error: Mapped[dict[str, Any] | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    __table_args__ = (Index("ix_model_downloads_created_at_id", "created_at", "id"),)
