"""A job that pushes its adapter to the Hub once it has succeeded."""

from collections.abc import Callable

from app.core.exports import records as export_records
from app.core.exports.queue import ExportQueue
from app.core.jobs import events, pushes
from app.core.jobs.queue import JobLease
from app.core.specs.export import export_spec_adapter
from app.core.storage.database import Database
from app.core.work.failures import WorkFailure
from tests.worker.runners.job_runs import job_of
from worker.runners.jobs import JobRunner

PUSH = {"repository": "me/helper", "revision": "v2", "tags": ["support"], "private": False}


def messages_of(database: Database, lease: JobLease) -> list[str]:
    with database.snapshot() as session:
        found = events.read(session, lease.job_id, types=["log", "warning"])
    return [str(getattr(event.data, "message", "")) for event in found]


def test_a_failed_push_is_an_event_of_its_job_and_can_be_retried(
    runner: JobRunner, claimed: Callable[..., JobLease], database: Database
) -> None:
    lease = claimed("finishes", push_to_hub=PUSH)
    runner.run(lease)
    exports = ExportQueue(on_end=pushes.record_end)
    with database.transaction() as session:
        export = pushes.find(session, lease.job_id)
        assert export is not None
        spec = export_spec_adapter.validate_python(export.spec).model_dump(include={*PUSH, "update"})
        assert spec == {**PUSH, "update": True}
        first = exports.claim(session, lease_seconds=30, max_attempts=3)
        assert first is not None
        exports.fail(session, first, WorkFailure("hub_refused", "No token.", "Set HF_TOKEN."))
    assert "No token. Set HF_TOKEN." in messages_of(database, lease)[-1]
    assert job_of(database, lease).state == "succeeded"
    with database.transaction() as session:
        assert export_records.retry(session, export.id).job_id == lease.job_id


def test_a_job_without_a_push_makes_no_export(
    runner: JobRunner, claimed: Callable[..., JobLease], database: Database
) -> None:
    lease = claimed("finishes")
    runner.run(lease)
    with database.snapshot() as session:
        assert pushes.find(session, lease.job_id) is None
