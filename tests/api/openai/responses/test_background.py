"""Responses that are made in the background."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import openai
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from app.core.engine.messages import Failed, TokenDelta
from app.core.settings import Settings
from app.core.storage import tables
from app.core.storage.database import Database
from app.main import create_app, sweep_once
from tests.api.openai.responses.contract import check, create
from tests.fakes import Act, FakeEngine, ServerThread
from tests.waiting import wait_for


def wait_for_end(client: openai.OpenAI, response_id: str) -> Any:
    def ended() -> Any:
        found = check(client.responses.retrieve(response_id))
        return None if found.status in ("queued", "in_progress") else found

    return wait_for(ended, "the response", timeout_seconds=30)


def test_a_response_is_made_after_the_request(openai_client: openai.OpenAI) -> None:
    queued = create(openai_client, background=True)
    assert (queued.status, queued.background, queued.output, queued.usage) == ("queued", True, [], None)
    done = wait_for_end(openai_client, queued.id)
    assert (done.status, done.output_text, done.usage.total_tokens) == ("completed", "Hello", 5)
    assert (done.created_at, done.id) == (queued.created_at, queued.id)
    create(openai_client, previous_response_id=queued.id)
    assert openai_client.responses.cancel(queued.id).status == "completed"


def test_a_cancelled_response_ends_the_work(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = [TokenDelta(text="Hel"), Act.HOLD]
    queued = create(openai_client, background=True)
    assert engine.is_holding.wait(10)
    with pytest.raises(openai.BadRequestError, match=r"is (queued|in_progress)"):
        create(openai_client, previous_response_id=queued.id)
    cancelled = check(openai_client.responses.cancel(queued.id))
    assert cancelled.status == "cancelled"
    assert engine.lost_its_client.wait(10)
    assert openai_client.responses.retrieve(queued.id) == cancelled
    assert openai_client.responses.cancel(queued.id) == cancelled


def test_a_deleted_response_ends_the_work(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = [TokenDelta(text="Hel"), Act.HOLD]
    queued = create(openai_client, background=True)
    assert engine.is_holding.wait(10)
    openai_client.responses.delete(queued.id)
    assert engine.lost_its_client.wait(10)
    with pytest.raises(openai.NotFoundError):
        openai_client.responses.retrieve(queued.id)


def test_a_refusal_of_the_engine_fails_the_response(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = [Failed(kind="busy", code="queue_full", message="Too many.")]
    failed = wait_for_end(openai_client, create(openai_client, background=True).id)
    assert (failed.status, failed.error.code, failed.error.message) == (
        "failed",
        "rate_limit_exceeded",
        "Too many.",
    )


def test_a_response_that_another_process_cancelled_ends_the_work(
    settings: Settings, engine: FakeEngine, database: Database
) -> None:
    engine.script = [TokenDelta(text="Hel"), Act.HOLD]
    settings.lease_seconds = 0.3
    with database.transaction() as session:
        # The engine's lease is as short.
        session.execute(update(tables.WorkerRow).values(heartbeat_at=datetime.now(UTC) + timedelta(hours=1)))
    server = ServerThread(create_app(settings))
    try:
        with httpx.Client(base_url=server.url) as client:
            body = {"model": "helper", "input": "Hi", "background": True}
            response_id = client.post("/v1/responses", json=body).json()["id"]
            assert engine.is_holding.wait(10)
            with database.transaction() as session:
                is_it = tables.ResponseRow.id == response_id
                session.execute(update(tables.ResponseRow).where(is_it).values(status="cancelled"))
            assert engine.lost_its_client.wait(10)
    finally:
        server.stop()


def test_a_stopped_process_fails_its_responses(
    settings: Settings, engine: FakeEngine, database: Database
) -> None:
    engine.script = [TokenDelta(text="Hel"), Act.HOLD]
    with TestClient(create_app(settings)) as client:
        body = {"model": "helper", "input": "Hi", "background": True}
        response_id = client.post("/v1/responses", json=body).json()["id"]
        assert engine.is_holding.wait(10)
    with database.snapshot() as session:
        row = session.get_one(tables.ResponseRow, response_id)
    assert (row.status, row.alive_until) == ("failed", None)
    assert "stopped" in row.content["error"]["message"]


def test_the_sweep_fails_what_a_killed_process_left(client: TestClient, database: Database) -> None:
    made = client.post("/v1/responses", json={"model": "helper", "input": "Hi"}).json()
    with database.transaction() as session:
        row = session.get_one(tables.ResponseRow, made["id"])
        row.status, row.alive_until = "in_progress", datetime.now(UTC) - timedelta(seconds=1)
    sweep_once(client.app.state.services)  # type: ignore[attr-defined]
    found = client.get(f"/v1/responses/{made['id']}").json()
    assert (found["status"], found["error"]["code"]) == ("failed", "server_error")
