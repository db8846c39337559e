"""The order in which waiting jobs, evaluations and exports are taken: priorities, and turns of keys."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.orm import Session

from app.core.errors.access import KeyQueueFull, ScopeMissing
from app.core.errors.work import NotWaiting
from app.core.evaluations import records as evaluation_records
from app.core.evaluations.queue import evaluation_queue
from app.core.exports import records as export_records
from app.core.exports.queue import export_queue
from app.core.jobs import queue as job_queue, records as job_records
from app.core.keys import records as keys
from app.core.keys.records import Caller, KeyLimits, caller_of
from app.core.keys.scopes import Scope
from app.core.specs.export import export_spec_adapter
from app.core.storage import tables
from app.core.storage.database import Database
from app.core.work import turns
from app.core.work.leases import WorkLease
from tests.core.evaluations.evaluations import make_evaluation_spec
from tests.factories import make_adapter, make_spec

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Kind:
    """One kind of work: how it is submitted, claimed and changed."""

    table: type[tables.QueuedRow]
    submit: Callable[[Session, Caller, int, datetime], tables.QueuedRow]
    claim: Callable[[Session, datetime], WorkLease | None]
    change: Callable[..., tables.QueuedRow]
    cancel: Callable[[Session, str], object]
    retry: Callable[[Session, str], object]


def submit_job(session: Session, caller: Caller, priority: int, now: datetime) -> tables.QueuedRow:
    return job_records.submit(
        session, make_spec(priority=priority), max_queued=10_000, caller=caller, now=now
    )


def submit_evaluation(session: Session, caller: Caller, priority: int, now: datetime) -> tables.QueuedRow:
    spec = make_evaluation_spec(priority=priority)
    return evaluation_records.submit(session, spec, inline=[], max_waiting=10_000, caller=caller, now=now)


def submit_export(session: Session, caller: Caller, priority: int, now: datetime) -> tables.QueuedRow:
    adapter = session.get(tables.AdapterRow, "ad_0000000000000000") or make_adapter(session)
    spec = export_spec_adapter.validate_python({"format": "merged", "priority": priority})
    return export_records.submit(session, adapter, spec, max_waiting=10_000, caller=caller, now=now)


KINDS = {
    "job": Kind(
        tables.JobRow,
        submit_job,
        lambda session, now: job_queue.claim(session, "worker", lease_seconds=9e9, now=now),
        job_records.change_priority,
        job_records.request_cancel,
        job_records.retry,
    ),
    "evaluation": Kind(
        tables.EvaluationRow,
        submit_evaluation,
        lambda session, now: evaluation_queue.claim(session, lease_seconds=9e9, max_attempts=3, now=now),
        evaluation_records.change_priority,
        evaluation_records.cancel,
        evaluation_records.retry,
    ),
    "export": Kind(
        tables.ExportRow,
        submit_export,
        lambda session, now: export_queue.claim(session, lease_seconds=9e9, max_attempts=3, now=now),
        export_records.change_priority,
        export_records.cancel,
        export_records.retry,
    ),
}


class Queue:
    """A queue of one kind of work, whose rows the tests name."""

    def __init__(self, database: Database, kind: Kind) -> None:
        self.database = database
        self.kind = kind
        self.ids: dict[str, str] = {}

    def make_caller(self, name: str, *scopes: Scope, **limits: int) -> Caller:
        with self.database.transaction() as session:
            key, _ = keys.create(session, name, scopes=scopes or [Scope.TRAIN], limits=KeyLimits(**limits))
            return caller_of(key)

    def submit(self, caller: Caller, *names: str, priority: int = 0, minute: int = 0) -> None:
        with self.database.transaction() as session:
            for number, name in enumerate(names):
                now = NOON + timedelta(minutes=minute, seconds=number)
                self.ids[self.kind.submit(session, caller, priority, now).id] = name

    def claim(self, *, minute: int) -> str:
        with self.database.transaction() as session:
            lease = self.kind.claim(session, NOON + timedelta(minutes=minute))
        assert lease is not None
        return self.ids[lease.key]

    def names_in_order(self) -> list[str]:
        """The work as it is claimed, one after another, which must be what its places in the queue said."""
        with self.database.snapshot() as session:
            announced = [self.ids[one] for one in turns.find_order(session, self.kind.table)]
        claimed = [self.claim(minute=100 + number) for number in range(len(announced))]
        assert claimed == announced
        return announced

    def change(self, name: str, priority: int, caller: Caller = keys.OWNER) -> tables.QueuedRow:
        row_id = next(key for key, value in self.ids.items() if value == name)
        with self.database.transaction() as session:
            return self.kind.change(session, row_id, priority, caller=caller)


@pytest.fixture(params=KINDS)
def queue(request: pytest.FixtureRequest, each_database: Database) -> Queue:
    return Queue(each_database, KINDS[request.param])


def test_one_key_s_much_work_does_not_come_before_another_s_first(queue: Queue) -> None:
    many, few = queue.make_caller("many"), queue.make_caller("few")
    queue.submit(many, "m1", "m2", "m3", "m4")
    queue.submit(few, "f1", "f2", minute=1)

    assert queue.names_in_order() == ["m1", "f1", "m2", "f2", "m3", "m4"]


def test_whoever_was_served_last_comes_last(queue: Queue) -> None:
    one, other = queue.make_caller("one"), queue.make_caller("other")
    queue.submit(one, "o1", "o2")
    assert queue.claim(minute=1) == "o1"
    queue.submit(other, "x1", minute=2)

    assert queue.names_in_order() == ["x1", "o2"]


def test_without_keys_work_is_taken_in_the_order_in_which_it_came(queue: Queue) -> None:
    queue.submit(keys.OWNER, "a", "b", "c")

    assert queue.names_in_order() == ["a", "b", "c"]


def test_a_higher_priority_comes_first_and_its_turns_count_for_the_others(queue: Queue) -> None:
    admin, other = queue.make_caller("admin", Scope.ADMIN), queue.make_caller("other")
    queue.submit(admin, "a1", "a2")
    queue.submit(other, "x1", minute=1)
    queue.submit(admin, "urgent", priority=10, minute=2)
    queue.submit(other, "idle", priority=-10)

    assert queue.names_in_order() == ["urgent", "x1", "a1", "a2", "idle"]


def test_only_an_admin_puts_work_before_that_of_others(queue: Queue) -> None:
    other = queue.make_caller("other")
    with pytest.raises(ScopeMissing, match="needs the scope admin"):
        queue.submit(other, "urgent", priority=1)
    queue.submit(other, "idle", priority=-1)
    with pytest.raises(ScopeMissing, match="needs the scope admin"):
        queue.change("idle", 1, other)
    queue.change("idle", 0, other)


def test_a_new_priority_changes_the_order_of_what_waits(queue: Queue) -> None:
    queue.submit(keys.OWNER, "a", "b", "c")
    row = queue.change("c", 3)
    queue.change("a", -2)

    assert (row.priority, row.spec["priority"]) == (3, 3)  # type: ignore[attr-defined]
    assert queue.names_in_order() == ["c", "b", "a"]


def test_what_a_worker_has_taken_has_no_priority_to_change(queue: Queue) -> None:
    queue.submit(keys.OWNER, "a")
    queue.claim(minute=1)
    with pytest.raises(NotWaiting, match="is running: a priority counts while it waits for a worker"):
        queue.change("a", 3)


def test_a_key_has_so_much_waiting_work_of_a_kind_and_no_more(queue: Queue) -> None:
    limited = queue.make_caller("ci", queued_jobs=2)
    queue.submit(limited, "a", "b")
    with pytest.raises(KeyQueueFull, match=r"'ci' has 2 waiting \w+, of 2"):
        queue.submit(limited, "c")
    queue.submit(queue.make_caller("free"), "x", minute=1)
    queue.claim(minute=1)

    queue.submit(limited, "c")


def test_what_is_retried_has_to_find_a_place_among_what_waits(queue: Queue) -> None:
    limited = queue.make_caller("ci", queued_jobs=1)
    queue.submit(limited, "a")
    (first,) = queue.ids
    with queue.database.transaction() as session:
        queue.kind.cancel(session, first)
    queue.submit(limited, "b")
    with queue.database.transaction() as session, pytest.raises(KeyQueueFull, match="has 1 waiting"):
        queue.kind.retry(session, first)
    queue.claim(minute=1)
    with queue.database.transaction() as session:
        queue.kind.retry(session, first)
    assert queue.names_in_order() == ["a"]


def test_the_limit_of_waiting_work_holds_for_submissions_at_once(queue: Queue) -> None:
    limited = queue.make_caller("ci", queued_jobs=3)
    with queue.database.transaction() as session:
        make_adapter(session)

    def try_to_submit(number: int) -> bool:
        try:
            queue.submit(limited, f"work-{number}")
        except KeyQueueFull:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(try_to_submit, range(8))).count(True) == 3
