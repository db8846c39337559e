"""A killed worker stays in the table for a lease; another process may have its engine's address by then."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp

from app.core.engine.messages import BaseModelRef, Failed, TokenDelta
from app.core.engine.state import EngineState
from app.core.specs.job import QuantizationSpec
from app.core.storage.database import Database
from tests.fakes import Act, FakeEngine, ServerThread

ASK = {"base_model": "owner/model", "prompt": "Hello"}
LOADED = EngineState(base_model=BaseModelRef(name="owner/model", quantization=QuantizationSpec()))
UNAUTHORIZED = Failed(kind="invalid", code="unauthorized", message="The engine's token is wrong.")


@pytest.fixture
def other_processes() -> Iterator[list[ServerThread]]:
    """Other processes on the addresses of dead engines."""
    servers: list[ServerThread] = []
    yield servers
    for server in servers:
        server.stop()


def leave_dead_worker(engine: FakeEngine, database: Database, url: str) -> None:
    """Add the row of a dead worker that is preferred, since its model is loaded."""
    engine.register(database, LOADED, id="worker-0", engine_url=url)


STRANGERS: dict[str, ASGIApp] = {
    "another program": PlainTextResponse("Not Found", 404),
    "a silent one": Response(status_code=404),
    "a page": PlainTextResponse("<html>"),
    "the engine of another stack": Response(UNAUTHORIZED.model_dump_json(), 401),
}


@pytest.mark.parametrize("kind", STRANGERS)
@pytest.mark.parametrize("stream", [False, True])
def test_another_process_at_a_dead_engines_address_is_passed_over(
    client: TestClient,
    engine: FakeEngine,
    database: Database,
    other_processes: list[ServerThread],
    kind: str,
    stream: bool,
) -> None:
    other_processes.append(ServerThread(STRANGERS[kind], lifespan="off"))
    leave_dead_worker(engine, database, other_processes[0].url)
    refused = client.post("/generate", json=ASK).json()["error"]
    assert refused["code"] == "engine_failed"
    engine.register(database)
    answer = client.post("/generate", json={**ASK, "stream": stream})
    assert (answer.status_code, len(engine.requests)) == (200, 1)


def test_an_address_without_a_server_is_passed_over(
    client: TestClient, engine: FakeEngine, database: Database
) -> None:
    leave_dead_worker(engine, database, "http://127.0.0.1:9")
    engine.register(database)
    assert client.post("/generate", json=ASK).json()["text"] == "Hello"


def test_an_engine_that_breaks_off_is_not_asked_again_elsewhere(
    client: TestClient, engine: FakeEngine, database: Database
) -> None:
    engine.script = [TokenDelta(text="Hel"), Act.BREAK]
    engine.register(database, LOADED)
    engine.register(database, id="worker-2")
    assert client.post("/generate", json=ASK).json()["error"]["code"] == "engine_failed"
    assert len(engine.requests) == 1
