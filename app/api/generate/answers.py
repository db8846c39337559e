"""Requests to an engine and their replies: one answer or several at a time, streamed or whole.

Closing an `Answers` closes its connections to the engine, which ends the work there. Knows no response
format: `/generate` and the OpenAI API have their own.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import anyio
from fastapi import Request
from sqlalchemy.orm import Session

from app.api.generate.engine_client import EngineClient, EngineEndpoint, find_engine
from app.api.http.errors import EngineRefusal
from app.core.adapters import records as adapter_records
from app.core.engine import base_models
from app.core.engine.messages import (
    AdapterRef,
    BaseModelRef,
    Delta,
    Failed,
    Finished,
    GenerateRequest,
    MadeToken,
    ReasoningDelta,
    Reply,
    TokenDelta,
    ToolCallDelta,
)
from app.core.engine.sampling import MAX_SEED, Sampling
from app.core.errors import InvalidRequest
from app.core.settings import Settings
from app.core.specs.job import QuantizationSpec

Result = TypeVar("Result")
NumberedReply = tuple[int, Delta | Finished]

CLIENT_CLOSED_REQUEST = 499  # nginx's status for it; the client is gone, only the request counters use it
# A streamed response is not begun before this time, so that an early refusal can set its status.
_FIRST_REPLY_SECONDS = 10
_MAX_UNREAD = 64
_SEED_STEP = 0x1E3779B97F4A7C15


@dataclass(frozen=True)
class Target:
    """What generates: an engine, a base model, and an adapter or None."""

    engine: EngineEndpoint
    base_model: BaseModelRef
    adapter: AdapterRef | None


def find_adapter(
    session: Session, settings: Settings, id_or_name: str, *, quantization: QuantizationSpec | None = None
) -> Target:
    """An adapter and an engine. Raises AdapterNotFound, NoEngine, and InvalidRequest for a quantization."""
    base_model, adapter = adapter_records.references(adapter_records.get(session, id_or_name))
    if quantization not in (None, base_model.quantization):
        raise InvalidRequest(
            f"The adapter {id_or_name!r} was trained on weights of another quantization.",
            param="quantization",
            hint="Leave it out: an adapter is always on the weights that it was trained on.",
        )
    return Target(_engine_for(session, settings, base_model), base_model, adapter)


def find_base_model(
    session: Session, settings: Settings, name: str, *, quantization: QuantizationSpec | None = None
) -> Target:
    """A base model and an engine. Raises ModelNotAllowed, UnknownModel and NoEngine.

    Without a quantization it is that of a job that says none, whatever an engine has loaded: the same request
    has the same answer.
    """
    base_models.check(name, settings)
    base_model = BaseModelRef(name=name, quantization=quantization or QuantizationSpec())
    return Target(_engine_for(session, settings, base_model), base_model, None)


def _engine_for(session: Session, settings: Settings, base_model: BaseModelRef) -> EngineEndpoint:
    """An engine, with these very weights if there is one."""
    return find_engine(session, settings, base_model=base_model.name, quantization=base_model.quantization)


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
        self, engines: EngineClient, engine: EngineEndpoint, requests: Sequence[GenerateRequest]
    ) -> None:
        self._replies = _merge([engines.stream(engine, request) for request in requests])
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

    async def _next(self) -> NumberedReply:
        return await anext(self._replies)


@dataclass(frozen=True)
class GeneratedCall:
    """A call of a function that an answer makes; `arguments` is JSON."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class GeneratedAnswer:
    """One whole answer, and what was thought before it.

    `tokens` are those of the text, `thought_tokens` those of `reasoning`, where log-probabilities were
    requested.
    """

    text: str
    tokens: list[MadeToken] | None
    finished: Finished
    reasoning: str | None = None
    thought_tokens: list[MadeToken] | None = None
    tool_calls: tuple[GeneratedCall, ...] = ()


async def collect(answers: Answers) -> list[GeneratedAnswer]:
    """All answers, in the order of their requests. Raises as Answers does."""
    deltas: dict[int, list[Delta]] = {}
    ends: dict[int, Finished] = {}
    async for index, reply in answers:
        if isinstance(reply, Finished):
            ends[index] = reply
        else:
            deltas.setdefault(index, []).append(reply)
    return [_join(deltas.get(index, []), ends[index]) for index in sorted(ends)]


def _join(deltas: Sequence[Delta], finished: Finished) -> GeneratedAnswer:
    texts = [delta for delta in deltas if isinstance(delta, TokenDelta)]
    thoughts = [delta for delta in deltas if isinstance(delta, ReasoningDelta)]
    return GeneratedAnswer(
        "".join(delta.text for delta in texts),
        [token for delta in texts for token in delta.tokens or []] or None,
        finished,
        reasoning="".join(delta.text for delta in thoughts) or None,
        thought_tokens=[token for delta in thoughts for token in delta.tokens or []] or None,
        tool_calls=_join_calls([delta for delta in deltas if isinstance(delta, ToolCallDelta)]),
    )


def _join_calls(deltas: Sequence[ToolCallDelta]) -> tuple[GeneratedCall, ...]:
    calls: dict[int, GeneratedCall] = {}
    for delta in deltas:
        if delta.is_withdrawn:
            del calls[delta.index]
        elif delta.id is not None:
            calls[delta.index] = GeneratedCall(delta.id, delta.name or "", delta.arguments)
        else:
            before = calls[delta.index]
            calls[delta.index] = replace(before, arguments=before.arguments + delta.arguments)
    return tuple(calls.values())


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
