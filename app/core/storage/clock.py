"""The database's clock, by which leases and their like are measured: those of several hosts differ."""

from datetime import UTC, datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

_NOW = "database_now"


def now(session: Session) -> datetime:
    """Returns the time in UTC: PostgreSQL's, read once per session; with SQLite, that of the only host."""
    if session.get_bind().dialect.name == "sqlite":
        return datetime.now(UTC)
    if _NOW not in session.info:
        session.info[_NOW] = session.scalar(select(func.clock_timestamp()))
    found: datetime = session.info[_NOW]
    return found.astimezone(UTC)
