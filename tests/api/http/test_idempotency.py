"""Repeated requests, over every native route that creates something."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response

from app.api.datasets import routes as dataset_routes
from app.api.deps import Services
from app.core.settings import Settings
from app.main import create_app
from tests.factories import CHAT_ROW, jsonl, make_dataset

KEY = {"idempotency-key": "k"}
Post = Callable[[TestClient, dict[str, str]], Response]


def upload(client: TestClient, headers: dict[str, str], rows: int = 1, **fields: str) -> Response:
    files = {"file": ("rows.jsonl", jsonl([CHAT_ROW] * rows))}
    return client.post("/datasets", files=files, data=fields, headers=headers)


def name_hub_dataset(client: TestClient, headers: dict[str, str], **fields: str) -> Response:
    return client.post("/datasets", json={"hub_dataset": "owner/rows", **fields}, headers=headers)


def submit(client: TestClient, headers: dict[str, str], **fields: Any) -> Response:
    services: Services = client.app.state.services  # type: ignore[attr-defined]
    dataset = client.get("/datasets").json()["data"]
    if not dataset:
        with services.database.transaction() as session:
            make_dataset(session, services.store, services.settings.data_dir)
        dataset = client.get("/datasets").json()["data"]
    return client.post(
        "/jobs", json={"base_model": "owner/model", "dataset": dataset[-1]["id"], **fields}, headers=headers
    )


@pytest.fixture(params=[upload, name_hub_dataset, submit])
def post(request: pytest.FixtureRequest) -> Post:
    found: Post = request.param
    return found


def test_a_repeated_key_answers_with_the_first_result(client: TestClient, post: Post) -> None:
    first, second = (post(client, KEY) for _ in range(2))
    assert first.is_success
    assert (second.status_code, second.json()) == (first.status_code, first.json())


def test_a_key_outlives_the_process(client: TestClient, settings: Settings, post: Post) -> None:
    first = post(client, KEY)
    with TestClient(create_app(settings)) as restarted:
        assert post(restarted, KEY).json() == first.json()


def test_a_key_with_another_body_is_refused(client: TestClient) -> None:
    upload(client, KEY)
    for answer in (upload(client, KEY, rows=2), upload(client, KEY, name="other")):
        assert answer.status_code == 422
        assert answer.json()["error"]["code"] == "idempotency_key_reused"


def test_a_retry_without_a_key_makes_nothing_new(client: TestClient, post: Post) -> None:
    first, again, retry = (
        post(client, {"x-stainless-retry-count": count}).json()["id"] for count in ("0", "0", "2")
    )
    assert first != again
    assert retry == again


def test_a_retry_count_of_thousands_of_digits_is_a_retry(client: TestClient, post: Post) -> None:
    first, retry = (
        post(client, {"x-stainless-retry-count": count}).json()["id"] for count in ("0", "9" * 5000)
    )
    assert retry == first


def test_the_retry_of_a_refused_request_is_not_answered_from_an_earlier_one(
    client: TestClient, settings: Settings
) -> None:
    submit(client, {})
    settings.max_queued_jobs = 1
    assert submit(client, {"x-stainless-retry-count": "0"}).status_code == 429
    assert submit(client, {"x-stainless-retry-count": "1"}).status_code == 429
    settings.max_queued_jobs = 2
    assert submit(client, {"x-stainless-retry-count": "2"}).status_code == 202
    assert len(client.get("/jobs").json()["data"]) == 2


def test_a_key_of_what_was_deleted_makes_no_second_one(client: TestClient) -> None:
    dataset_id = upload(client, KEY).json()["id"]
    client.delete(f"/datasets/{dataset_id}")
    answer = upload(client, KEY)
    assert answer.status_code == 404
    assert dataset_id in answer.json()["error"]["message"]


def test_uploads_with_one_key_at_once_store_one_file(
    client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Barrier(4)
    add = dataset_routes._add

    def add_together(*arguments: Any) -> Any:
        # Every upload is in the store by now, and none has its row.
        gate.wait(20)
        return add(*arguments)

    monkeypatch.setattr(dataset_routes, "_add", add_together)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: upload(client, KEY), range(4)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(list(Path(settings.artifacts_url).rglob("*.jsonl"))) == 1


def test_a_key_longer_than_255_is_refused(client: TestClient) -> None:
    answer = name_hub_dataset(client, {"idempotency-key": "k" * 256})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "idempotency-key")
