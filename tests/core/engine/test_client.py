"""Several engines behind one client, over real sockets."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace

import pytest
import uvicorn

from app.core.engine.balancing import choice
from app.core.engine.client import IDLE_SECONDS, EngineClient
from app.core.engine.endpoints import EngineEndpoint
from app.core.engine.messages import (
    AdapterRef,
    BaseModelRef,
    Failed,
    Finished,
    GenerateRequest,
    TokenDelta,
)
from app.core.engine.state import EngineState, ServedBase
from app.core.errors.engine import EngineFailed
from app.core.specs.job import QuantizationSpec
from tests.fakes import FINISHED, Act, FakeEngine

BASE = BaseModelRef(name="owner/model", quantization=QuantizationSpec())
HOLDING = EngineState(bases=[ServedBase(base_model=BASE, weight_bits=16)])
ASK = GenerateRequest(base_model=BASE, adapter=AdapterRef(id="one", artifact="adapters/one"), prompt="Hello")


@pytest.fixture
def engines() -> Iterator[list[FakeEngine]]:
    engines = [FakeEngine(), FakeEngine()]
    yield engines
    for engine in engines:
        engine.stop()


def test_an_idle_connection_is_not_reused_when_the_engine_may_have_closed_it() -> None:
    assert uvicorn.Config(lambda *_: None).timeout_keep_alive > IDLE_SECONDS


def test_while_requests_queue_another_engine_loads_the_adapter_and_then_serves_it(
    engines: list[FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "SUSTAINED_SECONDS", 0.0)
    first, second = engines
    first.script = [TokenDelta(text="Hel"), Act.HOLD]
    second.scripts = [[FINISHED]]
    having = HOLDING.model_copy(update={"adapters": ["one"]})
    endpoint = EngineEndpoint(
        first.url, "secret", having, others=(EngineEndpoint(second.url, "secret", HOLDING),)
    )

    async def run() -> None:
        client = EngineClient()
        async with AsyncExitStack() as stack:
            stack.push_async_callback(client.close)
            for _ in range(5):
                replies = await stack.enter_async_context(aclosing(client.stream(endpoint, ASK)))
                await anext(replies)
            await asyncio.gather(*client._copying)
            async with aclosing(client.stream(endpoint, ASK)) as replies:
                assert [reply.type async for reply in replies] == ["delta", "finished"]

    asyncio.run(run())
    loading, served = second.requests
    assert loading.reads_only
    assert loading.adapter == served.adapter == ASK.adapter
    assert len(first.requests) == 5


@pytest.mark.parametrize("broken", [1, 2])
def test_a_single_request_that_breaks_off_goes_to_one_more_engine(
    engines: list[FakeEngine], broken: int
) -> None:
    for engine in engines:
        engine.script = [FINISHED]
    for engine in engines[:broken]:
        engine.script = [Act.BREAK]
    first, second = (EngineEndpoint(engine.url, "secret", HOLDING) for engine in engines)

    async def run() -> Finished | Failed:
        client = EngineClient()
        try:
            return await client.request(
                replace(first, others=(second, replace(second))), "/fit", ASK, Finished
            )
        finally:
            await client.close()

    if broken == 1:
        assert asyncio.run(run()) == FINISHED
    else:
        with pytest.raises(EngineFailed):
            asyncio.run(run())
    assert [len(engine.requests) for engine in engines] == [1, 1]
