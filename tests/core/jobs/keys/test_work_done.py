"""What jobs have used, counted for the keys that submitted them."""

from datetime import UTC, datetime, timedelta

from app.core.jobs import queue, records
from app.core.jobs.events import Metrics
from app.core.jobs.queue import JobLease
from app.core.keys import records as keys, usage
from app.core.storage import tables
from app.core.storage.database import Database
from tests.factories import make_spec

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


def submit(database: Database, **spec: object) -> str:
    """Submit a job of a new key. Returns the id of the key."""
    with database.transaction() as session:
        key, _ = keys.create(session, "ci")
        caller = keys.caller_of(key)
        records.submit(session, make_spec(**spec), max_queued=10, caller=caller, now=NOON)
        return key.id


def claim(database: Database, *, minute: int) -> JobLease:
    with database.transaction() as session:
        lease = queue.claim(session, "worker", lease_seconds=9e9, now=NOON + timedelta(minutes=minute))
    assert lease is not None
    return lease


def read(database: Database, key_id: str) -> tables.UsageRow:
    with database.snapshot() as session:
        (row,) = usage.find(session, key_id=key_id, model=None, since=NOON.date(), until=NOON.date(), limit=9)
    return row


def test_seconds_and_tokens_of_each_attempt_are_counted_once(each_database: Database) -> None:
    key_id = submit(each_database)

    def run(lease: JobLease, tokens: int, minute: int, *, ends: bool) -> None:
        with each_database.transaction() as session:
            metrics = Metrics(step=1, total_steps=9, epoch=0.1, loss=1.0, tokens=tokens)
            queue.record(session, lease, [metrics])
            now = NOON + timedelta(minutes=minute)
            if ends:
                queue.succeed(session, lease, adapter_name="a", now=now)
            else:
                queue.release(session, lease, reason="The worker stops.", now=now)

    run(claim(each_database, minute=0), 1000, 2, ends=False)
    # It goes on from a checkpoint: the tokens of both attempts together are those of the job.
    run(claim(each_database, minute=10), 1500, 11, ends=True)

    row = read(each_database, key_id)
    assert (row.model, row.training_tokens, row.training_seconds) == ("owner/model", 1500, 180.0)
    assert row.requests == 0


def test_seconds_count_for_each_gpu_of_each_host(database: Database) -> None:
    key_id = submit(database, resources={"nodes": 2, "gpus": 4, "strategy": "ddp"})
    lease = claim(database, minute=0)
    with database.transaction() as session:
        queue.succeed(session, lease, adapter_name="a", now=NOON + timedelta(minutes=1))

    assert read(database, key_id).training_seconds == 8 * 60
