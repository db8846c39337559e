import asyncio
from collections import Counter

from starlette.types import Receive, Scope, Send

from app.api.http.pacing import PacingMiddleware, Turns


def test_callers_go_on_in_order_and_a_few_in_an_iteration() -> None:
    async def scenario() -> None:
        turns = Turns(3)
        iteration = 0
        went_on: list[tuple[int, int]] = []

        async def call(number: int) -> None:
            await turns.take()
            went_on.append((number, iteration))

        calls = asyncio.gather(*(call(number) for number in range(30)))
        while not calls.done():
            iteration += 1
            await asyncio.sleep(0)
        assert [number for number, _ in went_on] == list(range(30))
        assert max(Counter(when for _, when in went_on).values()) == 3

    asyncio.run(scenario())


def test_a_caller_that_was_cancelled_takes_no_turn() -> None:
    async def scenario() -> None:
        turns = Turns(1)
        calls = [asyncio.create_task(turns.take()) for _ in range(3)]
        await asyncio.sleep(0)
        calls[1].cancel()
        await asyncio.wait_for(calls[2], 5)

    asyncio.run(scenario())


def test_health_does_not_wait_for_requests_that_arrived_before_it() -> None:
    order: list[str] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        order.append(scope["path"])

    async def scenario() -> None:
        paced = PacingMiddleware(application)
        paths = ["/jobs"] * 100 + ["/health"]
        await asyncio.gather(*(paced({"type": "http", "path": path}, None, None) for path in paths))  # type: ignore[arg-type]

    asyncio.run(scenario())
    assert len(order) == 101
    assert order.index("/health") < 20
