"""What keys use of models is counted by key, model and day, and shown to whom it concerns."""

import base64
import struct
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.api.deps import Services
from app.core.engine.messages import Finished, TokenDelta
from app.core.keys import records, usage
from app.core.keys.records import KeyLimits
from app.core.keys.scopes import Scope
from app.core.keys.usage import Amounts, UsageKey
from app.core.storage.database import Database
from tests.factories import make_adapter
from tests.fakes import FINISHED, Act, FakeEngine

HI = [{"role": "user", "content": "Hi"}]
READ, MADE = FINISHED.usage.prompt_tokens, FINISHED.usage.completion_tokens
TODAY = datetime.now(UTC).date()


@pytest.fixture
def keys(client: TestClient, database: Database, engine: FakeEngine) -> dict[str, dict[str, str]]:
    """Headers with the keys admin and app, by their names; an engine and an adapter are there."""
    engine.register(database)
    with database.transaction() as session:
        make_adapter(session)
        made = {
            name: records.create(session, name, scopes=[scope])[1]
            for name, scope in (("admin", Scope.ADMIN), ("app", Scope.INFER))
        }
    return {name: {"authorization": f"Bearer {secret}"} for name, secret in made.items()}


def show(client: TestClient, headers: dict[str, str], **params: str) -> list[tuple[Any, ...]]:
    """Key, model, requests, and tokens read and made, of each row, once everything is written."""
    services: Services = client.app.state.services  # type: ignore[attr-defined]
    assert client.portal is not None
    client.portal.call(services.usage_meter.write)
    answer = client.get("/usage", headers=headers, params=params)
    assert answer.status_code == 200, answer.text
    fields = ("key_name", "model", "requests", "prompt_tokens", "completion_tokens")
    return [tuple(row[field] for field in fields) for row in answer.json()["data"]]


FORMS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "helper", "messages": HI},
    "/v1/completions": {"model": "helper", "prompt": "Hi"},
    "/v1/responses": {"model": "helper", "input": "Hi"},
    "/generate": {"adapter": "helper", "prompt": "Hi"},
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", FORMS)
def test_tokens_are_counted_by_key_and_model(
    client: TestClient, keys: dict[str, dict[str, str]], path: str, stream: bool
) -> None:
    for _ in range(2):
        assert (
            client.post(path, json=FORMS[path] | {"stream": stream}, headers=keys["app"]).status_code == 200
        )
    client.post("/generate", json={"base_model": "owner/model", "prompt": "Hi"}, headers=keys["admin"])
    assert show(client, keys["admin"]) == [
        ("app", "helper", 2, 2 * READ, 2 * MADE),
        ("admin", "owner/model", 1, READ, MADE),
    ] or show(client, keys["admin"]) == [
        ("admin", "owner/model", 1, READ, MADE),
        ("app", "helper", 2, 2 * READ, 2 * MADE),
    ]


def test_a_prompt_with_several_answers_counts_once(
    client: TestClient, keys: dict[str, dict[str, str]]
) -> None:
    client.post("/v1/chat/completions", json=FORMS["/v1/chat/completions"] | {"n": 3}, headers=keys["app"])
    assert show(client, keys["app"]) == [("app", "helper", 1, READ, 3 * MADE)]


def test_an_answer_that_broke_off_is_estimated(
    client: TestClient, keys: dict[str, dict[str, str]], engine: FakeEngine
) -> None:
    engine.script = [TokenDelta(text="Hel"), TokenDelta(text="lo"), Act.BREAK]
    body = {"adapter": "helper", "prompt": "x" * 40}
    assert client.post("/generate", json=body, headers=keys["app"]).status_code == 503
    ((_, _, requests, read, made),) = show(client, keys["app"])
    assert (requests, read) == (1, 10)
    assert 1 <= made <= 2  # pieces that arrive together are one


def test_embeddings_are_one_request_however_many_texts(
    client: TestClient, keys: dict[str, dict[str, str]], engine: FakeEngine
) -> None:
    vector = base64.b64encode(struct.pack("<2f", 1.0, 0.0)).decode()
    engine.script = [Finished(**FINISHED.model_dump() | {"embedding": vector})]
    body = {"model": "helper", "input": ["Hi"] * 20}
    assert client.post("/v1/embeddings", json=body, headers=keys["app"]).status_code == 200
    assert [row[:4] for row in show(client, keys["app"])] == [("app", "helper", 1, 20 * READ)]


def test_a_model_that_grades_counts_for_the_key_that_runs_the_grader(
    client: TestClient, keys: dict[str, dict[str, str]], engine: FakeEngine
) -> None:
    engine.script = [TokenDelta(text='{"steps": [], "result": 1}'), FINISHED]
    judge = {
        "type": "score_model",
        "name": "judge",
        "model": "helper",
        "input": [{"role": "user", "content": "Grade {{sample.output_text}}."}],
    }
    body = {"grader": judge, "model_sample": "Oslo"}
    graded = client.post("/v1/fine_tuning/alpha/graders/run", json=body, headers=keys["admin"])
    assert graded.json()["reward"] == 1
    assert show(client, keys["admin"]) == [("admin", "helper", 1, READ, MADE)]


def test_a_key_sees_its_own_usage_alone(client: TestClient, keys: dict[str, dict[str, str]]) -> None:
    for headers in keys.values():
        client.post("/generate", json=FORMS["/generate"], headers=headers)
    assert len(show(client, keys["admin"])) == 2
    assert [row[0] for row in show(client, keys["app"])] == ["app"]
    others = client.get("/usage", headers=keys["app"], params={"key": "key_other"})
    assert (others.status_code, others.json()["error"]["code"]) == (403, "scope_missing")


def test_days_and_models_are_chosen(client: TestClient, database: Database) -> None:
    with database.transaction() as session:
        for days in range(40):
            day = TODAY - timedelta(days=days)
            used = {UsageKey("", day, model): Amounts(requests=1) for model in ("helper", "other")}
            usage.add(session, used)
    assert len(show(client, {})) == 60
    first = str(TODAY - timedelta(days=1))
    assert len(show(client, {}, since=first, model="other")) == 2
    assert len(show(client, {}, since=first, until=first)) == 2


def test_what_is_added_twice_adds_up(each_database: Database) -> None:
    key = UsageKey("key_1", TODAY, "helper")
    for _ in range(2):
        with each_database.transaction() as session:
            usage.add(session, {key: Amounts(requests=1, prompt_tokens=5, training_seconds=0.5)})
    with each_database.snapshot() as session:
        (row,) = usage.find(session, key_id="key_1", model=None, since=TODAY, until=TODAY, limit=9)
        assert (row.requests, row.prompt_tokens, row.training_seconds) == (2, 10, 1.0)


def test_a_key_whose_tokens_are_spent_asks_no_more(
    client: TestClient, database: Database, engine: FakeEngine
) -> None:
    engine.register(database)
    with database.transaction() as session:
        make_adapter(session)
        _, secret = records.create(session, "app", limits=KeyLimits(tokens_per_day=READ + MADE))
    headers = {"authorization": f"Bearer {secret}"}
    body = FORMS["/v1/chat/completions"]

    first = client.post("/v1/chat/completions", json=body, headers=headers)
    assert first.headers["x-ratelimit-remaining-tokens"] == str(READ + MADE)
    refused = client.post("/v1/chat/completions", json=body, headers=headers)
    assert (refused.status_code, refused.headers["x-should-retry"]) == (429, "false")
    assert refused.json()["error"]["code"] == "tokens_per_day_exceeded"
    assert int(refused.headers["retry-after"]) <= 24 * 3600
    assert refused.headers["x-ratelimit-limit-tokens"] == str(READ + MADE)
    assert refused.headers["x-ratelimit-remaining-tokens"] == "0"
    asking = {
        **FORMS,
        "/v1/embeddings": {"model": "helper", "input": "Hi"},
        "/evaluations": {"rows": [{"prompt": "Hi"}], "models": ["helper"]},
        "/evaluations/ev_1/retry": {},
        "/v1/evals/eval_1/runs": {},
        "/v1/fine_tuning/alpha/graders/run": {},
    }
    for path, content in asking.items():
        for stream in (False, True) if path in FORMS else (False,):
            sent = content | ({"stream": True} if stream else {})
            assert client.post(path, json=sent, headers=headers).status_code == 429, path
    # What asks no model goes on.
    for path in ("/jobs", "/models", "/v1/models", "/adapters", "/usage", "/v1/responses/resp_1"):
        assert client.get(path, headers=headers).status_code in (200, 404), path
