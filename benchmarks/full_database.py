"""Fills the database of a box: finished jobs with curves, metadata and adapters."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import insert

from app.core.jobs import records as job_records
from app.core.specs.job import JobSpec
from app.core.specs.states import JobState
from app.core.storage import tables
from app.core.storage.ids import new_id
from benchmarks.api_box import ApiBox

_DAY = timedelta(days=1)


def fill(box: ApiBox, *, jobs: int, events_each: int, adapters: int) -> None:
    """Add succeeded jobs, the first of them with an adapter each, and a dataset for every tenth."""
    now = datetime.now(UTC)
    for number in range(jobs):
        if number % 10 == 0:
            dataset = box.add_dataset()
        at = now - _DAY * number / jobs
        spec = JobSpec(base_model="owner/model", dataset=dataset, metadata={"team": str(number % 50)})
        with box.database.transaction() as session:
            job = job_records.submit(session, spec, max_queued=jobs + 1, now=at)
            job.state, job.finished_at, job.last_event_seq = JobState.SUCCEEDED, at, events_each
            session.flush()
            session.execute(
                insert(tables.EventRow), [_event(job.id, seq, at) for seq in range(2, events_each + 1)]
            )
            if number < adapters:
                session.add(_adapter(job.id, at))


def _event(job_id: str, seq: int, at: datetime) -> dict[str, object]:
    data = {"step": seq, "total_steps": 100, "epoch": 0.5, "loss": 1.25, "tokens": 4096}
    return {"job_id": job_id, "seq": seq, "at": at, "level": "info", "type": "metrics", "data": data}


def _adapter(job_id: str, at: datetime) -> tables.AdapterRow:
    adapter_id = new_id("ad")
    return tables.AdapterRow(
        id=adapter_id,
        name=adapter_id,
        base_model="owner/model",
        quantization={},
        job_id=job_id,
        size_bytes=1,
        artifact=f"adapters/{adapter_id}",
        created_at=at,
    )
