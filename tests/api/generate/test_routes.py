import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from app.core.adapters.targets import Targets
from app.core.engine.messages import BaseModelRef, Failed, MadeToken, TokenDelta
from app.core.engine.state import EngineState
from app.core.settings import Settings
from app.core.specs.job import QuantizationSpec
from app.core.storage.database import Database
from tests.factories import make_adapter
from tests.fakes import FINISHED, Act, FakeEngine

ASK = {"base_model": "owner/model", "prompt": "Say hello"}
MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture(autouse=True)
def registered(engine: FakeEngine, database: Database) -> None:
    engine.register(database)


def stream(client: TestClient, **fields: Any) -> list[tuple[str, dict[str, Any]]]:
    """The events of a streamed answer."""
    answer = client.post("/generate", json={**ASK, "stream": True, **fields})
    assert answer.status_code == 200, answer.text
    blocks = [block.split("\n") for block in answer.text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(text.removeprefix("data: "))) for name, text in blocks]


def failed(kind: Any, code: str, **fields: Any) -> Failed:
    return Failed(kind=kind, code=code, message="No.", **fields)


def test_an_answer_of_the_base_model(client: TestClient, engine: FakeEngine) -> None:
    answer = client.post("/generate", json={**ASK, "temperature": 0, "stop": ["\n"], "seed": 1}).json()
    assert answer.pop("id").startswith("gen_")
    assert answer == {
        "adapter": None,
        "base_model": "owner/model",
        "quantization": QuantizationSpec().model_dump(),
        "text": "Hello",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
        "timings": FINISHED.timings.model_dump(),
    }
    (asked,) = engine.requests
    assert asked.prompt == "Say hello"
    assert asked.base_model.quantization == QuantizationSpec()
    assert (asked.sampling.temperature, asked.sampling.stop, asked.sampling.seed) == (0, ["\n"], 1)
    assert engine.tokens == ["Bearer secret"]


@pytest.mark.parametrize("name", ["helper", "ad_0000000000000000"])
def test_an_answer_of_an_adapter_by_name_or_id(
    client: TestClient, engine: FakeEngine, database: Database, name: str
) -> None:
    with database.transaction() as session:
        make_adapter(session, quantization={"load_in_4bit": False})
    answer = client.post("/generate", json={"adapter": name, "messages": MESSAGES}).json()
    assert (answer["adapter"], answer["quantization"]["load_in_4bit"]) == ("ad_0000000000000000", False)
    (asked,) = engine.requests
    assert asked.adapter is not None
    assert asked.adapter.artifact == "adapters/ad_0000000000000000"
    assert asked.base_model.quantization.load_in_4bit is False
    assert asked.messages is not None
    assert asked.messages[0].content == "Hi"


def test_a_streamed_answer_gives_the_text_as_it_comes(client: TestClient) -> None:
    *deltas, (last, end) = stream(client)
    assert {name for name, _ in deltas} == {"delta"}
    assert "".join(delta["text"] for _, delta in deltas) == "Hello"
    assert last == "done"
    assert end["finish_reason"] == "stop"
    assert end["usage"]["completion_tokens"] == 2
    assert "text" not in end


def test_the_engine_with_weights_of_the_same_quantization_is_preferred(
    settings: Settings, database: Database, engine: FakeEngine
) -> None:
    for number, is_4bit in enumerate((True, False)):
        loaded = BaseModelRef(name="owner/model", quantization=QuantizationSpec(load_in_4bit=is_4bit))
        worker = {"id": f"worker-{number}", "engine_url": f"http://127.0.0.1:{number}"}
        engine.register(database, EngineState(base_model=loaded), **worker)
    with database.snapshot() as session:
        urls = [
            Targets(session, settings).find_base_model("owner/model", quantization=wanted).engine.url
            for wanted in (None, QuantizationSpec(load_in_4bit=False))
        ]
    assert urls == ["http://127.0.0.1:0", "http://127.0.0.1:1"]


@pytest.mark.parametrize("wanted", [None, QuantizationSpec(bnb_4bit_quant_type="fp4")])
@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions"])
def test_a_base_model_has_the_same_quantization_whatever_is_loaded(
    client: TestClient, engine: FakeEngine, database: Database, path: str, wanted: QuantizationSpec | None
) -> None:
    loaded = BaseModelRef(name="owner/model", quantization=QuantizationSpec(load_in_4bit=False))
    engine.register(database, EngineState(base_model=loaded))
    model = {"base_model": "owner/model"} if path == "/generate" else {"model": "owner/model"}
    prompt = {"messages": MESSAGES} if path.endswith("/chat/completions") else {"prompt": "Hi"}
    given = {"quantization": wanted.model_dump(exclude_unset=True)} if wanted else {}
    answer = client.post(path, json=model | prompt | given)
    expected = wanted or QuantizationSpec()
    assert engine.requests[0].base_model.quantization == expected
    said = answer.json().get("quantization") or answer.json()["system_fingerprint"]
    assert said == (expected.model_dump() if path == "/generate" else expected.label)


@pytest.mark.parametrize(("load_in_4bit", "status"), [(False, 200), (True, 422)])
def test_an_adapter_has_the_quantization_that_it_was_trained_on(
    client: TestClient, engine: FakeEngine, database: Database, load_in_4bit: bool, status: int
) -> None:
    with database.transaction() as session:
        make_adapter(session, quantization={"load_in_4bit": False})
    body = {"adapter": "helper", "prompt": "Hi", "quantization": {"load_in_4bit": load_in_4bit}}
    answer = client.post("/generate", json=body)
    assert answer.status_code == status
    assert status == 200 or answer.json()["error"]["param"] == "quantization"


def test_the_engine_that_has_the_base_model_is_preferred(
    client: TestClient, engine: FakeEngine, database: Database
) -> None:
    loaded = BaseModelRef(name="owner/model", quantization=QuantizationSpec())
    engine.register(database, EngineState(base_model=loaded))
    engine.register(database, id="worker-2", engine_url="http://127.0.0.1:9")
    assert client.post("/generate", json=ASK).status_code == 200


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"adapter": "helper"}, "adapter"),
        ({"base_model": None}, "adapter"),
        ({"prompt": None}, "prompt"),
        ({"messages": MESSAGES}, "prompt"),
        ({"messages": []}, "messages"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 3}, "max_tokens"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "messages.0.role"),
    ],
)
def test_a_malformed_question_names_its_field(
    client: TestClient, engine: FakeEngine, change: dict[str, Any], param: str
) -> None:
    answer = client.post("/generate", json={**ASK, **change})
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == param
    assert engine.requests == []


def test_an_unknown_adapter_is_not_found(client: TestClient) -> None:
    answer = client.post("/generate", json={"adapter": "nobody", "prompt": "x"})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "adapter_not_found"


def test_a_base_model_off_the_allow_list_is_refused(client: TestClient, settings: Settings) -> None:
    settings.allowed_models = ["owner/other"]
    assert client.post("/generate", json=ASK).json()["error"]["code"] == "model_not_allowed"


def test_without_an_engine_the_answer_says_so(
    client: TestClient, engine: FakeEngine, database: Database
) -> None:
    engine.register(database, engine_url=None)
    answer = client.post("/generate", json=ASK)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    assert answer.json()["error"]["code"] == "no_engine"


@pytest.mark.parametrize("streamed", [False, True])
def test_an_engine_out_of_reach_is_unavailable(
    client: TestClient, engine: FakeEngine, database: Database, streamed: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    engine.register(database, engine_url=f"http://127.0.0.1:{port}")
    answer = client.post("/generate", json={**ASK, "stream": streamed})
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "engine_failed"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("kind", "status", "type_"),
    [
        ("invalid", 422, "invalid_request_error"),
        ("not_found", 404, "not_found_error"),
        ("busy", 429, "rate_limit_error"),
        ("unavailable", 503, "unavailable_error"),
        ("internal", 500, "server_error"),
    ],
)
def test_a_refusal_of_the_engine_keeps_its_code(
    client: TestClient, engine: FakeEngine, kind: str, status: int, type_: str, streamed: bool
) -> None:
    engine.script = [failed(kind, "its_code", hint="Wait.", retry_after_seconds=7)]
    answer = client.post("/generate", json={**ASK, "stream": streamed})
    assert answer.status_code == status
    assert answer.headers.get("retry-after") == ("7" if status in (429, 503) else None)
    assert answer.json()["error"] == {
        "type": type_,
        "code": "its_code",
        "message": "No.",
        "param": None,
        "hint": "Wait.",
    }


@pytest.mark.parametrize("rest", [[], ["not JSON"], [Act.BREAK]], ids=["early end", "nonsense", "broken"])
def test_an_engine_that_breaks_off_is_a_failure(
    client: TestClient, engine: FakeEngine, rest: list[Any]
) -> None:
    engine.script = [TokenDelta(text="Hel"), *rest]
    assert client.post("/generate", json=ASK).json()["error"]["code"] == "engine_failed"
    (first, _), (last, content) = stream(client)
    assert (first, last) == ("delta", "error")
    assert content["error"]["code"] == "engine_failed"


def test_a_refusal_in_mid_stream_is_an_event_of_the_stream(client: TestClient, engine: FakeEngine) -> None:
    engine.script = [TokenDelta(text="Hel"), failed("unavailable", "gpu_taken")]
    assert stream(client)[-1][1]["error"]["code"] == "gpu_taken"


@pytest.fixture
def held(live: httpx.Client, engine: FakeEngine) -> Iterator[httpx.Client]:
    """The engine says something or nothing, and then waits."""
    engine.script = [Act.HOLD]
    yield live
    assert engine.lost_its_client.wait(10), "the engine still works for a client that went away"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_leaves_before_the_first_token_ends_the_work(
    held: httpx.Client, engine: FakeEngine, streamed: bool
) -> None:
    body = json.dumps({**ASK, "stream": streamed}).encode()
    head = (
        "POST /generate HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}"
    )
    with socket.create_connection((held.base_url.host, held.base_url.port or 0)) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        assert engine.is_holding.wait(10)


def test_a_client_that_leaves_in_mid_stream_ends_the_work(held: httpx.Client, engine: FakeEngine) -> None:
    engine.script = [TokenDelta(text="Hel"), Act.HOLD]
    with held.stream("POST", "/generate", json={**ASK, "stream": True}) as answer:
        assert next(answer.iter_lines()) == "event: delta"
        assert engine.is_holding.wait(10)


def test_n_answers_come_together_with_one_usage(client: TestClient, engine: FakeEngine) -> None:
    answer = client.post("/generate", json={**ASK, "n": 2, "seed": 1}).json()
    assert [choice["text"] for choice in answer["choices"]] == ["Hello", "Hello"]
    assert (answer["text"], answer["finish_reason"]) == ("Hello", "stop")
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 4}
    assert len({asked.sampling.seed for asked in engine.requests}) == 2


def test_n_streamed_answers_have_an_index_each_and_one_end(client: TestClient) -> None:
    *deltas, (last, end) = stream(client, n=2)
    texts = ["".join(delta["text"] for _, delta in deltas if delta["index"] == index) for index in (0, 1)]
    assert texts == ["Hello", "Hello"]
    assert last == "done"
    assert end["choices"] == [{"finish_reason": "stop"}] * 2


@pytest.mark.parametrize("streamed", [False, True])
def test_tokens_with_log_probabilities_come_with_their_text(
    client: TestClient, engine: FakeEngine, streamed: bool
) -> None:
    token = MadeToken(token_id=7, bytes=[72], logprob=-0.5, top=[])
    engine.script = [TokenDelta(text="H", tokens=[token]), FINISHED]
    if streamed:
        content = stream(client, logprobs=0)[0][1]
    else:
        content = client.post("/generate", json={**ASK, "logprobs": 0}).json()
    assert (content["text"], content["tokens"]) == ("H", [token.model_dump()])


def test_a_schema_reaches_the_engine(client: TestClient, engine: FakeEngine) -> None:
    schema = {"name": "it", "schema": {"enum": [1]}}
    client.post("/generate", json={**ASK, "response_format": {"type": "json_schema", "json_schema": schema}})
    asked = engine.requests[0].output_schema
    assert asked is not None
    assert (json.loads(asked.source), asked.strict) == ({"enum": [1]}, False)
