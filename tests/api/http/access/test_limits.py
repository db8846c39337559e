"""Limits of keys: what is refused, what the refusal says, and what holds over several API processes."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from fastapi.testclient import TestClient

from app.api.http.access.limits import RequestLimits
from app.api.http.access.usage_meter import UsageMeter
from app.core.errors.access import RateLimited, TokensSpent
from app.core.keys import records, windows
from app.core.keys.records import Caller, KeyLimits, caller_of
from app.core.keys.scopes import Scope
from app.core.keys.usage import Amounts
from app.core.storage.database import Database

NOON = datetime(2026, 5, 4, 12, 0, 30, tzinfo=UTC)


@pytest.fixture(autouse=True)
def at_noon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The database's clock stands at half a minute past noon."""
    monkeypatch.setattr(windows.clock, "now", lambda session: NOON)


def make_caller(database: Database, **limits: int) -> Caller:
    with database.transaction() as session:
        key, _ = records.create(session, "ci", limits=KeyLimits(**limits))
        return caller_of(key)


async def admit(process: RequestLimits, caller: Caller) -> bool:
    try:
        await process.admit(caller, asks_model=False)
    except RateLimited:
        return False
    return True


def count_admitted(processes: list[RequestLimits], caller: Caller, requests: int) -> int:
    """How many of so many requests, which the processes get in turn, are admitted."""

    async def run() -> int:
        asked = [admit(processes[number % len(processes)], caller) for number in range(requests)]
        return sum(await asyncio.gather(*asked))

    return asyncio.run(run())


@pytest.mark.parametrize("limit", [1, 7, 60, 1000])
def test_processes_together_never_admit_more_than_the_limit(each_database: Database, limit: int) -> None:
    caller = make_caller(each_database, requests_per_minute=limit)
    processes = [RequestLimits(each_database, UsageMeter(each_database)) for _ in range(3)]

    admitted = count_admitted(processes, caller, limit * 3)
    assert admitted == limit


def test_what_a_process_has_not_used_is_lost_to_others_by_a_block_at_most(each_database: Database) -> None:
    caller = make_caller(each_database, requests_per_minute=100)
    busy, idle = (RequestLimits(each_database, UsageMeter(each_database)) for _ in range(2))

    assert count_admitted([idle], caller, 1) == 1
    assert count_admitted([busy], caller, 200) == 95


def test_a_row_is_written_twenty_times_a_minute_and_not_with_each_request(
    each_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    take = windows.take
    monkeypatch.setattr(windows, "take", lambda *given: taken.append(1) or take(*given))  # type: ignore[func-returns-value]
    caller = make_caller(each_database, requests_per_minute=2000)

    assert count_admitted([RequestLimits(each_database, UsageMeter(each_database))], caller, 2500) == 2000
    assert len(taken) == 20


def test_the_next_minute_begins_anew(each_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = make_caller(each_database, requests_per_minute=5)
    now = 0.0
    process = RequestLimits(each_database, UsageMeter(each_database), clock=lambda: now)

    async def run() -> list[bool]:
        nonlocal now
        admitted = [await admit(process, caller) for _ in range(6)]
        now = 29.0
        admitted.append(await admit(process, caller))
        now = 30.5
        monkeypatch.setattr(windows.clock, "now", lambda session: NOON + timedelta(seconds=30))
        return admitted + [await admit(process, caller) for _ in range(6)]

    assert asyncio.run(run()) == [True] * 5 + [False] * 2 + [True] * 5 + [False]


def make_meter(database: Database, *, clock: list[float]) -> UsageMeter:
    return UsageMeter(database, clock=lambda: clock[0], now=lambda: NOON)


def test_tokens_that_another_process_has_counted_count_here(each_database: Database) -> None:
    caller = make_caller(each_database, tokens_per_day=100)
    time = [0.0]
    meters = [make_meter(each_database, clock=time) for _ in range(2)]
    here = RequestLimits(each_database, meters[0])

    async def run() -> None:
        await here.admit(caller, asks_model=True)
        meters[1].add(caller.key_id, "helper", Amounts(prompt_tokens=60, completion_tokens=40))
        await here.admit(caller, asks_model=True)
        await meters[1].write()
        time[0] = 1.0
        with pytest.raises(TokensSpent, match="used 100 tokens today, of 100 a day") as caught:
            await here.admit(caller, asks_model=True)
        assert caught.value.retry_after_seconds == pytest.approx(12 * 3600 - 30, abs=1)
        # What asks no model goes on.
        await here.admit(caller, asks_model=False)

    asyncio.run(run())


def test_tokens_count_at_once_in_their_own_process_and_while_they_are_written(
    each_database: Database,
) -> None:
    caller = make_caller(each_database, tokens_per_day=100)
    meter = make_meter(each_database, clock=[0.0])

    async def run() -> list[int]:
        assert caller.key_id
        found = [(await meter.count_today(caller.key_id))[0]]
        meter.add(caller.key_id, "helper", Amounts(prompt_tokens=30))
        found.append((await meter.count_today(caller.key_id))[0])
        writing = asyncio.create_task(meter.write())
        await asyncio.sleep(0)
        found.append((await meter.count_today(caller.key_id))[0])
        await writing
        return [*found, (await meter.count_today(caller.key_id))[0]]

    assert asyncio.run(run()) == [0, 30, 30, 30]


def test_a_refusal_names_the_limit_and_when_it_ends(client: TestClient, database: Database) -> None:
    with database.transaction() as session:
        _, secret = records.create(session, "ci", limits=KeyLimits(requests_per_minute=2))
    headers = {"authorization": f"Bearer {secret}"}

    first = client.get("/v1/models", headers=headers)
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert first.headers["x-ratelimit-reset-requests"] == "30s"
    assert client.get("/jobs", headers=headers).status_code == 200
    refused = client.get("/v1/models", headers=headers)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "30")
    assert refused.headers["x-ratelimit-limit-requests"] == "2"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert refused.headers["x-ratelimit-reset-requests"] == "30s"
    assert refused.json()["error"] == {
        "message": "The key 'ci' has sent its 2 requests of this minute. Its limit requests_per_minute is 2; "
        "the next minute begins in 30 s.",
        "type": "rate_limit_error",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    assert client.get("/health").status_code == 200


def test_requests_that_the_key_may_not_send_count_too(client: TestClient, database: Database) -> None:
    with database.transaction() as session:
        limits = KeyLimits(requests_per_minute=2)
        _, secret = records.create(session, "ci", scopes=[Scope.INFER], limits=limits)
    headers = {"authorization": f"Bearer {secret}"}
    statuses = [client.get("/jobs", headers=headers).status_code for _ in range(3)]
    assert statuses == [403, 403, 429]


def test_a_key_without_limits_has_no_such_headers(client: TestClient, database: Database) -> None:
    with database.transaction() as session:
        _, secret = records.create(session, "ci")
    answer = client.get("/jobs", headers={"authorization": f"Bearer {secret}"})
    assert [name for name in answer.headers if name.startswith("x-ratelimit")] == []
