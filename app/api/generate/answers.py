"""Requests to an engine and their replies: one answer or several at a time, streamed or whole.

Closing an `Answers` closes its connections to the engine, which ends the work there. Knows no response
format: `/generate` and the OpenAI API have their own.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import anyio
from fastapi import Request

from app.api.generate.use import RequestUse
from app.api.http.errors import EngineRefusal
from app.core.engine.answers import GeneratedAnswer, join_answer
from app.core.engine.client import EngineClient
from app.core.engine.endpoints import EngineEndpoint
from app.core.engine.messages import (
    Delta,
    Failed,
    Finished,
    GenerateRequest,
    Reply,
)
from app.core.engine.sampling import MAX_SEED, Sampling

Result = TypeVar("Result")
NumberedReply = tuple[int, Delta | Finished]

CLIENT_CLOSED_REQUEST = 499  # nginx's status for it; the client is gone, only the request counters use it
# A streamed response is not begun before this time, so that an early refusal can set its status.
_FIRST_REPLY_SECONDS = 10
_MAX_UNREAD = 64
_SEED_STEP = 0x1E3779B97F4A7C15


def repeat(request: GenerateRequest, count: int) -> list[GenerateRequest]:
    """`count` copies of the request, each with a seed of its own that is derived from the request's."""
    return [_with_seed(request, request.sampling, index) for index in range(count)]


def _with_seed(request: GenerateRequest, sampling: Sampling, index: int) -> GenerateRequest:
    if sampling.seed is None or index == 0:
        return request
    seed = (sampling.seed + index * _SEED_STEP) & MAX_SEED
    return request.model_copy(update={"sampling": sampling.model_copy(update={"seed": seed})})


class Answers:
    """The replies to requests of one engine, each with the number of its request, until all are finished.

    Raises EngineRefusal when the engine says no to any of them, and EngineFailed. Must be closed.
    """

    def __init__(
        self,
        engines: EngineClient,
        engine: EngineEndpoint,
        requests: Sequence[GenerateRequest],
        *,
        use: RequestUse | None = None,
    ) -> None:
        """`use` counts the tokens, where they count."""
        self._replies = _merge([engines.stream(engine, request) for request in requests])
        self._use = use
        if use is not None:
            use.begin(requests)
            self._replies = _counted(self._replies, use)
        self._first: asyncio.Task[NumberedReply] | None = None

    async def begin(self) -> bool:
        """Wait up to ten seconds for the first reply. Raises it where it is a refusal, else returns True."""
        self._first = asyncio.create_task(self._next())
        await asyncio.wait({self._first}, timeout=_FIRST_REPLY_SECONDS)
        if self._first.done():
            self._first.result()
        return True

    async def __aiter__(self) -> AsyncIterator[NumberedReply]:
        if self._first is not None:
            # Awaiting the task itself would pass a cancellation on to it while it cleans up.
            await asyncio.wait({self._first})
            yield self._first.result()
        async for numbered in self._replies:
            yield numbered

    async def close(self) -> None:
        """Cancel the requests that are not finished."""
        if self._first is not None:
            self._first.cancel()
            await asyncio.gather(self._first, return_exceptions=True)
        await self._replies.aclose()
        if self._use is not None:
            self._use.end()

    async def _next(self) -> NumberedReply:
        return await anext(self._replies)


async def collect(answers: Answers) -> list[GeneratedAnswer]:
    """All answers, in the order of their requests. Raises as Answers does."""
    deltas: dict[int, list[Delta]] = {}
    ends: dict[int, Finished] = {}
    async for index, reply in answers:
        if isinstance(reply, Finished):
            ends[index] = reply
        else:
            deltas.setdefault(index, []).append(reply)
    return [join_answer(deltas.get(index, []), ends[index]) for index in sorted(ends)]


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, Result]) -> Result | None:
    """The result of the work; None where the client disconnected first, which cancels the work."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _counted(
    replies: AsyncGenerator[NumberedReply, None], use: RequestUse
) -> AsyncGenerator[NumberedReply, None]:
    async with aclosing(replies) as source:
        async for index, reply in source:
            use.count(index, reply)
            yield index, reply


async def _merge(streams: Sequence[AsyncGenerator[Reply, None]]) -> AsyncGenerator[NumberedReply, None]:
    """The replies of all streams, in the order in which they arrive."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for only_reply in only:
                yield 0, _raise_if_failed(only_reply)
        return
    arrived: asyncio.Queue[tuple[int, Reply | Exception]] = asyncio.Queue(_MAX_UNREAD)
    reading = [asyncio.create_task(_forward(*numbered, arrived)) for numbered in enumerate(streams)]
    open_count = len(streams)
    try:
        while open_count:
            index, reply = await arrived.get()
            if isinstance(reply, Exception):
                raise reply
            open_count -= isinstance(reply, Finished)
            yield index, _raise_if_failed(reply)
    finally:
        with anyio.CancelScope(shield=True):
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)


async def _forward(
    index: int, stream: AsyncGenerator[Reply, None], arrived: asyncio.Queue[tuple[int, Reply | Exception]]
) -> None:
    try:
        async for reply in stream:
            await arrived.put((index, reply))
    except Exception as error:
        await arrived.put((index, error))
    finally:
        await stream.aclose()


def _raise_if_failed(reply: Reply) -> Delta | Finished:
    if isinstance(reply, Failed):
        raise EngineRefusal(reply)
    return reply


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
