"""Lists of a full database: each reads what it shows through indexes, in a few statements, and no events."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event, text, update

from app.api.deps import Services
from app.api.openai.files import measure_results
from app.core.jobs import events
from app.core.jobs.events import Metrics
from app.core.specs.states import JobState
from app.core.storage import tables
from app.core.storage.database import Database
from tests.factories import make_adapter, make_job

_START = datetime(2026, 1, 1, tzinfo=UTC)
_JOBS = 60
# A statement that reads all of one of these grows with the database.
_LARGE = ("jobs", "datasets", "adapters", "events", "attempts", "job_metadata", "exports")
_LISTS = [
    "/jobs",
    "/jobs?state=succeeded",
    "/datasets",
    "/adapters",
    "/exports",
    "/v1/files",
    "/v1/files?purpose=fine-tune-results",
    "/v1/files?purpose=fine-tune-results&order=asc",
    "/v1/fine_tuning/jobs",
    "/v1/fine_tuning/jobs?metadata[team]=3",
    "/v1/models",
]


@pytest.fixture
def full(services: Services) -> Services:
    """Jobs that have ended with a curve and an adapter, some with metadata."""
    with services.database.transaction() as session:
        for number in range(_JOBS):
            at = _START + timedelta(minutes=number)
            job = make_job(session, metadata={"team": str(number % 20)}, now=at)
            points = [Metrics(step=step, total_steps=9, epoch=0.1, loss=1.0) for step in range(1, 4)]
            events.append(session, job.id, points)
            make_adapter(
                session, id=f"ad_{number:016d}", name=f"adapter-{number}", job_id=job.id, created_at=at
            )
            values = {"state": JobState.SUCCEEDED, "finished_at": at}
            session.execute(update(tables.JobRow).where(tables.JobRow.id == job.id).values(**values))
    # Measured here, so that the API's own sweep finds nothing to measure meanwhile.
    measure_results(services, limit=_JOBS)
    return services


@contextmanager
def statements(database: Database) -> Iterator[list[tuple[str, Any]]]:
    """Collects the statements that read in the context."""
    found: list[tuple[str, Any]] = []

    def collect(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.lstrip().upper().startswith(("SELECT", "WITH")):
            found.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", collect)
    yield found
    event.remove(database.engine, "before_cursor_execute", collect)


@pytest.mark.parametrize("url", _LISTS)
def test_a_list_reads_through_indexes(client: TestClient, full: Services, url: str) -> None:
    with statements(full.database) as found:
        assert client.get(url).status_code == 200
    plans = []
    with full.database.engine.connect() as connection:
        for statement, parameters in found:
            lines = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans += [(line.detail, statement) for line in lines]
    whole = re.compile(rf"SCAN ({'|'.join(_LARGE)})(?! USING)\b")
    assert [(detail, statement) for detail, statement in plans if whole.search(detail)] == []
    assert len(found) <= 15, [statement for statement, _ in found]


def test_the_size_of_a_result_file_is_measured_once(client: TestClient, full: Services) -> None:
    with full.database.transaction() as session:
        session.execute(update(tables.JobRow).values(result_bytes=None))
    first = client.get("/v1/files?purpose=fine-tune-results").json()["data"]
    with statements(full.database) as found:
        again = client.get("/v1/files?purpose=fine-tune-results").json()["data"]
    assert again == first
    assert len(again) == _JOBS
    assert [statement for statement, _ in found if "FROM events" in statement] == []
    content = client.get(f"/v1/files/{first[0]['id']}/content").content
    assert first[0]["bytes"] == len(content)


def test_events_deleted_by_age_change_the_size(client: TestClient, full: Services) -> None:
    before = client.get("/v1/files?purpose=fine-tune-results&limit=1").json()["data"][0]
    assert client.delete("/storage/events").status_code == 200
    after = client.get(f"/v1/files/{before['id']}").json()
    assert after["bytes"] == len(client.get(f"/v1/files/{before['id']}/content").content) < before["bytes"]


def test_files_of_both_kinds_come_in_pages_in_order(client: TestClient, full: Services) -> None:
    with full.database.transaction() as session:
        session.execute(
            text("UPDATE jobs SET finished_at = (SELECT min(finished_at) FROM jobs) WHERE id > 'job_h'")
        )
    for order in ("asc", "desc"):
        whole = client.get(f"/v1/files?order={order}").json()["data"]
        found: list[dict[str, Any]] = []
        more = True
        while more:
            after = f"&after={found[-1]['id']}" if found else ""
            page = client.get(f"/v1/files?order={order}&limit=7{after}").json()
            found, more = found + page["data"], page["has_more"]
        assert found == whole
        assert len({file["id"] for file in found}) == _JOBS


def test_models_come_in_pages(client: TestClient, full: Services) -> None:
    first = client.get("/v1/models?limit=40").json()
    second = client.get(f"/v1/models?limit=40&after={first['data'][-1]['id']}").json()
    names = [model["id"] for model in first["data"] + second["data"]]
    assert names == [f"adapter-{number}" for number in reversed(range(_JOBS))]
    assert (first["has_more"], second["has_more"]) == (True, False)


def test_jobs_are_found_by_metadata_that_has_changed(client: TestClient, full: Services) -> None:
    def ids(query: str) -> set[str]:
        return {job["id"] for job in client.get(f"/v1/fine_tuning/jobs?limit=100&{query}").json()["data"]}

    [changed, *rest] = ids("metadata[team]=3")
    client.patch(f"/jobs/{changed}", json={"metadata": {"team": "gone", "tag": "new"}})
    assert ids("metadata[team]=3") == set(rest)
    assert ids("metadata[team]=gone&metadata[tag]=new") == {changed}
    assert ids("metadata[team]=3&metadata[tag]=new") == set()
    client.patch(f"/jobs/{changed}", json={"metadata": {}})
    assert ids("metadata=null") == {changed}
    assert client.delete(f"/adapters/adapter-{_JOBS - 1}").status_code == 204
