from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response

from app.api.datasets.hub import HubDataset
from app.core.datasets.fetches import DatasetFailure, fetch_queue
from app.core.settings import Settings
from app.core.storage.database import Database
from tests.factories import CHAT_ROW, jsonl


def name_dataset(client: TestClient, **fields: Any) -> Response:
    return client.post("/datasets", json={"hub_dataset": "owner/name", **fields})


@pytest.fixture
def fetching(client: TestClient) -> str:
    return str(name_dataset(client).json()["id"])


def fail(database: Database) -> None:
    with database.transaction() as session:
        lease = fetch_queue.claim(session, lease_seconds=30, max_attempts=3)
        assert lease is not None
        problems: tuple[dict[str, object], ...] = ({"line": 2, "message": "it is empty."},)
        fetch_queue.fail(
            session, lease, DatasetFailure("dataset_invalid", "1 of 2 rows.", "Mend it.", problems)
        )


def test_a_named_dataset_is_taken_at_once_and_shown_as_fetching(client: TestClient) -> None:
    fields = {"config": "small", "split": "test", "revision": "v1", "column_map": {"text": "body"}}
    answer = name_dataset(client, **fields, on_problem="skip", on_unused="ignore")
    assert answer.status_code == 202
    dataset = answer.json()
    assert answer.headers["location"] == f"/datasets/{dataset['id']}"
    assert (dataset["state"], dataset["name"], dataset["format"]) == ("fetching", "owner/name", None)
    assert dataset["hub"] == {
        "hub_dataset": "owner/name",
        "config": "small",
        "split": "test",
        "revision": "v1",
        "commit": None,
    }
    assert client.get(f"/datasets/{dataset['id']}").json() == dataset
    assert client.get("/datasets").json()["data"] == [dataset]


def test_a_named_dataset_can_have_another_name(client: TestClient) -> None:
    assert name_dataset(client, name="help").json()["name"] == "help"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"hub_dataset": "name"}, "hub_dataset"),
        ({"hub_dataset": "../../etc"}, "hub_dataset"),
        ({"hub_dataset": "https://host/name"}, "hub_dataset"),
        ({"split": "train[:10%]"}, "split"),
        ({"revision": "-x"}, "revision"),
        ({"on_problem": "ignore"}, "on_problem"),
        ({"on_unused": "skip"}, "on_unused"),
        ({"column_map": {"prompts": "q"}}, "column_map"),
        ({"column_map": [1]}, "column_map"),
        ({"splits": "train"}, "splits"),
    ],
)
def test_a_wrong_field_is_named(client: TestClient, fields: dict[str, Any], param: str) -> None:
    answer = name_dataset(client, **fields)
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == param


def test_an_upload_is_still_an_upload(client: TestClient) -> None:
    answer = client.post("/datasets", files={"file": ("rows.jsonl", jsonl([CHAT_ROW]))})
    assert answer.status_code == 201
    assert (answer.json()["state"], answer.json()["hub"], answer.json()["error"]) == ("ready", None, None)


def test_a_json_body_has_the_limit_of_other_requests(client: TestClient, settings: Settings) -> None:
    answer = name_dataset(client, name="x" * settings.max_body_bytes)
    assert answer.status_code == 413
    assert "MAX_BODY_BYTES" in answer.json()["error"]["hint"]


@pytest.mark.parametrize("field", ["dataset", "validation_dataset"])
@pytest.mark.parametrize("path", ["/jobs", "/jobs/preflight"])
def test_a_job_waits_for_no_dataset(client: TestClient, fetching: str, path: str, field: str) -> None:
    ready = client.post("/datasets", files={"file": ("rows.jsonl", jsonl([CHAT_ROW]))}).json()["id"]
    answer = client.post(path, json={"base_model": "owner/model", "dataset": ready, field: fetching})
    assert answer.status_code == 409
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("dataset_not_ready", field)
    assert f"GET /datasets/{fetching}" in error["hint"]


def test_a_dataset_that_is_not_there_yet_has_no_preview(client: TestClient, fetching: str) -> None:
    answer = client.get(f"/datasets/{fetching}/preview", params={"base_model": "owner/model"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "dataset_not_ready")


def test_a_failed_dataset_says_why_and_a_job_can_not_have_it(
    client: TestClient, fetching: str, database: Database
) -> None:
    fail(database)
    dataset = client.get(f"/datasets/{fetching}").json()
    assert dataset["state"] == "failed"
    assert dataset["error"] == {"code": "dataset_invalid", "message": "1 of 2 rows.", "hint": "Mend it."}
    assert dataset["problems"] == [{"line": 2, "message": "it is empty."}]
    answer = client.post("/jobs", json={"base_model": "owner/model", "dataset": fetching})
    assert answer.status_code == 409
    assert "1 of 2 rows." in answer.json()["error"]["message"]


def test_a_dataset_that_is_being_fetched_can_be_deleted(
    client: TestClient, fetching: str, database: Database
) -> None:
    assert client.delete(f"/datasets/{fetching}").status_code == 204
    assert client.get(f"/datasets/{fetching}").status_code == 404
    with database.transaction() as session:
        assert fetch_queue.claim(session, lease_seconds=30, max_attempts=3) is None


def test_the_json_body_is_documented(client: TestClient) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/datasets"]["post"]
    content = operation["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", "application/json"}
    fields = content["application/json"]["schema"]["properties"]
    assert set(fields) == set(HubDataset.model_fields)
    assert all(field["description"] for field in fields.values())
    HubDataset.model_validate(content["application/json"]["example"])
    assert "202" in operation["responses"]
