"""No text of a request is an error of the server, on PostgreSQL too, which refuses NUL."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.core.settings import Settings
from app.main import create_app
from tests.factories import CHAT_ROW, jsonl, make_dataset

_NUL = "a\0b"


@pytest.fixture
def client(settings: Settings, postgres_url: str) -> Iterator[TestClient]:
    app = create_app(settings.model_copy(update={"database_url": postgres_url}))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def dataset_id(client: TestClient, settings: Settings) -> str:
    services = client.app.state.services  # type: ignore[attr-defined]
    with services.database.transaction() as session:
        return make_dataset(session, services.store, settings.data_dir).id


def test_nul_in_any_path_or_query_is_no_error_of_the_server(client: TestClient) -> None:
    failures = []
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for method, operation in methods.items():
            parameters = operation.get("parameters", [])
            names = {one["name"] for one in parameters if one["in"] == "path"}
            texts = {one["name"]: _NUL for one in parameters if one["in"] == "query" and _is_text(one)}
            url = path.format(**dict.fromkeys(names, "a%00b"))
            for query in ({}, texts):
                status = client.request(method, url, params=query).status_code
                if status == 500:
                    failures.append((method, path, query))
    assert failures == []


def test_nul_in_a_job_s_metadata_leaves_every_list_readable(client: TestClient, dataset_id: str) -> None:
    job = {"base_model": "owner/model", "dataset": dataset_id, "metadata": {"note": _NUL}}
    made = client.post("/jobs", json=job)
    assert made.status_code == 202
    assert client.post("/jobs", json={**job, "name": _NUL}).status_code == 422
    for url in (
        "/jobs",
        "/jobs?search=a%00b",
        "/v1/fine_tuning/jobs",
        "/v1/fine_tuning/jobs?metadata[note]=a%00b",
        f"/jobs/{made.json()['id']}",
    ):
        assert client.get(url).status_code == 200, url
    # A job that names the dataset is found in the text of its spec.
    assert client.delete(f"/datasets/{dataset_id}").status_code == 409


@pytest.mark.parametrize(
    ("url", "body"),
    [
        ("/webhooks", {"url": "https://example.org/", "name": _NUL}),
        ("/datasets", {"hub_dataset": "owner/name", "name": _NUL}),
        ("/jobs/preflight", {"base_model": "owner/model", "dataset": _NUL}),
        ("/v1/fine_tuning/jobs", {"model": "owner/model", "training_file": _NUL}),
        ("/v1/fine_tuning/jobs", {"model": _NUL, "training_file": "ds_0000000000000000"}),
        ("/generate", {"adapter": _NUL, "prompt": "Hello"}),
        ("/v1/chat/completions", {"model": _NUL, "messages": [{"role": "user", "content": _NUL}]}),
        ("/v1/responses", {"model": "owner/model", "input": _NUL, "previous_response_id": _NUL}),
        ("/exports", {"adapter": _NUL, "format": "merged"}),
    ],
)
def test_nul_in_a_body_is_no_error_of_the_server(client: TestClient, url: str, body: dict[str, Any]) -> None:
    assert client.post(url, json=body).status_code != 500


def test_nul_in_names_of_uploads_and_their_fields_is_replaced(client: TestClient) -> None:
    rows = jsonl([CHAT_ROW | {"odd\0field": 1, "score": 2}] * 12)
    form = {"name": _NUL, "on_unused": "ignore"}
    made = client.post("/datasets", data=form, files={"file": ("rows.jsonl", rows)})
    assert made.status_code == 201
    shown = client.get(f"/datasets/{made.json()['id']}").json()
    assert shown["name"] == "a\ufffdb"
    problems = client.post("/datasets", files={"file": ("x.jsonl", b'{"a\\u0000": "\\u0000"}\n' * 3)})
    assert problems.status_code == 422
    kept = client.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("x\0.jsonl", b"\0{\0")})
    assert kept.status_code == 200


def _is_text(parameter: dict[str, Any]) -> bool:
    schemas = [parameter["schema"], *parameter["schema"].get("anyOf", [])]
    return any(schema.get("type") == "string" for schema in schemas)
