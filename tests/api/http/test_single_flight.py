"""Requests that need the same query at once share one, and each gets its result or its error."""

import asyncio
import threading

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from app.api.http.access.auth import AuthMiddleware
from app.api.http.access.limits import RequestLimits
from app.api.http.access.usage_meter import UsageMeter
from app.api.http.origins.guard import OriginGuardMiddleware
from app.api.http.single_flight import SingleFlight
from app.core.keys import records as keys
from app.core.settings import Settings
from app.core.storage.database import Database


async def respond(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("in")(scope, receive, send)


async def ask_together(app: object, count: int, **headers: str) -> set[int]:
    transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://public.example") as client:
        answers = await asyncio.gather(*(client.post("/generate", headers=headers) for _ in range(count)))
    return {answer.status_code for answer in answers}


def test_callers_with_one_key_share_a_call_and_others_have_their_own() -> None:
    called: list[str] = []
    may_end = threading.Event()

    def query(key: str) -> str:
        called.append(key)
        assert may_end.wait(20)
        return key.upper()

    async def run() -> list[str]:
        flight: SingleFlight[str] = SingleFlight()
        finding = [asyncio.create_task(flight.run(key, lambda key=key: query(key))) for key in "aaab"]
        leaving = asyncio.create_task(flight.run("a", lambda: query("a")))
        await asyncio.sleep(0)
        leaving.cancel()
        may_end.set()
        return await asyncio.gather(*finding)

    assert asyncio.run(run()) == ["A", "A", "A", "B"]
    assert sorted(called) == ["a", "b"]


def test_an_error_reaches_every_caller_and_the_next_one_calls_again() -> None:
    async def run() -> tuple[list[object], int]:
        flight: SingleFlight[int] = SingleFlight()
        failed = await asyncio.gather(
            *(flight.run("a", lambda: 1 // 0) for _ in range(3)), return_exceptions=True
        )
        return failed, await flight.run("a", lambda: 7)

    failed, found = asyncio.run(run())

    assert [type(error) for error in failed] == [ZeroDivisionError] * 3
    assert found == 7


def test_a_key_is_looked_up_once_for_requests_that_arrive_together(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.transaction() as session:
        _key, secret = keys.create(session, "laptop")
    finds, find_valid = [], keys.find_valid
    monkeypatch.setattr(keys, "find_valid", lambda *args: finds.append(args) or find_valid(*args))
    app = AuthMiddleware(respond, settings, database, RequestLimits(database, UsageMeter(database)))

    assert asyncio.run(ask_together(app, 50, authorization=f"Bearer {secret}")) == {200}
    assert len(finds) == 1


def test_the_guard_of_origins_asks_for_keys_once_a_second(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    queries, any_exist = [], keys.any_exist
    monkeypatch.setattr(keys, "any_exist", lambda session: queries.append(now) or any_exist(session))
    app = OriginGuardMiddleware(respond, settings, database, clock=lambda: now)

    assert asyncio.run(ask_together(app, 50)) == {403}
    with database.transaction() as session:
        keys.create(session, "laptop")
    assert asyncio.run(ask_together(app, 50)) == {200}
    assert asyncio.run(ask_together(app, 50)) == {200}
    assert len(queries) == 2
    now = 1.1
    assert asyncio.run(ask_together(app, 1)) == {200}
    assert len(queries) == 3
