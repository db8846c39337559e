"""POST /jobs/{id}/pause and /resume."""

from fastapi.testclient import TestClient

from app.core.jobs import queue, records as job_records
from app.core.storage.database import Database
from tests.factories import make_job


def test_a_waiting_job_is_paused_and_resumed(client: TestClient, database: Database) -> None:
    with database.transaction() as session:
        job_id = make_job(session).id
    paused = client.post(f"/jobs/{job_id}/pause")
    assert (paused.status_code, paused.json()["state"]) == (202, "paused")
    listed = client.get("/jobs", params={"state": "paused"}).json()["data"]
    assert [job["id"] for job in listed] == [job_id]
    resumed = client.post(f"/jobs/{job_id}/resume")
    assert (resumed.status_code, resumed.json()["state"]) == (202, "queued")


def test_a_running_job_shows_that_it_was_asked_to_pause(client: TestClient, database: Database) -> None:
    with database.transaction() as session:
        job_id = make_job(session).id
        lease = queue.claim(session, "worker-1", lease_seconds=30)
    assert lease is not None
    job = client.post(f"/jobs/{job_id}/pause").json()
    assert job["state"] == "running"
    assert job["pause_requested_at"] is not None
    with database.transaction() as session:
        queue.release(session, lease, reason="stopped")
    job = client.get(f"/jobs/{job_id}").json()
    assert (job["state"], job["pause_requested_at"]) == ("paused", None)
    assert job["attempts"][0]["exit_reason"] == "paused"


def test_a_job_that_can_not_be_paused_or_resumed_is_a_conflict_with_a_hint(
    client: TestClient, database: Database
) -> None:
    with database.transaction() as session:
        job_id = make_job(session).id
    refused = client.post(f"/jobs/{job_id}/resume")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "job_not_paused")
    with database.transaction() as session:
        job_records.request_pause(session, job_id)
    again = client.post(f"/jobs/{job_id}/pause")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "job_not_pausable")
    assert f"/jobs/{job_id}/resume" in again.json()["error"]["hint"]


def test_an_unknown_job_is_neither_paused_nor_resumed(client: TestClient) -> None:
    for action in ("pause", "resume"):
        assert client.post(f"/jobs/job_none/{action}").status_code == 404
