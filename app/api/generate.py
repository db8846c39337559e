"""POST /generate: one answer from the engine, at once or as a stream of server-sent events."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import anyio
from anyio import to_thread
from fastapi import APIRouter, Body, Request, Response
from fastapi.openapi.models import Example
from pydantic import BaseModel, Field
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from app.api.deps import Services, ServicesDep
from app.api.engine_client import Engine, find_engine
from app.api.errors import EngineRefusal, documented, dumps, error_content, refusal_content
from app.core import adapters, models
from app.core.errors import InvalidRequest, TunesmithError
from app.core.ids import new_id
from app.core.messages import (
    BaseModelRef,
    ChatMessage,
    Failed,
    Finished,
    GenerateRequest,
    Reply,
    Sampling,
    Timings,
    TokenDelta,
    Usage,
)
from app.core.specs import MODEL_NAME, QuantizationSpec

router = APIRouter(tags=["Generate"])

Result = TypeVar("Result")
Replies = AsyncGenerator[Reply, None]

_KEEP_ALIVE_SECONDS = 15
_SHUTDOWN_GRACE_SECONDS = 8.0
_CLIENT_GONE = 499  # nginx's number for it; nobody reads the answer, but the counters do
_EXAMPLES: dict[str, Example] = {
    "adapter": {
        "summary": "Ask an adapter",
        "value": {
            "adapter": "support-bot",
            "messages": [{"role": "user", "content": "How do I cancel a job?"}],
            "max_new_tokens": 64,
            "temperature": 0,
        },
    },
    "base model": {
        "summary": "Continue a text with the base model, as a stream",
        "value": {"base_model": "SmolLM2-135M-Instruct", "prompt": "Once upon a time", "stream": True},
    },
}


class GenerateBody(Sampling):
    """An adapter or a base model; a prompt or messages; how to sample."""

    adapter: str | None = Field(None, max_length=80, description="Id or name of an adapter.")
    base_model: str | None = Field(
        None, max_length=200, pattern=MODEL_NAME, description="A base model, to ask it without an adapter."
    )
    prompt: str | None = Field(None, min_length=1, description="Text to continue, taken as it is.")
    messages: list[ChatMessage] | None = Field(
        None, min_length=1, description="A conversation, rendered with the model's chat template."
    )
    stream: bool = Field(False, description="Answer with server-sent events: `delta`, …, `done`.")


class GenerationEnd(BaseModel):
    """Everything of an answer but its text."""

    id: str = Field(description="Names this answer.", examples=["gen_4kq1v9x2m7ahc3zt"])
    adapter: str | None = Field(description="Id of the adapter that answered.")
    base_model: str = Field(description="The base model that answered.")
    finish_reason: Literal["stop", "length"] = Field(description="`length`: `max_new_tokens` were made.")
    usage: Usage = Field(description="Tokens read and made.")
    timings: Timings = Field(description="Where the time went.")


class Generation(GenerationEnd):
    """An answer."""

    text: str = Field(description="The answer, without the prompt.")


@dataclass(frozen=True)
class Plan:
    """What will be asked of which engine."""

    engine: Engine
    request: GenerateRequest

    def end(self, finished: Finished) -> GenerationEnd:
        """What is said when the answer is complete."""
        adapter = self.request.adapter
        return GenerationEnd(
            id=new_id("gen"),
            adapter=adapter.id if adapter else None,
            base_model=self.request.base_model.name,
            **finished.model_dump(exclude={"type"}),
        )


@router.post(
    "/generate",
    response_model=Generation,
    summary="Generate text",
    responses=documented(404, 503)
    | {
        200: {
            "description": "The answer. With `stream`: events `delta` (`text`), then `done` (the answer "
            "without its text), or `error` (the error shape) where it broke off.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    },
)
async def generate(
    body: Annotated[GenerateBody, Body(openapi_examples=_EXAMPLES)], request: Request, services: ServicesDep
) -> object:
    """Ask an adapter or a base model. A client that goes away ends the work."""
    plan = await to_thread.run_sync(_plan, services, body)
    replies = services.engines.stream(plan.engine, plan.request)
    try:
        if not body.stream:
            answer = await _unless_gone(request, _whole_answer(plan, replies))
            return answer or Response(status_code=_CLIENT_GONE)
        # The status is not sent before the engine has said something: it may say no.
        first = await _unless_gone(request, _first(replies))
    except BaseException:
        await replies.aclose()
        raise
    if first is None:
        return Response(status_code=_CLIENT_GONE)
    return _ReplyStream(plan, first, replies)


def _plan(services: Services, body: GenerateBody) -> Plan:
    """Check what pydantic can't, and find the adapter and the engine."""
    _exactly_one(body, "adapter", "base_model")
    _exactly_one(body, "prompt", "messages")
    sampling = Sampling.model_validate(body.model_dump(include=set(Sampling.model_fields)))
    if body.base_model:
        models.check(body.base_model, services.settings)
    with services.database.snapshot() as session:
        if body.adapter:
            base_model, adapter = adapters.references(adapters.get(session, body.adapter))
        else:
            base_model, adapter = _base_model_ref(body.base_model or ""), None
        engine = find_engine(session, services.settings, base_model=base_model.name)
    loaded = engine.state.base_model
    if adapter is None and loaded and loaded.name == base_model.name:
        base_model = loaded  # as it stands in memory: asking for another quantization would load it again
    request = GenerateRequest(
        base_model=base_model,
        adapter=adapter,
        prompt=body.prompt,
        messages=body.messages,
        sampling=sampling,
    )
    return Plan(engine, request)


def _base_model_ref(name: str) -> BaseModelRef:
    return BaseModelRef(name=name, quantization=QuantizationSpec())


def _exactly_one(body: GenerateBody, first: str, second: str) -> None:
    given = [name for name in (first, second) if getattr(body, name) is not None]
    if len(given) != 1:
        problem = "both are given" if given else "neither is given"
        raise InvalidRequest(f"Give either `{first}` or `{second}`: {problem}.", param=first)


async def _whole_answer(plan: Plan, replies: Replies) -> Generation:
    texts: list[str] = []
    async for reply in replies:
        if isinstance(reply, TokenDelta):
            texts.append(reply.text)
        elif isinstance(reply, Failed):
            raise EngineRefusal(reply)
        else:
            return Generation(text="".join(texts), **plan.end(reply).model_dump())
    raise AssertionError("the replies end with Finished, Failed or an exception")


async def _first(replies: Replies) -> Reply:
    reply = await anext(replies)
    if isinstance(reply, Failed):
        raise EngineRefusal(reply)
    return reply


class _ReplyStream(EventSourceResponse):
    """The engine's replies as server-sent events. However it ends, the engine's connection is closed."""

    def __init__(self, plan: Plan, first: Reply, replies: Replies) -> None:
        super().__init__(
            _server_sent(plan, first, replies),
            ping=_KEEP_ALIVE_SECONDS,
            sep="\n",
            # On SIGTERM an answer that is being given may still be finished.
            shutdown_event=anyio.Event(),
            shutdown_grace_period=_SHUTDOWN_GRACE_SECONDS,
        )
        self._replies = replies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._replies.aclose()


async def _server_sent(plan: Plan, first: Reply, replies: Replies) -> AsyncIterator[ServerSentEvent]:
    try:
        yield _event(plan, first)
        async for reply in replies:
            yield _event(plan, reply)
    except TunesmithError as error:
        # The status is out: what went wrong can only be said in the stream.
        yield ServerSentEvent(dumps(error_content(error)), event="error", sep="\n")


def _event(plan: Plan, reply: Reply) -> ServerSentEvent:
    match reply:
        case TokenDelta(text=text):
            return ServerSentEvent(dumps({"text": text}), event="delta", sep="\n")
        case Failed():
            return ServerSentEvent(dumps(refusal_content(reply)), event="error", sep="\n")
        case Finished():
            return ServerSentEvent(plan.end(reply).model_dump_json(), event="done", sep="\n")


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result | None:
    """The result of the work, or None where the client went away first; then the work is cancelled."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_wait_until_gone(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
