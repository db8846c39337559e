"""A durable queue over a table of work, as a worker uses it: claim, heartbeat, release, give up an attempt.

A row whose lease has expired is claimed again as it is, until that has happened too often. Nothing here
commits or knows what the work is: the queue of one kind of work says how its rows are read and how they fail.
"""

from abc import ABC, abstractmethod
from datetime import datetime
from typing import Any, ClassVar, Generic, TypeVar

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.core.specs.states import StopRequest
from app.core.storage import clock, tables
from app.core.work.failures import WorkFailure
from app.core.work.leases import RELEASED, Leases, WorkLease

Row = TypeVar("Row", bound=tables.CountedRow)
Lease = TypeVar("Lease", bound=WorkLease)


class WorkQueue(ABC, Generic[Row, Lease]):
    """The queue of one kind of work. Subclasses name the table, and add how such work goes on and ends."""

    leases: Leases[Row]
    # Columns that a release sets, besides those of the lease.
    released_columns: ClassVar[dict[str, Any]] = {}

    def claim(
        self, session: Session, *, lease_seconds: float, max_attempts: int, now: datetime | None = None
    ) -> Lease | None:
        """Take the first free row, or None; one that was lost too often fails instead."""
        now = now or clock.now(session)
        claimed = self.leases.claim(
            session,
            is_free=self.is_free(session, now),
            lease_seconds=lease_seconds,
            now=now,
            **self.claimed_columns(now),
            attempts=self._count_column() + 1,
        )
        if claimed is None:
            return None
        row, token = claimed
        lease = self.make_lease(session, row, token)
        if row.attempts > max_attempts:
            self.fail(session, lease, self.explain_loss(max_attempts))
            return None
        return lease

    def heartbeat(
        self, session: Session, lease: Lease, *, lease_seconds: float, now: datetime | None = None
    ) -> None:
        """Extend the lease. Raises LeaseLost."""
        self.leases.extend(session, lease, lease_seconds=lease_seconds, now=now)

    def check(self, session: Session, lease: Lease) -> None:
        """Raise LeaseLost where the work was cancelled or deleted, or another worker has it."""
        self.leases.check(session, lease)

    def find_stop_request(self, session: Session, lease: Lease) -> StopRequest | None:
        """None: who cancels or deletes such work takes its lease away. Raises LeaseLost."""
        self.check(session, lease)
        return None

    def release(self, session: Session, lease: Lease) -> None:
        """Let the work be claimed again; this claim does not count as an attempt. Raises LeaseLost."""
        self._release(session, lease, attempts=self._count_column() - 1)

    def give_up_attempt(
        self, session: Session, lease: Lease, failure: WorkFailure, *, max_attempts: int
    ) -> None:
        """The child died: release the work, or fail it after too many attempts. Raises LeaseLost."""
        self.leases.hold(session, lease)
        attempts = session.scalar(select(self._count_column()).where(self.leases.key == lease.key)) or 0
        if attempts < max_attempts:
            self._release(session, lease)
        else:
            self.fail(session, lease, failure)

    def find_tokens(self, session: Session) -> set[str]:
        """The tokens of all running work."""
        return self.leases.find_tokens(session)

    def is_free(self, session: Session, now: datetime) -> ColumnElement[bool]:
        """A condition: the row may be claimed."""
        return self.leases.is_free(now)

    def claimed_columns(self, now: datetime) -> dict[str, Any]:
        """Columns that a claim sets, besides those of the lease."""
        return {}

    @abstractmethod
    def make_lease(self, session: Session, row: Row, token: str) -> Lease:
        """The lease on a row that was just claimed, with what a worker needs to know of it."""

    @abstractmethod
    def fail(self, session: Session, lease: Lease, failure: WorkFailure) -> None:
        """End the work as failed, with the reason. Raises LeaseLost."""

    @abstractmethod
    def explain_loss(self, attempts: int) -> WorkFailure:
        """Why work fails whose workers were lost so many times."""

    def _release(self, session: Session, lease: Lease, **columns: Any) -> None:
        self.leases.update(session, lease, **RELEASED, **self.released_columns, **columns)

    def _count_column(self) -> InstrumentedAttribute[int]:
        return self.leases.table.attempts
