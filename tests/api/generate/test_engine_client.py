"""A killed worker stays in the table for a lease; another process may have its engine's address by then. What
an engine has not begun to generate when it ends, another one does.
"""

import socket
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp

from app.core.engine.balancing import probes
from app.core.engine.messages import BaseModelRef, Failed, TokenDelta
from app.core.engine.state import EngineState, ServedBase
from app.core.specs.job import QuantizationSpec
from app.core.storage.database import Database
from tests.fakes import Act, FakeEngine, ServerThread

ASK = {"base_model": "owner/model", "prompt": "Hello"}
LOADED = EngineState(base_model=BaseModelRef(name="owner/model", quantization=QuantizationSpec()))
HELD = BaseModelRef(name="owner/other", quantization=QuantizationSpec())
OTHER = EngineState(bases=[ServedBase(base_model=HELD, weight_bits=4)])
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


@pytest.fixture
def second(database: Database) -> Iterator[FakeEngine]:
    """Another engine, which does not have the base model."""
    engine = FakeEngine()
    engine.register(database, EngineState(), id="worker-2")
    yield engine
    engine.stop()


FAILED = Failed(kind="internal", code="engine_failed", message="The engine stopped while it was answering.")
NO_VLLM = Failed(kind="unavailable", code="vllm_unreachable", message="vLLM does not respond.")


@pytest.mark.parametrize("end", [Act.BREAK, FAILED, NO_VLLM], ids=["connection", "reply", "vLLM"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_whose_engine_ends_before_the_first_token_goes_to_another(
    client: TestClient,
    engine: FakeEngine,
    second: FakeEngine,
    database: Database,
    end: Act | Failed,
    stream: bool,
) -> None:
    engine.script = [end]
    engine.register(database, LOADED)
    answer = client.post("/generate", json={**ASK, "stream": stream})
    assert answer.status_code == 200
    assert "Hel" in answer.text
    assert "error" not in answer.text
    assert (len(engine.requests), len(second.requests)) == (1, 1)


def test_a_request_that_ends_two_engines_does_not_end_a_third_one(
    client: TestClient, engine: FakeEngine, second: FakeEngine, database: Database
) -> None:
    third = FakeEngine()
    try:
        third.register(database, id="worker-3")
        engine.script = second.script = third.script = [Act.BREAK]
        engine.register(database, LOADED)
        assert client.post("/generate", json=ASK).json()["error"]["code"] == "engine_failed"
        assert sum(len(one.requests) for one in (engine, second, third)) == 2
    finally:
        third.stop()


def test_a_full_engine_s_request_goes_to_one_that_has_the_base_model(
    client: TestClient, engine: FakeEngine, second: FakeEngine, database: Database
) -> None:
    full = Failed(kind="busy", code="queue_full", message="9 requests are waiting already.")
    engine.register(database, LOADED)
    second.register(database, OTHER, id="worker-2")
    engine.scripts = [[full]]
    assert client.post("/generate", json=ASK).status_code == 429
    assert not second.requests  # it would have to unload another model

    second.register(database, LOADED, id="worker-2")
    assert client.post("/generate", json=ASK).status_code == 200
    preferred, other = (engine, second) if len(engine.requests) == 2 else (second, engine)
    preferred.scripts = [[full]]
    before = len(other.requests)
    assert client.post("/generate", json=ASK).status_code == 200
    assert len(other.requests) == before + 1


@pytest.fixture
def stopped_url() -> Iterator[str]:
    """The address of a process that has been stopped: connections are accepted, and nothing reads them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_silent_engine_is_suspect_and_its_request_goes_to_another(
    client: TestClient,
    engine: FakeEngine,
    second: FakeEngine,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    stopped_url: str,
) -> None:
    for name, seconds in (("PROBE_SECONDS", 0.02), ("_TIMEOUT_SECONDS", 0.1), ("SUSPECT_SECONDS", 0.3)):
        monkeypatch.setattr(probes, name, seconds)
    engine.register(database, LOADED, engine_url=stopped_url)
    assert client.post("/generate", json=ASK).json()["text"] == "Hello"
    assert len(second.requests) == 1
