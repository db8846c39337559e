"""A database that goes away and comes back: every request is 503 meanwhile, and the log has a few lines."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from app.core.settings import Settings
from app.main import create_app
from tests.postgres import PostgresServer
from tests.waiting import wait_for


@pytest.fixture
def client(settings: Settings, postgres_url: str) -> Iterator[TestClient]:
    # Short leases: what runs in the background meets the outage often.
    changes = {"database_url": postgres_url, "lease_seconds": 0.3}
    app = create_app(settings.model_copy(update=changes))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def server(client: TestClient, postgres_template: PostgresServer) -> Iterator[PostgresServer]:
    """The server of the API's database; a test may stop it."""
    assert client.get("/jobs").status_code == 200
    yield postgres_template
    postgres_template.ensure_started()


def test_requests_are_503_while_the_database_is_away(client: TestClient, server: PostgresServer) -> None:
    server.stop()
    for method, url in [
        ("GET", "/jobs"),
        ("GET", "/jobs/job_0000000000000000"),
        ("GET", "/jobs/job_0000000000000000/logs?follow=true"),
        ("GET", "/adapters"),
        ("GET", "/status"),
        ("POST", "/jobs/job_0000000000000000/cancel"),
        ("GET", "/v1/models"),
    ]:
        response = client.request(method, url)
        assert (response.status_code, int(response.headers["retry-after"])) == (503, 5), url
        assert response.json()["error"]["code"] == "database_unavailable"
    assert client.get("/health").status_code == 200
    assert "The database can't be reached." in client.get("/ready").json()["reasons"]


def test_an_outage_is_logged_when_it_begins_and_when_it_ends(
    client: TestClient, server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.stop()
    for _ in range(20):
        client.get("/jobs")
    server.start()
    wait_for(lambda: client.get("/jobs").status_code == 200, "the API to reach its database again")
    logged = [record for record in caplog.records if record.name.startswith("app")]
    assert [record.exc_info for record in logged if record.exc_info] == []
    began = [record for record in logged if "The database does not answer" in record.message]
    ended = [record for record in logged if "The database answers again" in record.message]
    assert (len(began), len(ended)) == (1, 1)
