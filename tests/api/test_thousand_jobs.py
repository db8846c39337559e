"""Lists take as many queries of the database for many jobs and adapters as for few."""

from collections.abc import Iterator
from contextvars import ContextVar

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.deps import Services
from app.core.jobs import events, queue
from app.core.jobs.events import Metrics
from app.core.settings import Settings
from app.main import create_app
from tests.factories import make_adapter, make_job

FEW, MANY = 4, 60
TABLES = ["jobs", "attempts", "events", "adapters"]
LISTS = [
    "/jobs?limit=200",
    "/jobs?limit=200&search=try",
    "/jobs?limit=200&state=queued",
    "/adapters?limit=200",
    "/status",
    "/storage",
]


_is_request: ContextVar[bool] = ContextVar("_is_request", default=False)


class NotesRequests:
    """Tells the queries of a request from those of what runs in the background: threads inherit contexts."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _is_request.set(scope["type"] == "http")
        await self._app(scope, receive, send)


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    app = create_app(settings)
    app.add_middleware(NotesRequests)
    with TestClient(app) as client:
        yield client


def make_history(services: Services, count: int) -> list[str]:
    """Jobs of which every second one was claimed and made an adapter."""
    with services.database.transaction() as session:
        ids = [make_job(session, name=f"try-{number}").id for number in range(count)]
        for job_id in ids:
            events.append(session, job_id, [Metrics(step=1, total_steps=1, epoch=1, loss=0.5)])
        for job_id in ids[::2]:
            queue.claim(session, "worker-1", lease_seconds=30)
            make_adapter(session, id=f"ad_{job_id}", name=f"of-{job_id}", job_id=job_id)
    return ids


@pytest.fixture
def statements(services: Services) -> Iterator[list[str]]:
    """The queries of these tables by requests."""
    seen: list[str] = []

    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if _is_request.get() and any(f"{table}." in statement for table in TABLES):
            seen.append(statement)

    event.listen(services.database.engine, "before_cursor_execute", note)
    yield seen
    event.remove(services.database.engine, "before_cursor_execute", note)


def count_statements(client: TestClient, statements: list[str], path: str) -> int:
    statements.clear()
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    return len(statements)


def test_lists_take_no_more_queries_for_many_rows(
    client: TestClient, services: Services, statements: list[str]
) -> None:
    make_history(services, FEW)
    before = {path: count_statements(client, statements, path) for path in LISTS}
    make_history(services, MANY)
    assert {path: count_statements(client, statements, path) for path in LISTS} == before
    assert min(before.values()) >= 1
    assert len(client.get("/jobs?limit=200").json()["data"]) == FEW + MANY


def test_the_losses_of_many_jobs_are_one_query(
    client: TestClient, services: Services, statements: list[str]
) -> None:
    ids = make_history(services, MANY)
    statements.clear()
    found = client.get("/jobs/losses", params={"job": [*ids, "job_that_is_gone"]}).json()["data"]
    assert len(statements) == 1
    assert found == [{"job": job_id, "losses": [0.5]} for job_id in sorted(ids)]


def test_an_adapter_names_its_job_and_its_dataset(client: TestClient, services: Services) -> None:
    (job_id,) = make_history(services, 1)
    (adapter,) = client.get("/adapters").json()["data"]
    assert (adapter["job"], adapter["job_name"]) == (job_id, "try-0")
    assert adapter["dataset"] == client.get(f"/jobs/{job_id}").json()["spec"]["dataset"]
