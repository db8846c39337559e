import threading
from concurrent.futures import ThreadPoolExecutor

from app.core.jobs import events, records as job_records
from app.core.jobs.events import Log
from app.core.storage.database import Database
from tests.factories import make_job

WRITERS, READERS, ROUNDS = 25, 25, 20


def test_sqlite_holds_under_fifty_readers_and_writers_at_once(database: Database) -> None:
    with database.transaction() as session:
        shared = make_job(session).id
    gate = threading.Barrier(WRITERS + READERS)

    def write(_: int) -> None:
        gate.wait(30)
        for number in range(ROUNDS):
            with database.transaction() as session:
                # A read that turns into a write: what SQLite refuses unless the lock is taken first.
                make_job(session)
                events.append(session, shared, [Log(message=str(number))])

    def read(_: int) -> None:
        gate.wait(30)
        for _round in range(ROUNDS):
            with database.snapshot() as session:
                last_seq = job_records.get(session, shared).last_event_seq
                found = events.read(session, shared, limit=10_000)
            assert [event.seq for event in found] == list(range(1, last_seq + 1))

    with ThreadPoolExecutor(WRITERS + READERS) as pool:
        work = [pool.submit(write, n) for n in range(WRITERS)] + [
            pool.submit(read, n) for n in range(READERS)
        ]
        for done in work:
            done.result()
    with database.snapshot() as session:
        assert job_records.get(session, shared).last_event_seq == 1 + WRITERS * ROUNDS
