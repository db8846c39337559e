"""The rows of running workers."""

from app.core.engine import workers
from app.core.engine.workers import WorkerReport
from app.core.storage.database import Database


def test_a_long_host_name_is_cut_to_one_of_its_own() -> None:
    first, second = (workers.name_host("gpu-" + "x" * 60 + end) for end in ("a.example", "b.example"))
    assert len(first) == len(second) == 48
    assert first != second
    assert workers.name_host("gpu-1") == "gpu-1"


def test_a_worker_with_the_longest_id_is_registered(each_database: Database) -> None:
    worker_id = f"{workers.name_host('h' * 64)}-4194304-abcdef"
    with each_database.transaction() as session:
        workers.heartbeat(session, WorkerReport(id=worker_id, roles=["train"]))
    with each_database.snapshot() as session:
        assert [row.id for row in workers.find_alive(session, lease_seconds=60)] == [worker_id]
