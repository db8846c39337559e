import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.responses import PlainTextResponse

from app.core.engine import client as engine_client, workers
from app.core.engine.messages import BaseModelRef
from app.core.engine.state import EngineHealth, EngineState, LoadingBase, ServedBase, WaitingRequests
from app.core.engine.workers import WorkerReport
from app.core.settings import Settings
from app.core.specs.job import QuantizationSpec
from app.core.storage.database import Database
from app.main import create_app
from tests.fakes import FakeEngine, ServerThread


def register(database: Database, **fields: Any) -> None:
    report = {"id": "worker-1", "roles": ["train", "serve"], "engine_url": "http://127.0.0.1:9", **fields}
    with database.transaction() as session:
        workers.heartbeat(session, WorkerReport(engine_token="secret", **report))


def test_health_is_ok(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok"}


def test_without_a_worker_it_is_not_ready(client: TestClient) -> None:
    answer = client.get("/ready")
    assert answer.status_code == 503
    assert answer.json() == {
        "ready": False,
        "reasons": ["No worker is alive: start one with `python -m worker`."],
        "workers": [],
    }


def test_with_a_worker_that_trains_and_serves_it_is_ready(
    client: TestClient, database: Database, engine: FakeEngine
) -> None:
    register(database, device={"name": "cpu"}, engine_url=engine.url)
    answer = client.get("/ready")
    assert answer.status_code == 200
    assert answer.json()["reasons"] == []
    (worker,) = answer.json()["workers"]
    assert (worker["id"], worker["device"]) == ("worker-1", {"name": "cpu"})
    assert "secret" not in answer.text
    assert engine.url not in answer.text


def test_a_killed_workers_row_does_not_make_it_ready(client: TestClient, database: Database) -> None:
    register(database)
    answer = client.get("/ready")
    assert answer.status_code == 503
    assert "does not answer" in answer.json()["reasons"][0]


@pytest.mark.parametrize(
    "health", [EngineHealth(silent_seconds=11, limit_seconds=10).model_dump_json(), "not JSON", "{}x"]
)
def test_an_engine_that_does_not_move_does_not_make_it_ready(
    client: TestClient, database: Database, health: str
) -> None:
    frozen = ServerThread(PlainTextResponse(health), lifespan="off")
    register(database, engine_url=frozen.url)
    answer = client.get("/ready")
    frozen.stop()
    assert answer.status_code == 503
    assert answer.json()["reasons"] == [
        "The engine does not answer: it has frozen and is started again, or its worker was killed."
    ]


def test_an_engine_that_takes_its_time_is_ready(client: TestClient, database: Database) -> None:
    busy = EngineHealth(silent_seconds=100, limit_seconds=120).model_dump_json()
    engine = ServerThread(PlainTextResponse(busy), lifespan="off")
    register(database, engine_url=engine.url)
    answer = client.get("/ready")
    engine.stop()
    assert answer.status_code == 200


def test_a_silent_engine_does_not_make_it_ready(
    client: TestClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_client, "CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        register(database, engine_url=f"http://127.0.0.1:{silent.getsockname()[1]}")
        answer = client.get("/ready")
    assert answer.status_code == 503


def test_another_process_at_the_engines_address_is_no_engine(client: TestClient, database: Database) -> None:
    stranger = ServerThread(PlainTextResponse("Not Found", 404), lifespan="off")
    register(database, engine_url=stranger.url)
    assert client.get("/ready").status_code == 503
    stranger.stop()


def test_an_engine_that_still_starts_is_a_reason(client: TestClient, database: Database) -> None:
    register(database, engine_url=None)
    answer = client.get("/ready")
    assert answer.status_code == 503
    assert answer.json()["reasons"] == ["The engine is still starting."]


def test_a_missing_role_is_a_reason(client: TestClient, database: Database) -> None:
    register(database, roles=["train"], engine_url=None)
    (reason,) = client.get("/ready").json()["reasons"]
    assert reason.startswith("No worker serves")


def test_a_pause_names_the_job_that_has_the_gpu(
    client: TestClient, database: Database, engine: FakeEngine
) -> None:
    register(database, engine_state=EngineState(paused_by="job_1"), engine_url=engine.url)
    answer = client.get("/ready")
    assert answer.status_code == 200
    assert answer.json()["reasons"] == ["Serving is paused: job job_1 has the GPU."]


def test_a_problem_of_a_workers_machine_is_a_reason(client: TestClient, database: Database) -> None:
    register(database, problems=["bitsandbytes: Its own check failed."])
    answer = client.get("/ready")
    assert answer.status_code == 503
    assert answer.json()["reasons"] == ["Worker worker-1: bitsandbytes: Its own check failed."]


def test_reasons_name_the_model_being_loaded_and_those_waited_for(
    client: TestClient, database: Database, engine: FakeEngine
) -> None:
    one, two, three = (
        BaseModelRef(name=name, quantization=QuantizationSpec()) for name in ("one", "two", "three")
    )
    state = EngineState(
        bases=[ServedBase(base_model=one, weight_bits=4)],
        loading=LoadingBase(base_model=two, since=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        waiting=[
            WaitingRequests(base_model=one, count=9),
            WaitingRequests(base_model=two, count=1),
            WaitingRequests(base_model=three, count=5),
        ],
    )
    register(database, engine_state=state, engine_url=engine.url)
    answer = client.get("/ready")
    assert answer.status_code == 200
    assert answer.json()["reasons"] == [
        "An engine has been loading the base model two since 2026-01-02T03:04:05Z.",
        "The base model three is not loaded, and the engine is busy with one, two. Waiting for it: 5.",
    ]


def test_a_database_without_tables_is_not_ready(tmp_path: Path) -> None:
    with TestClient(create_app(Settings(data_dir=tmp_path, allowed_hosts=["testserver"]))) as client:
        answer = client.get("/ready")
    assert answer.status_code == 503
    assert "has not been migrated" in answer.json()["reasons"][0]
