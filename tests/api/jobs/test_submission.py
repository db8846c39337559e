"""A submitted job's base model is looked at by an engine where one runs."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.api.deps import Services
from app.core.engine.messages import Failed
from app.core.engine.preflight import Checked, CheckRequest
from tests.api.jobs.conftest import MODEL, FakePreflight
from tests.factories import jsonl, make_adapter

REFUSED = Failed(kind="invalid", code="bad_target_modules", message="No 'v_porj'.", hint="Name 'v_proj'.")


def submit(client: TestClient, dataset_id: str, **fields: Any) -> Any:
    return client.post("/jobs", json={"base_model": MODEL, "dataset": dataset_id, **fields})


def test_what_can_not_run_is_refused_and_not_queued(
    client: TestClient,
    engine: FakePreflight,
    dataset: str,
) -> None:
    engine.status, engine.answer = 422, REFUSED

    response = submit(client, dataset, lora={"target_modules": ["q_proj", "v_porj"]})

    assert response.status_code == 422
    assert response.json()["error"]["code"] == "bad_target_modules"
    assert client.get("/jobs").json()["data"] == []
    path, body, _token = engine.asked[0]
    asked = CheckRequest.model_validate_json(body)
    assert (path, asked.spec.lora.target_modules) == ("/check", ["q_proj", "v_porj"])


def test_an_openai_client_gets_the_same_refusal(client: TestClient, engine: FakePreflight) -> None:
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 10
    upload = client.post(
        "/v1/files", files={"file": ("rows.jsonl", jsonl(rows))}, data={"purpose": "fine-tune"}
    )
    engine.status, engine.answer = 422, REFUSED

    response = client.post(
        "/v1/fine_tuning/jobs", json={"model": MODEL, "training_file": upload.json()["id"]}
    )

    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("No 'v_porj'.")
    assert client.get("/jobs").json()["data"] == []


def test_a_job_that_continues_an_adapter_is_looked_at_with_its_settings(
    client: TestClient,
    engine: FakePreflight,
    services: Services,
    dataset: str,
) -> None:
    engine.answer = Checked(is_here=True)
    with services.database.transaction() as session:
        adapter = make_adapter(session, base_model=MODEL).id

    assert submit(client, dataset, continue_from="helper").status_code == 202

    assert CheckRequest.model_validate_json(engine.asked[0][1]).spec.continue_from == adapter


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (200, Checked(is_here=True)),
        (200, Checked(is_here=False)),
        (200, None),
        (503, Failed(kind="unavailable", code="engine_busy", message="Later.")),
        (500, Failed(kind="internal", code="preflight_error", message="A fault.")),
        (404, None),
    ],
)
def test_a_job_is_taken_where_nothing_is_known_against_it(
    client: TestClient,
    engine: FakePreflight,
    dataset: str,
    status: int,
    answer: Any,
) -> None:
    engine.status, engine.answer = status, answer

    assert submit(client, dataset).status_code == 202


def test_without_an_engine_a_job_is_taken(client: TestClient, dataset: str) -> None:
    assert submit(client, dataset).status_code == 202
