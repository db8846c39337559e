"""The lease, once for every table of work: claim a row, keep it, write under its guard, let it go.

A claim stamps a row with a fresh token and a deadline. Every later write of that worker is guarded by key
and token; zero rows changed means that another worker owns the work (LeaseLost). The pattern is dstack's
pipeline lock. The same code runs on SQLite and PostgreSQL. Nothing here commits or knows what the work is.

A table of work has the columns `lease_token` and `lease_expires_at`; one whose rows are claimed again as they
are, once a lease has expired, has `attempts` too.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, or_, select, true, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.core.errors.work import LeaseLost
from app.core.storage import tables

Work = TypeVar("Work", tables.JobRow, tables.DatasetFetchRow, tables.ExportRow)

RELEASED: dict[str, None] = {"lease_token": None, "lease_expires_at": None}


@dataclass(frozen=True)
class Leases(Generic[Work]):
    """The leases on a table's rows. `noun` names one in messages; `is_running` holds for leased ones."""

    table: type[Work]
    key: InstrumentedAttribute[str]
    noun: str
    is_running: ColumnElement[bool] = true()  # noqa: RUF009  (immutable)

    def claim(
        self,
        session: Session,
        *,
        is_free: ColumnElement[bool],
        lease_seconds: float,
        now: datetime | None = None,
        **columns: Any,
    ) -> tuple[Work, str] | None:
        """Take the oldest free row and set these columns: the row and the token, or None."""
        table = self.table
        row = session.scalar(
            select(table)
            .where(is_free)
            .order_by(table.created_at, self.key)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        if row is None:
            return None
        token = secrets.token_hex(16)
        deadline = (now or _now()) + timedelta(seconds=lease_seconds)
        taken = session.scalar(
            update(table)
            .where(self.key == getattr(row, self.key.key), is_free)
            .values(lease_token=token, lease_expires_at=deadline, **columns)
            .returning(self.key)
            .execution_options(synchronize_session=False)
        )
        if taken is None:
            return None
        session.refresh(row)
        return row, token

    def extend(
        self, session: Session, key: str, token: str, *, lease_seconds: float, now: datetime | None = None
    ) -> None:
        """Put the deadline off. Raises LeaseLost."""
        deadline = (now or _now()) + timedelta(seconds=lease_seconds)
        self.update(session, key, token, lease_expires_at=deadline)

    def check(self, session: Session, key: str, token: str) -> None:
        """Raise LeaseLost where another worker has the row, or it is gone."""
        if session.scalar(select(self.key).where(self._is_held(key, token))) is None:
            raise self._lost(key)

    def hold(self, session: Session, key: str, token: str) -> None:
        """The same in a transaction that writes: on PostgreSQL the row is locked then."""
        self.update(session, key, token, lease_token=token)

    def update(self, session: Session, key: str, token: str, **columns: Any) -> None:
        """Set columns of a row that is still this worker's. Raises LeaseLost."""
        changed = session.scalar(
            update(self.table)
            .where(self._is_held(key, token), self.is_running)
            .values(**columns)
            .returning(self.key)
            .execution_options(synchronize_session=False)
        )
        if changed is None:
            raise self._lost(key)

    def hand_back(self, session: Session, key: str, token: str) -> None:
        """Let go because this worker stops; it does not count as an attempt. Raises LeaseLost."""
        self.update(session, key, token, **RELEASED, attempts=_attempts(self.table) - 1)

    def may_try_again(self, session: Session, key: str, token: str, *, max_attempts: int) -> bool:
        """Let go because the work's process died, unless that happened too often: then False, and it is kept.

        Raises LeaseLost.
        """
        self.hold(session, key, token)
        attempts = session.scalar(select(_attempts(self.table)).where(self.key == key)) or 0
        if attempts >= max_attempts:
            return False
        self.update(session, key, token, **RELEASED)
        return True

    def find_expired(self, session: Session, now: datetime | None = None) -> Sequence[Work]:
        """Rows under way whose lease has run out; nobody else gets them until the transaction ends."""
        expired = select(self.table).where(self.is_running, self.table.lease_expires_at < (now or _now()))
        return session.scalars(expired.with_for_update(skip_locked=True)).all()

    def find_tokens(self, session: Session) -> set[str]:
        """The tokens of all work under way."""
        return {token for token in session.scalars(select(self.table.lease_token)) if token}

    def is_free(self, now: datetime | None = None) -> ColumnElement[bool]:
        """Holds for rows that nobody is at: never claimed, handed back, or expired."""
        table = self.table
        return or_(table.lease_token.is_(None), table.lease_expires_at < (now or _now()))

    def _is_held(self, key: str, token: str) -> ColumnElement[bool]:
        return (self.key == key) & (self.table.lease_token == token)

    def _lost(self, key: str) -> LeaseLost:
        return LeaseLost(f"The {self.noun} {key} is not this worker's any more.")


def _attempts(table: Any) -> InstrumentedAttribute[int]:
    """The column that counts claims."""
    column: InstrumentedAttribute[int] = table.attempts
    return column


def _now() -> datetime:
    return datetime.now(UTC)
