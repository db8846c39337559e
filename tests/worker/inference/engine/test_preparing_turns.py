"""Requests to a model that is not in memory wait for the first of them, and hold no thread meanwhile."""

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from app.core.engine.messages import AdapterRef, BaseModelRef, GenerateRequest
from app.core.specs.job import QuantizationSpec
from worker.inference.service import PreparingTurns

BASE = BaseModelRef(name="tiny-llama", quantization=QuantizationSpec())


def make_request(adapter: str) -> GenerateRequest:
    return GenerateRequest(base_model=BASE, adapter=AdapterRef(id=adapter, artifact=adapter), prompt="Hi")


class Reading:
    """Requests that read what their adapter needs, and end when a test says."""

    def __init__(self) -> None:
        self.is_ready = False
        self.began: list[str] = []
        self.may_end = asyncio.Event()
        self.turns = PreparingTurns(lambda _request: self.is_ready)

    async def prepare(self, adapter: str, *, fails: bool = False) -> str:
        async with self.turns.turn(make_request(adapter)):
            self.began.append(adapter)
            await self.may_end.wait()
            if fails:
                raise LookupError
            self.is_ready = True
            return adapter


def run(test: Callable[[Reading], object]) -> None:
    async def start() -> None:
        reading = Reading()
        await test(reading)  # type: ignore[misc]
        assert not reading.turns._models

    asyncio.run(start())


async def begin(reading: Reading, *adapters: str, **options: bool) -> list["asyncio.Task[str]"]:
    tasks = [asyncio.create_task(reading.prepare(adapter, **options)) for adapter in adapters]
    for _ in range(4):
        await asyncio.sleep(0)
    return tasks


def test_the_first_request_to_each_model_goes_alone_and_then_all_others_at_once() -> None:
    async def test(reading: Reading) -> None:
        tasks = await begin(reading, "a", "a", "a", "b")
        assert reading.began == ["a", "b"]
        reading.may_end.set()
        assert await asyncio.gather(*tasks) == ["a", "a", "a", "b"]

    run(test)


def test_where_the_first_one_fails_the_next_one_reads() -> None:
    async def test(reading: Reading) -> None:
        failing = await begin(reading, "a", fails=True)
        others = await begin(reading, "a", "a")
        assert reading.began == ["a"]
        reading.may_end.set()
        with pytest.raises(LookupError):
            await failing[0]
        assert await asyncio.gather(*others) == ["a", "a"]

    run(test)


def test_a_client_that_leaves_while_it_waits_does_not_hold_up_the_others() -> None:
    async def test(reading: Reading) -> None:
        first, leaving, last = await begin(reading, "a", "a", "a")
        leaving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await leaving
        reading.may_end.set()
        assert await asyncio.gather(first, last) == ["a", "a"]

    run(test)


def test_a_model_in_memory_is_prepared_for_two_requests_at_a_time_whatever_others_do() -> None:
    """A chat template that takes long leaves threads to requests to other models."""

    async def test(reading: Reading) -> None:
        reading.is_ready = True
        tasks = await begin(reading, "a", "a", "a", "b")
        assert reading.began == ["a", "a", "b"]
        reading.may_end.set()
        assert await asyncio.gather(*tasks) == ["a", "a", "a", "b"]

    run(test)


def test_what_is_read_does_not_take_the_threads_of_what_is_in_memory() -> None:
    async def test(reading: Reading) -> None:
        async with reading.turns.turn(make_request("a")) as while_reading:
            reading.is_ready = True
            async with reading.turns.turn(make_request("b")) as in_memory:
                assert in_memory is not while_reading

    run(test)
