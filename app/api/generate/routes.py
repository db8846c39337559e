"""POST /generate: one answer of an adapter or a base model, or several, whole or as server-sent events."""

from collections.abc import AsyncGenerator
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Body, Request, Response
from fastapi.openapi.models import Example

from app.api.deps import Services, ServicesDep
from app.api.generate.answer_events import EventStream
from app.api.generate.answers import (
    CLIENT_CLOSED_REQUEST,
    Answers,
    GeneratedAnswer,
    Target,
    collect,
    find_adapter,
    find_base_model,
    repeat,
    unless_disconnected,
)
from app.api.generate.response_format import output_schema
from app.api.generate.schemas import (
    ChoiceEndRead,
    ChoiceRead,
    GenerateBody,
    GenerationEndRead,
    GenerationRead,
    StreamEndRead,
)
from app.api.http.errors import EngineRefusal, documented, dumps, error_content, refusal_content
from app.api.http.server_sent_events import server_sent
from app.core.engine.messages import Finished, GenerateRequest, TokenDelta
from app.core.engine.sampling import Sampling
from app.core.errors import InvalidRequest, TunesmithError
from app.core.storage.ids import new_id

router = APIRouter(tags=["Generate"])

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


@router.post(
    "/generate",
    response_model=GenerationRead,
    response_model_exclude_unset=True,
    summary="Generate text",
    responses=documented(404, 429, 503)
    | {
        200: {
            "description": "The answer. With `stream`: events `delta` (`text`; with `logprobs` also "
            "`tokens`; with `n` also the answer's `index`), then `done` (the answer without its text), or "
            "`error` (the error shape) where it broke off.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    },
)
async def generate(
    body: Annotated[GenerateBody, Body(openapi_examples=_EXAMPLES)], request: Request, services: ServicesDep
) -> object:
    """Ask an adapter or a base model. A client that goes away ends the work."""
    target, generate_request = await to_thread.run_sync(_plan, services, body)
    answers = Answers(services.engines, target.engine, repeat(generate_request, body.n))
    try:
        if body.stream and await unless_disconnected(request, answers.begin()):
            return EventStream(_events(target, answers, body.n), answers)
        whole = None if body.stream else await unless_disconnected(request, collect(answers))
    except BaseException:
        await answers.close()
        raise
    await answers.close()
    return _generation(target, whole) if whole else Response(status_code=CLIENT_CLOSED_REQUEST)


def _plan(services: Services, body: GenerateBody) -> tuple[Target, GenerateRequest]:
    """Check what pydantic can't, and find the adapter and the engine."""
    _exactly_one(body, "adapter", "base_model")
    _exactly_one(body, "prompt", "messages")
    with services.database.snapshot() as session:
        if body.adapter:
            target = find_adapter(session, services.settings, body.adapter, quantization=body.quantization)
        else:
            target = find_base_model(
                session, services.settings, body.base_model or "", quantization=body.quantization
            )
    return target, GenerateRequest(
        base_model=target.base_model,
        adapter=target.adapter,
        prompt=body.prompt,
        messages=body.messages,
        sampling=Sampling.model_validate(body.model_dump(include=set(Sampling.model_fields))),
        output_schema=output_schema(body.response_format),
    )


def _exactly_one(body: GenerateBody, first: str, second: str) -> None:
    given = [name for name in (first, second) if getattr(body, name) is not None]
    if len(given) != 1:
        problem = "both are given" if given else "neither is given"
        raise InvalidRequest(f"Give either `{first}` or `{second}`: {problem}.", param=first)


def _generation(target: Target, whole: list[GeneratedAnswer]) -> GenerationRead:
    end = _end(target, [answer.finished for answer in whole])
    found = GenerationRead(text=whole[0].text, **end.model_dump())
    if whole[0].tokens is not None:
        found.tokens = whole[0].tokens
    if len(whole) > 1:
        found.choices = [_choice(answer) for answer in whole]
    return found


def _choice(answer: GeneratedAnswer) -> ChoiceRead:
    tokens = {} if answer.tokens is None else {"tokens": answer.tokens}
    return ChoiceRead(finish_reason=answer.finished.finish_reason, text=answer.text, **tokens)


def _end(target: Target, finished: list[Finished]) -> GenerationEndRead:
    slowest = max(finished, key=lambda one: one.timings.total_seconds)
    made = sum(one.usage.completion_tokens for one in finished)
    return GenerationEndRead(
        id=new_id("gen"),
        adapter=target.adapter.id if target.adapter else None,
        base_model=target.base_model.name,
        quantization=target.base_model.quantization,
        finish_reason=finished[0].finish_reason,
        usage=finished[0].usage.model_copy(update={"completion_tokens": made}),
        timings=slowest.timings,
    )


async def _events(target: Target, answers: Answers, count: int) -> AsyncGenerator[str, None]:
    ends: dict[int, Finished] = {}
    try:
        async for index, reply in answers:
            if isinstance(reply, Finished):
                ends[index] = reply
            else:
                yield server_sent(dumps(_delta(reply, index if count > 1 else None)), event="delta")
    # The status has been sent: an error can only be an event of the stream.
    except EngineRefusal as refusal:
        yield server_sent(dumps(refusal_content(refusal.failed)), event="error")
    except TunesmithError as error:
        yield server_sent(dumps(error_content(error)), event="error")
    else:
        end = _stream_end(target, ends, count)
        yield server_sent(end.model_dump_json(exclude_unset=True), event="done")


def _delta(reply: TokenDelta, index: int | None) -> dict[str, object]:
    content: dict[str, object] = {"text": reply.text}
    if index is not None:
        content["index"] = index
    if reply.tokens is not None:
        content["tokens"] = [token.model_dump() for token in reply.tokens]
    return content


def _stream_end(target: Target, ends: dict[int, Finished], count: int) -> StreamEndRead:
    finished = [ends[index] for index in range(count)]
    end = StreamEndRead(**_end(target, finished).model_dump())
    if count > 1:
        end.choices = [ChoiceEndRead(finish_reason=one.finish_reason) for one in finished]
    return end
