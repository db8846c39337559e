"""Preflights and previews through the API and the engine's processes."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.core.engine import workers
from app.core.engine.workers import WorkerReport
from app.core.settings import Settings
from app.core.storage.database import Database
from app.main import create_app
from tests.factories import CHAT_ROW, jsonl
from tests.tiny_model import NAME
from tests.worker.engine_process import TOKEN
from tests.worker.preflight.conftest import RunningEngine


@pytest.fixture
def client(
    settings: Settings, database: Database, engine: RunningEngine, shared_folder: Path, models_folder: Path
) -> Iterator[TestClient]:
    """A client of an API that shares artifacts and models with the engine."""
    report = WorkerReport("worker-1", ["serve"], engine_url=engine.url, engine_token=TOKEN)
    with database.transaction() as session:
        workers.heartbeat(session, report)
    shared = settings.model_copy(update={"artifacts_url": str(shared_folder), "models_dir": models_folder})
    with TestClient(create_app(shared)) as client:
        yield client


def upload(client: TestClient, count: int) -> Any:
    return client.post("/datasets", files={"file": ("rows.jsonl", jsonl([CHAT_ROW] * count))}).json()["id"]


def test_a_preflight_reports_on_a_job_and_starts_none(client: TestClient) -> None:
    spec = {"base_model": NAME, "dataset": upload(client, 30), "training": {"assistant_only_loss": True}}

    response = client.post("/jobs/preflight", json=spec)

    assert response.status_code == 200, response.text
    answer = response.json()
    assert (answer["rows"], answer["training_rows"], answer["optimizer_steps"]) == (30, 30, 8)
    assert answer["fits"]
    assert client.get("/jobs").json()["data"] == []


def test_rows_are_shown_as_the_model_sees_them(client: TestClient) -> None:
    dataset = upload(client, 3)

    response = client.get(
        f"/datasets/{dataset}/preview",
        params={"base_model": NAME, "limit": 2, "assistant_only_loss": True},
    )

    assert response.status_code == 200, response.text
    first, second = response.json()["data"]
    assert (first["line"], second["line"], response.json()["next"]) == (1, 2, 2)
    trained = "".join(token["text"] for token in first["tokens"] if token["trained"])
    assert trained == "POST /jobs/{id}/cancel.<|im_end|>"


def test_the_engine_answers_while_a_preflight_runs(client: TestClient, engine: RunningEngine) -> None:
    """The preflight reads the dataset for about a second."""
    spec = {"base_model": NAME, "dataset": upload(client, 3000)}
    answers: list[int] = []
    preflight = threading.Thread(
        target=lambda: answers.append(client.post("/jobs/preflight", json=spec).status_code)
    )
    preflight.start()
    health_checks = 0
    while not answers:
        assert engine.http.get("/health").status_code == 200
        health_checks += 1
    preflight.join()

    assert answers == [200]
    assert health_checks > 5
