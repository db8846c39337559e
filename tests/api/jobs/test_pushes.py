"""`push_to_hub` in a job's spec, and the push that a job shows."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.api.deps import Services
from app.core.engine import workers
from app.core.engine.workers import WorkerReport
from app.core.exports import records as export_records
from app.core.jobs import pushes
from app.core.keys import records as key_records
from app.core.keys.records import Caller, KeyLimits
from app.core.keys.scopes import Scope, allowed
from app.core.specs.export import export_spec_adapter
from tests.factories import make_adapter
from tests.pushes import REFUSED, end_push, make_pushing_job

PUSH = {"repository": "me/helper"}


def submit(client: TestClient, dataset: str, push: Any) -> Any:
    body = {"base_model": "owner/model", "dataset": dataset, "push_to_hub": push}
    return client.post("/jobs", json=body)


def push_of(client: TestClient, job_id: str) -> Any:
    return client.get(f"/jobs/{job_id}").json()["push"]


def test_a_push_has_every_default_filled_in(client: TestClient, dataset: str) -> None:
    job = submit(client, dataset, PUSH).json()
    assert job["spec"]["push_to_hub"] == {
        "repository": "me/helper",
        "content": "adapter",
        "private": True,
        "revision": None,
        "tags": [],
        "update": True,
    }
    assert push_of(client, job["id"]) is None


@pytest.mark.parametrize(
    ("push", "param"),
    [
        ({"repository": "helper"}, "push_to_hub.repository"),
        ({"tags": ["support"]}, "push_to_hub.repository"),
        ({**PUSH, "revision": "a b"}, "push_to_hub.revision"),
        ({**PUSH, "token": "hf_secret"}, "push_to_hub.token"),
    ],
)
def test_what_the_hub_does_not_take_is_refused(
    push: dict[str, Any], param: str, client: TestClient, dataset: str
) -> None:
    response = submit(client, dataset, push)
    assert (response.status_code, response.json()["error"]["param"]) == (422, param)


def test_a_push_that_no_worker_has_a_token_for_is_refused(
    client: TestClient, dataset: str, services: Services
) -> None:
    with services.database.transaction() as session:
        workers.heartbeat(session, WorkerReport("worker-1", ["train"], has_hub_token=False))
    error = submit(client, dataset, PUSH).json()["error"]
    assert (error["param"], "HF_TOKEN" in error["hint"]) == ("push_to_hub", True)
    assert submit(client, dataset, None).status_code == 202
    with services.database.transaction() as session:
        workers.heartbeat(session, WorkerReport("worker-2", ["train"], has_hub_token=True))
    assert submit(client, dataset, PUSH).status_code == 202


def test_a_job_shows_its_push_which_is_repeated_until_it_succeeds(
    client: TestClient, services: Services
) -> None:
    with services.database.transaction() as session:
        job_id = make_pushing_job(session)
    export_id = push_of(client, job_id)["export"]
    assert client.get(f"/exports/{export_id}").json()["job"] == job_id
    with services.database.transaction() as session:
        end_push(session, url=None)
    failed = push_of(client, job_id)
    assert (failed["state"], failed["error"]["message"]) == ("failed", REFUSED.message)
    assert client.get(f"/jobs/{job_id}").json()["state"] == "succeeded"
    log = client.get(f"/jobs/{job_id}/logs").text
    assert f"{REFUSED.message} {REFUSED.hint} POST /exports/{export_id}/retry tries again." in log

    assert client.post(f"/exports/{export_id}/retry").status_code in (200, 202)
    with services.database.transaction() as session:
        end_push(session, url="https://huggingface.co/me/helper")

    done = push_of(client, job_id)
    assert (done["state"], done["url"], done["error"]) == (
        "succeeded",
        "https://huggingface.co/me/helper",
        None,
    )


def test_a_push_waits_with_the_priority_of_its_job_and_counts_for_its_key(services: Services) -> None:
    limits = KeyLimits(queued_jobs=1)  # as many exports of the key wait already: a push is not refused
    with services.database.transaction() as session:
        key, _ = key_records.create(session, "narrow", scopes=[Scope.TRAIN], limits=limits)
        adapter = make_adapter(session, id="ad_1111111111111111", name="other")
        spec = export_spec_adapter.validate_python({"format": "merged"})
        caller = Caller(key_id=key.id, name="narrow", scopes=allowed([Scope.TRAIN]), limits=limits)
        export_records.submit(session, adapter, spec, max_waiting=None, caller=caller)
        # The priority was changed while the job waited: it is not that of its spec.
        push = pushes.find(session, make_pushing_job(session, key_id=key.id, priority=5))
    assert push is not None
    assert (push.key_id, push.priority, push.spec["priority"]) == (key.id, 5, 5)


def test_a_job_and_its_adapter_are_deleted_after_the_push_alone(
    client: TestClient, services: Services
) -> None:
    with services.database.transaction() as session:
        job_id = make_pushing_job(session)
    adapter_id = client.get("/adapters").json()["data"][0]["id"]
    assert client.delete(f"/adapters/{adapter_id}").status_code == 409
    export_id = push_of(client, job_id)["export"]
    with services.database.transaction() as session:
        end_push(session, url=None)
    assert client.delete(f"/adapters/{adapter_id}").status_code == 204
    assert client.delete(f"/jobs/{job_id}").status_code == 204

    assert client.get(f"/exports/{export_id}").json()["state"] == "failed"
    client.post(f"/exports/{export_id}/retry")
    with services.database.transaction() as session:
        end_push(session, url=None)  # there is no job to record it for
    assert client.get(f"/exports/{export_id}").json()["state"] == "failed"
