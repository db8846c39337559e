"""What the runner needs to know of one kind of work: its queue, its child, and where its result goes.

A new kind of work needs a table (`tables.CountedRow`), a queue on it (`app.core.work.queue.WorkQueue`), a
handler, and its line in the supervisor. tests/worker/runners/work/counts.py has a small example.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Generic, Protocol, TypeVar

from pydantic import BaseModel, TypeAdapter
from sqlalchemy.orm import Session

from app.core.errors import TunesmithError
from app.core.specs.states import StopRequest
from app.core.work.failures import WorkFailure
from app.core.work.leases import WorkLease
from worker.processes.child_process import ChildProcess
from worker.processes.lease_heartbeat import LeaseHeartbeat

Lease = TypeVar("Lease", bound=WorkLease)
Report = TypeVar("Report", bound=BaseModel)
Result = TypeVar("Result")


class LeaseQueue(Protocol[Lease]):
    """The queue of one kind of work, as the runner uses it; `app.core.work.queue.WorkQueue` is one."""

    def claim(self, session: Session, *, lease_seconds: float, max_attempts: int) -> Lease | None:
        """Take the next piece of work, or None."""

    def heartbeat(self, session: Session, lease: Lease, *, lease_seconds: float) -> None:
        """Extend the lease. Raises LeaseLost."""

    def find_stop_request(self, session: Session, lease: Lease) -> StopRequest | None:
        """What somebody asked of the running work, if anything. Raises LeaseLost."""

    def release(self, session: Session, lease: Lease) -> None:
        """Let go of work whose child has stopped because it was asked to. Raises LeaseLost."""

    def give_up_attempt(
        self, session: Session, lease: Lease, failure: WorkFailure, *, max_attempts: int
    ) -> object:
        """Let go of work whose child has died, or fail it after too many attempts. Raises LeaseLost."""

    def fail(self, session: Session, lease: Lease, failure: WorkFailure) -> None:
        """End the work as failed. Raises LeaseLost."""


class WorkHandler(ABC, Generic[Lease, Report, Result]):
    """One kind of work. A handler holds no state of an attempt: that is the runner's.

    For each lease that it has claimed from `queue`, the runner calls `start`; `find_ending` for every report
    of the child, and `record` and `follow_up` for those that end nothing; after a result `deliver` and
    `delivered`; and last `clean_up`, whatever happened. Only `record`, and what `deliver` returns, run in a
    transaction.
    """

    queue: LeaseQueue[Lease]
    reports: TypeAdapter[Report]  # reads a line that the child sends
    stop_grace_seconds: float  # how long a child that is asked to stop may go on; a cancelled one has less
    disk_full: TunesmithError  # how such work fails where the disk takes no more
    failure_code: str  # of such work in which the worker itself failed

    @abstractmethod
    def describe(self, lease: Lease) -> str:
        """The name of the work in the worker's log."""

    @abstractmethod
    def start(self, lease: Lease) -> AbstractContextManager[ChildProcess]:
        """The child with its request. The runner ends the child before it leaves the context."""

    @abstractmethod
    def find_ending(self, report: Report) -> Result | WorkFailure | None:
        """The result or the failure in the child's last report; None for every other report."""

    @abstractmethod
    def record(self, session: Session, lease: Lease, reports: Sequence[Report]) -> None:
        """Write down reports that end nothing. Raises LeaseLost."""

    @abstractmethod
    def deliver(
        self, lease: Lease, result: Result, announce: Callable[[Report], None]
    ) -> Callable[[Session], object]:
        """Put the result into the store; returns what ends the work as succeeded, in a transaction.

        `announce` records a report, as if the child had sent it. Raises LeaseLost, OSError.
        """

    @abstractmethod
    def explain_death(self, child: ChildProcess) -> WorkFailure:
        """The failure of work whose child has died without a last report."""

    @abstractmethod
    def clean_up(self, lease: Lease) -> None:
        """Remove the attempt's own files. Called twice where the work failed."""

    def artifact(self, lease: Lease) -> str | None:
        """The key under which the store gets the result of this attempt, and of no other, if it gets one."""
        return None

    def explain(self, error: Exception) -> WorkFailure:
        """The failure of work in which the worker met this error."""
        if isinstance(error, TunesmithError):
            return WorkFailure.of(error)
        return WorkFailure(self.failure_code, f"The worker failed: {error}", "See the worker's log.")

    def follow_up(self, lease: Lease, report: Report, heartbeat: LeaseHeartbeat) -> None:
        """Do what else a report asks for. Raises LeaseLost, OSError."""

    def finish_copies(self, lease: Lease, *, timeout_seconds: float) -> None:
        """Wait for copies that a further attempt on another machine needs: this one did not succeed.

        The lease still holds.
        """

    def delivered(self, lease: Lease) -> None:
        """Remove what only a further attempt would have needed: the work has succeeded."""

    def may_undo(self, lease: Lease) -> bool:
        """Whether a child whose lease is lost gets time to undo what it has done outside of this machine."""
        return False

    def rest(self) -> None:
        """Called where the queue is empty."""
