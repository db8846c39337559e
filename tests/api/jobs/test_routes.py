import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.api.deps import Services
from app.core.jobs import queue, records as job_records
from app.core.settings import Settings
from app.core.storage.database import Database
from app.core.work.failures import WorkFailure
from app.main import create_app
from tests.factories import make_dataset, make_job


@pytest.fixture
def dataset(services: Services) -> str:
    with services.database.transaction() as session:
        return make_dataset(session, services.store, services.settings.data_dir).id


def spec(dataset: str, **fields: Any) -> dict[str, Any]:
    return {"base_model": "owner/model", "dataset": dataset, **fields}


def run_and_fail(database: Database) -> str:
    """A worker claims the oldest job, and it fails."""
    with database.transaction() as session:
        lease = queue.claim(session, "worker-1", lease_seconds=30)
        assert lease
        queue.fail(session, lease, WorkFailure("out_of_memory", "Out of memory.", "Use less."))
    return lease.job_id


def test_a_submitted_job_waits_with_every_default_filled_in(client: TestClient, dataset: str) -> None:
    answer = client.post("/jobs", json=spec(dataset, name="helper", lora={"r": 8}))
    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/jobs/{job['id']}"
    assert (job["state"], job["phase"], job["name"]) == ("queued", None, "helper")
    assert job["spec"]["lora"] == {
        "r": 8,
        "alpha": 16,
        "dropout": 0.1,
        "bias": "none",
        "target_modules": None,
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": False,
    }
    assert job["spec"]["training"]["learning_rate"] == 2e-4
    assert job["created_at"].endswith("Z")
    assert client.get(answer.headers["location"]).json() == {**job, "final_evaluation": None, "push": None}


def test_a_job_needs_a_dataset_that_exists(client: TestClient) -> None:
    answer = client.post("/jobs", json=spec("ds_x"))
    assert answer.status_code == 404
    assert answer.json()["error"]["param"] == "dataset"


def test_a_job_needs_a_base_model_that_exists(client: TestClient, dataset: str) -> None:
    answer = client.post("/jobs", json=spec(dataset, base_model="nothing-here"))
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "model_unknown"
    assert answer.json()["error"]["param"] == "base_model"


def test_a_base_model_off_the_allow_list_is_refused(
    client: TestClient, settings: Settings, dataset: str
) -> None:
    settings.allowed_models = ["owner/other"]
    answer = client.post("/jobs", json=spec(dataset))
    assert answer.json()["error"]["code"] == "model_not_allowed"


def test_a_full_queue_says_when_to_come_back(client: TestClient, settings: Settings, dataset: str) -> None:
    settings.max_queued_jobs = 1
    client.post("/jobs", json=spec(dataset))
    answer = client.post("/jobs", json=spec(dataset))
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["error"]["type"] == "rate_limit_error"


def test_a_repeated_idempotency_key_answers_with_the_first_job(client: TestClient, dataset: str) -> None:
    headers = {"idempotency-key": "k"}
    first, second = (client.post("/jobs", json=spec(dataset), headers=headers) for _ in range(2))
    assert second.status_code == 202
    assert second.json() == first.json()
    assert second.headers["location"] == first.headers["location"]
    assert len(client.get("/jobs").json()["data"]) == 1


def test_an_idempotency_key_with_another_body_is_refused(client: TestClient, dataset: str) -> None:
    headers = {"idempotency-key": "k"}
    client.post("/jobs", json=spec(dataset), headers=headers)
    answer = client.post("/jobs", json=spec(dataset, name="other"), headers=headers)
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "idempotency_key_reused"


def test_a_refused_request_does_not_use_up_its_idempotency_key(client: TestClient, dataset: str) -> None:
    headers = {"idempotency-key": "k"}
    assert client.post("/jobs", json=spec("ds_x"), headers=headers).status_code == 404
    assert client.post("/jobs", json=spec(dataset), headers=headers).status_code == 202


def test_requests_with_one_key_at_once_make_one_job(client: TestClient, dataset: str) -> None:
    gate = threading.Barrier(8)

    def submit(_: int) -> str:
        gate.wait(10)
        answer = client.post("/jobs", json=spec(dataset), headers={"idempotency-key": "k"})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(submit, range(8)))) == 1
    assert len(client.get("/jobs").json()["data"]) == 1


def test_jobs_are_listed_by_pages_and_by_state(client: TestClient, database: Database) -> None:
    with database.transaction() as session:
        ids = [make_job(session).id for _ in range(3)]
        job_records.request_cancel(session, ids[1])
    first = client.get("/jobs", params={"limit": 2}).json()
    rest = client.get("/jobs", params={"limit": 2, "after": first["next"]}).json()
    assert [job["id"] for job in first["data"] + rest["data"]] == ids[::-1]
    assert rest["next"] is None
    cancelled = client.get("/jobs", params={"state": "cancelled"}).json()["data"]
    assert [job["id"] for job in cancelled] == [ids[1]]


@pytest.mark.parametrize(
    ("params", "param"), [({"state": "lost"}, "state"), ({"limit": 0}, "limit"), ({"after": "x"}, "after")]
)
def test_a_bad_query_names_its_parameter(client: TestClient, params: dict[str, Any], param: str) -> None:
    answer = client.get("/jobs", params=params)
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == param


def test_a_failed_job_shows_its_error_and_its_attempt(client: TestClient, database: Database) -> None:
    with database.transaction() as session:
        make_job(session)
    job = client.get(f"/jobs/{run_and_fail(database)}").json()
    assert job["state"] == "failed"
    assert job["error"] == {"code": "out_of_memory", "message": "Out of memory.", "hint": "Use less."}
    (attempt,) = job["attempts"]
    assert (attempt["number"], attempt["worker"], attempt["exit_reason"]) == (1, "worker-1", "failed")
    assert job["finished_at"] == attempt["ended_at"]


def test_a_waiting_job_is_cancelled_at_once(client: TestClient, database: Database) -> None:
    with database.transaction() as session:
        job_id = make_job(session).id
    answer = client.post(f"/jobs/{job_id}/cancel")
    assert answer.status_code == 202
    assert answer.json()["state"] == "cancelled"


def test_a_running_job_is_asked_to_stop(client: TestClient, database: Database) -> None:
    with database.transaction() as session:
        job_id = make_job(session).id
        queue.claim(session, "worker-1", lease_seconds=30)
    job = client.post(f"/jobs/{job_id}/cancel").json()
    assert job["state"] == "running"
    assert job["cancel_requested_at"] is not None


def test_a_job_that_has_ended_can_not_be_cancelled(client: TestClient, database: Database) -> None:
    with database.transaction() as session:
        job_id = make_job(session).id
    client.post(f"/jobs/{job_id}/cancel")
    answer = client.post(f"/jobs/{job_id}/cancel")
    assert answer.status_code == 409
    assert answer.json()["error"]["message"] == f"Job {job_id} is cancelled already."


def test_a_failed_job_is_queued_again_by_a_retry(
    client: TestClient, database: Database, dataset: str
) -> None:
    with database.transaction() as session:
        make_job(session, dataset=dataset)
    job = client.post(f"/jobs/{run_and_fail(database)}/retry").json()
    assert (job["state"], job["error"], job["finished_at"]) == ("queued", None, None)
    assert len(job["attempts"]) == 1


def test_a_waiting_job_can_not_be_retried(client: TestClient, database: Database) -> None:
    with database.transaction() as session:
        job_id = make_job(session).id
    answer = client.post(f"/jobs/{job_id}/retry")
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "job_not_retryable"


@pytest.mark.parametrize("path", ["", "/events", "/logs", "/metrics", "/metrics.svg"])
def test_an_unknown_job_is_not_found(client: TestClient, path: str) -> None:
    answer = client.get(f"/jobs/job_x{path}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "job_not_found"


def test_the_job_of_a_dead_worker_is_queued_again(settings: Settings, database: Database) -> None:
    with database.transaction() as session:
        job_id = make_job(session).id
        queue.claim(session, "worker-1", lease_seconds=-1)
    settings.lease_seconds = 0.03
    with (
        TestClient(create_app(settings)) as client,
        client.stream(
            "GET", f"/jobs/{job_id}/events", params={"after": 2}, headers={"accept": "text/event-stream"}
        ) as stream,
    ):
        line = next(line for line in stream.iter_lines() if line.startswith("data:"))
    assert '"state":"queued"' in line
    assert "The worker stopped answering" in line


def test_a_chat_template_that_can_not_be_read_is_refused_by_line(client: TestClient, dataset: str) -> None:
    answer = client.post("/jobs", json=spec(dataset, chat_template="{{ messages }}\n{% if %}"))

    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["param"] == "chat_template"
    assert "line 2" in error["message"]


def test_a_deleted_job_is_gone_with_its_folder(client: TestClient, services: Services, dataset: str) -> None:
    job_id = client.post("/jobs", json=spec(dataset)).json()["id"]
    folder = services.settings.job_folder(job_id)
    (services.settings.data_dir / "x").write_bytes(b"state")
    (folder / "checkpoints").mkdir(parents=True)
    # Part of a copy: its worker was killed before the job's row could name it.
    services.store.put_file(
        f"checkpoints/{job_id}/attempt-1-step-5/optimizer.pt", services.settings.data_dir / "x"
    )
    refused = client.delete(f"/jobs/{job_id}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "job_not_ended")
    assert folder.exists()
    client.post(f"/jobs/{job_id}/cancel")
    assert client.delete(f"/jobs/{job_id}").status_code == 204
    assert client.get(f"/jobs/{job_id}").status_code == 404
    assert not folder.exists()
    assert services.store.list_files("checkpoints") == []


def test_jobs_are_searched_by_name_id_and_base_model(client: TestClient, dataset: str) -> None:
    names = ("support-bot", "other")
    ids = [client.post("/jobs", json=spec(dataset, name=name)).json()["id"] for name in names]
    client.post("/jobs", json=spec(dataset, name="tuned", base_model="owner/Qwen"))

    def found(text: str) -> list[str]:
        return [job["name"] for job in client.get("/jobs", params={"search": text}).json()["data"]]

    assert found("SUPPORT") == ["support-bot"]
    assert found(ids[1]) == ["other"]
    assert found("qwen") == ["tuned"]
    assert found("%") == []


def test_a_waiting_job_knows_its_place_in_line(client: TestClient, dataset: str) -> None:
    first, second = (client.post("/jobs", json=spec(dataset)).json()["id"] for _ in range(2))
    assert client.get(f"/jobs/{second}").json()["queue_position"] == 2
    assert [job["queue_position"] for job in client.get("/jobs").json()["data"]] == [2, 1]
    client.post(f"/jobs/{first}/cancel")
    assert client.get(f"/jobs/{second}").json()["queue_position"] == 1
    assert client.get(f"/jobs/{first}").json()["queue_position"] is None


def test_notes_are_changed_in_any_state_found_and_filtered(client: TestClient, dataset: str) -> None:
    job_id = client.post("/jobs", json=spec(dataset, metadata={"team": "sales"})).json()["id"]
    client.post("/jobs", json=spec(dataset))
    client.post(f"/jobs/{job_id}/cancel")
    changed = client.patch(f"/jobs/{job_id}", json={"metadata": {"team": "support", "note": "try again"}})
    assert changed.json()["spec"]["metadata"] == {"team": "support", "note": "try again"}
    found = client.get("/jobs", params={"search": "TRY AGAIN"}).json()["data"]
    assert [job["id"] for job in found] == [job_id]
    listed = client.get("/v1/fine_tuning/jobs", params={"metadata[team]": "support"}).json()["data"]
    assert len(listed) == 1
    assert client.patch(f"/jobs/{job_id}", json={"name": "x"}).status_code == 422
    assert client.patch(f"/jobs/{job_id}", json={"metadata": {"k": "v" * 513}}).status_code == 422


def test_a_waiting_job_gets_another_priority_and_a_running_one_does_not(
    client: TestClient, database: Database
) -> None:
    with database.transaction() as session:
        first, second = make_job(session).id, make_job(session).id
    changed = client.patch(f"/jobs/{second}", json={"priority": 3})
    assert changed.status_code == 200
    assert (changed.json()["queue_position"], changed.json()["spec"]["priority"]) == (1, 3)
    assert client.get(f"/jobs/{first}").json()["queue_position"] == 2

    with database.transaction() as session:
        lease = queue.claim(session, "worker", lease_seconds=30)
    assert lease is not None
    assert lease.job_id == second
    refused = client.patch(f"/jobs/{second}", json={"priority": 4, "metadata": {"team": "support"}})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "not_waiting")
    # Nothing of a request that is refused is done.
    assert client.get(f"/jobs/{second}").json()["spec"]["metadata"] == {}
    assert client.patch(f"/jobs/{first}", json={}).status_code == 422
