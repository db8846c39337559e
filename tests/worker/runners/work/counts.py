"""A made-up kind of work, counting: all that a new kind needs is a table, its queue, and a handler."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import ColumnElement, String
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from app.core.errors import TunesmithError
from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from app.core.storage.tables import CountedRow, Table
from app.core.work.failures import WorkFailure
from app.core.work.leases import RELEASED, Leases, WorkLease
from app.core.work.queue import WorkQueue
from tests.scripted.counting import (
    Counted,
    CountFailed,
    Counting,
    CountReport,
    CountRequest,
    count_report_adapter,
)
from worker.processes.child_process import ChildProcess
from worker.runners.work_handler import WorkHandler
from worker.runners.work_runner import WorkRunner

COUNTING = "tests.scripted.counting"


class CountTable(DeclarativeBase):
    """Not among the service's tables: its migrations know nothing of counts."""

    type_annotation_map = Table.type_annotation_map


class CountRow(CountedRow, CountTable):
    __tablename__ = "counts"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    script: Mapped[str]
    state: Mapped[str] = mapped_column(default="queued")
    reached: Mapped[int] = mapped_column(default=0)
    artifact: Mapped[str | None]
    error: Mapped[str | None]
    message: Mapped[str | None]


@dataclass(frozen=True)
class CountLease(WorkLease):
    script: str


class CountQueue(WorkQueue[CountRow, CountLease]):
    leases = Leases(CountRow, CountRow.id, "count")

    def is_free(self, session: Session, now: datetime) -> ColumnElement[bool]:
        return (CountRow.state == "queued") & super().is_free(session, now)

    def make_lease(self, session: Session, row: CountRow, token: str) -> CountLease:
        return CountLease(row.id, token, row.script)

    def record(self, session: Session, lease: CountLease, reached: int) -> None:
        self.leases.update(session, lease, reached=reached)

    def finish(self, session: Session, lease: CountLease, artifact: str) -> None:
        self.leases.update(session, lease, **RELEASED, state="succeeded", artifact=artifact)

    def fail(self, session: Session, lease: CountLease, failure: WorkFailure) -> None:
        error = {"error": failure.code, "message": failure.message}
        self.leases.update(session, lease, **RELEASED, state="failed", **error)

    def explain_loss(self, attempts: int) -> WorkFailure:
        return WorkFailure("worker_lost", f"Lost {attempts} times.")


count_queue = CountQueue()


class CountHandler(WorkHandler[CountLease, CountReport, Counted]):
    queue = count_queue
    reports = count_report_adapter
    stop_grace_seconds = 0.5
    disk_full = TunesmithError("The disk is full.")
    failure_code = "internal_error"

    def __init__(self, settings: Settings, store: ArtifactStore) -> None:
        self.root = settings.data_dir / "counts"
        self._store = store
        self.succeeded: list[str] = []

    def folder(self, lease: CountLease) -> Path:
        return self.root / lease.token

    def describe(self, lease: CountLease) -> str:
        return f"Count {lease.key}"

    @contextmanager
    def start(self, lease: CountLease) -> Iterator[ChildProcess]:
        self.folder(lease).mkdir(parents=True)
        request = CountRequest(script=lease.script, folder=self.folder(lease))
        yield ChildProcess(COUNTING, request, self.root / "log")

    def find_ending(self, report: CountReport) -> Counted | WorkFailure | None:
        if isinstance(report, CountFailed):
            return WorkFailure("count_failed", report.message)
        return report if isinstance(report, Counted) else None

    def record(self, session: Session, lease: CountLease, reports: Sequence[CountReport]) -> None:
        last = reports[-1]
        assert isinstance(last, Counting)
        count_queue.record(session, lease, last.reached)

    def artifact(self, lease: CountLease) -> str:
        return f"counts/{lease.token}"

    def deliver(
        self, lease: CountLease, result: Counted, announce: Callable[[CountReport], None]
    ) -> Callable[[Session], None]:
        announce(Counting(reached=4))
        self._store.put_file(f"{self.artifact(lease)}/three", result.file)
        return lambda session: count_queue.finish(session, lease, self.artifact(lease))

    def delivered(self, lease: CountLease) -> None:
        self.succeeded.append(lease.key)

    def explain(self, error: Exception) -> WorkFailure:
        return WorkFailure("internal_error", f"The worker failed: {type(error).__name__}")

    def explain_death(self, child: ChildProcess) -> WorkFailure:
        return WorkFailure("process_died", f"The counting process {child.describe_death()}")

    def clean_up(self, lease: CountLease) -> None:
        shutil.rmtree(self.folder(lease), ignore_errors=True)


CountRunner = WorkRunner[CountLease, CountReport, Counted]
Claim = Callable[[str], CountLease]


def row_of(database: Database) -> CountRow:
    with database.snapshot() as session:
        row = session.get(CountRow, "count_1")
    assert row is not None
    return row
