"""Leases on the rows of a table: claim a row, extend the lease, write under its guard.

A claim stamps a row with a fresh token and a deadline. Every later write of that worker is guarded by key
and token; zero rows changed means that another worker owns the work (LeaseLost). The pattern is dstack's
pipeline lock. The same code runs on SQLite and PostgreSQL. Nothing here commits or knows what the work is.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, or_, select, true, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.core.errors.work import LeaseLost
from app.core.storage import clock, tables
from app.core.work import turns

RELEASED: dict[str, None] = {"lease_token": None, "lease_expires_at": None}


Row = TypeVar("Row", bound=tables.LeasedRow)


@dataclass(frozen=True)
class WorkLease:
    """A worker's right to do one piece of work: the key of its row, and the token of the claim."""

    key: str
    token: str


@dataclass(frozen=True)
class Leases(Generic[Row]):
    """The leases on a table's rows. `noun` names one in messages; `is_running` holds for leased ones."""

    table: type[Row]
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
    ) -> tuple[Row, str] | None:
        """Take the first free row, and set these columns. Returns it and the token.

        The first one is that whose turn it is, of work that takes turns; else the oldest.
        """
        table, now = self.table, now or clock.now(session)
        order: Sequence[Any] = (table.created_at, self.key)
        if issubclass(table, tables.QueuedRow):
            order = turns.next_first(table)
            columns["taken_at"] = now
        row = session.scalar(
            select(table).where(is_free).order_by(*order).limit(1).with_for_update(skip_locked=True, of=table)
        )
        if row is None:
            return None
        token = secrets.token_hex(16)
        deadline = now + timedelta(seconds=lease_seconds)
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
        self, session: Session, lease: WorkLease, *, lease_seconds: float, now: datetime | None = None
    ) -> None:
        """Put the deadline off. Raises LeaseLost."""
        deadline = (now or clock.now(session)) + timedelta(seconds=lease_seconds)
        self.update(session, lease, lease_expires_at=deadline)

    def check(self, session: Session, lease: WorkLease) -> None:
        """Raise LeaseLost where another worker has the row, or it is gone."""
        if session.scalar(select(self.key).where(self._is_held(lease))) is None:
            raise self._lost(lease)

    def hold(self, session: Session, lease: WorkLease) -> None:
        """Check the lease in a transaction that writes: PostgreSQL locks the row. Raises LeaseLost."""
        self.update(session, lease, lease_token=lease.token)

    def update(self, session: Session, lease: WorkLease, **columns: Any) -> None:
        """Set columns of a row that is still this worker's. Raises LeaseLost."""
        changed = session.scalar(
            update(self.table)
            .where(self._is_held(lease), self.is_running)
            .values(**columns)
            .returning(self.key)
            .execution_options(synchronize_session=False)
        )
        if changed is None:
            raise self._lost(lease)

    def find_expired(self, session: Session, now: datetime | None = None) -> Sequence[Row]:
        """Running rows whose lease has run out; nobody else gets them until the transaction ends."""
        now = now or clock.now(session)
        expired = select(self.table).where(self.is_running, self.table.lease_expires_at < now)
        return session.scalars(expired.with_for_update(skip_locked=True)).all()

    def find_tokens(self, session: Session) -> set[str]:
        """The tokens of all running work."""
        return {token for token in session.scalars(select(self.table.lease_token)) if token}

    def is_free(self, now: datetime) -> ColumnElement[bool]:
        """A condition: the row was never claimed, was released, or its lease has expired."""
        table = self.table
        return or_(table.lease_token.is_(None), table.lease_expires_at < now)

    def _is_held(self, lease: WorkLease) -> ColumnElement[bool]:
        return (self.key == lease.key) & (self.table.lease_token == lease.token)

    def _lost(self, lease: WorkLease) -> LeaseLost:
        return LeaseLost(f"The {self.noun} {lease.key} is not this worker's any more.")
