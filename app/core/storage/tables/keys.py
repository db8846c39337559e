"""Rows of API keys, of what each has taken of its limits, and of what it has used."""

from datetime import date, datetime
from typing import Any

from sqlalchemy import BigInteger, Date, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.storage.tables.base import Table


class ApiKeyRow(Table):
    """A key; only its hash is stored. A limit that is null does not hold."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[Any]]
    requests_per_minute: Mapped[int | None]
    queued_jobs: Mapped[int | None]
    tokens_per_day: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class RequestWindowRow(Table):
    """How many requests of a key have been handed out to API processes in a minute, counted since 1970."""

    __tablename__ = "request_windows"

    key_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    minute: Mapped[int] = mapped_column(BigInteger)
    taken: Mapped[int]


class UsageRow(Table):
    """What a key has used of a model on a day (UTC). `key_id` is empty for requests without a stored key."""

    __tablename__ = "usage"

    key_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    day: Mapped[date] = mapped_column(Date, primary_key=True)
    model: Mapped[str] = mapped_column(String(400), primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    completion_tokens: Mapped[int] = mapped_column(BigInteger)
    training_tokens: Mapped[int] = mapped_column(BigInteger)
    training_seconds: Mapped[float]
    export_seconds: Mapped[float] = mapped_column(server_default="0")

    __table_args__ = (Index("ix_usage_day", "day"),)
