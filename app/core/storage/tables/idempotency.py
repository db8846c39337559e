"""Rows of requests that must not be carried out twice."""

from datetime import datetime

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.storage.tables.base import Table


class IdempotencyKeyRow(Table):
    """What a request made, so that a repetition makes nothing new. `Identity.id` says what `id` is."""

    __tablename__ = "idempotency_keys"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    body_sha256: Mapped[str] = mapped_column(String(64))
    resource_id: Mapped[str] = mapped_column(String(64))
    retries: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(index=True)
