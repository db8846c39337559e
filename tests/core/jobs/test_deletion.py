import pytest
from sqlalchemy import func, select

from app.core.errors.jobs import JobHasAdapters, JobNotEnded, JobNotFound
from app.core.jobs import events, records as job_records
from app.core.jobs.events import Log
from app.core.storage import tables
from app.core.storage.database import Database
from tests.factories import make_adapter, make_job


def test_an_ended_job_goes_with_its_events(database: Database) -> None:
    with database.transaction() as session:
        job_id, other_id = make_job(session).id, make_job(session).id
        events.append(session, job_id, [Log(message="Read 3 rows.")])
        job_records.request_cancel(session, job_id)
    with database.transaction() as session:
        job_records.delete(session, job_id)
    with database.snapshot() as session:
        with pytest.raises(JobNotFound):
            job_records.get(session, job_id)
        left = select(func.count()).select_from(tables.EventRow).where(tables.EventRow.job_id == job_id)
        assert session.scalar(left) == 0
        assert job_records.get(session, other_id)


def test_a_job_that_has_not_ended_stays(database: Database) -> None:
    with database.transaction() as session:
        job_id = make_job(session).id
    with database.transaction() as session, pytest.raises(JobNotEnded) as refused:
        job_records.delete(session, job_id)
    assert refused.value.hint == f"Cancel it first: POST /jobs/{job_id}/cancel."


def test_a_job_whose_adapter_exists_stays_and_the_adapter_is_named(database: Database) -> None:
    with database.transaction() as session:
        job_id = make_job(session).id
        job_records.request_cancel(session, job_id)
        adapter_id = make_adapter(session, job_id=job_id, step=3, name="helper:ckpt-step-3").id
    with database.transaction() as session, pytest.raises(JobHasAdapters) as refused:
        job_records.delete(session, job_id)
    assert "helper:ckpt-step-3" in refused.value.message
    assert adapter_id in (refused.value.hint or "")
