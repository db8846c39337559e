"""The base of all tables, and how times are stored."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, Dialect, String, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC. SQLite stores no time zone, so UTC is set again when a value is read."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.replace(tzinfo=UTC) if value and value.tzinfo is None else value


class Table(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map = {  # noqa: RUF012  (SQLAlchemy reads it from the class)
        datetime: UtcDateTime,
        dict[str, Any]: JSON,
        list[Any]: JSON,
    }


class LeasedRow:
    """The columns of work that a worker claims: the lease is how one worker at a time owns it."""

    lease_token: Mapped[str | None] = mapped_column(String(32))
    lease_expires_at: Mapped[datetime | None]
    created_at: Mapped[datetime]


class QueuedRow(LeasedRow):
    """The columns of work that waits for its turn (app/core/work/turns.py).

    `spec` is what was submitted, as JSON. `key_id` is the API key that submitted it, empty without a stored
    one. `priority` repeats that of the spec. `taken_at` is when a worker last claimed it.
    """

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    state: Mapped[str] = mapped_column(String(16), default="queued")
    spec: Mapped[dict[str, Any]]
    key_id: Mapped[str] = mapped_column(String(32), default="", server_default="")
    priority: Mapped[int] = mapped_column(default=0, server_default="0")
    taken_at: Mapped[datetime | None]


class CountedRow(LeasedRow):
    """The columns of work that is claimed again, as it is, once its lease has expired."""

    attempts: Mapped[int] = mapped_column(default=0)
