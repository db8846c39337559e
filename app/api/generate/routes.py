"""POST /generate: one answer from the engine, or several, at once or as a stream of server-sent events."""

from collections.abc import AsyncGenerator
from typing import Annotated, Literal

from anyio import to_thread
from fastapi import APIRouter, Body, Request, Response
from fastapi.openapi.models import Example
from pydantic import BaseModel, Field

from app.api.deps import Services, ServicesDep
from app.api.generate.answer_events import EventStream
from app.api.generate.answers import (
    CLIENT_GONE,
    Answer,
    Answers,
    Target,
    collect,
    find_adapter,
    find_base_model,
    repeat,
    unless_gone,
)
from app.api.generate.response_format import ResponseFormat, output_schema
from app.api.http.errors import EngineRefusal, documented, dumps, error_content, refusal_content
from app.core.engine.messages import (
    ChatMessage,
    Finished,
    GenerateRequest,
    MadeToken,
    Sampling,
    Timings,
    TokenDelta,
    Usage,
)
from app.core.errors import InvalidRequest, TunesmithError
from app.core.specs.job import MODEL_NAME
from app.core.storage.ids import new_id

router = APIRouter(tags=["Generate"])

_MOST_CHOICES = 128
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

    adapter: str | None = Field(None, max_length=400, description="Id or name of an adapter.")
    base_model: str | None = Field(
        None, max_length=200, pattern=MODEL_NAME, description="A base model, to ask it without an adapter."
    )
    prompt: str | None = Field(None, min_length=1, description="Text to continue, taken as it is.")
    messages: list[ChatMessage] | None = Field(
        None, min_length=1, description="A conversation, rendered with the model's chat template."
    )
    n: int = Field(1, ge=1, le=_MOST_CHOICES, description="How many answers; see `choices`.")
    response_format: ResponseFormat | None = Field(
        None, description="What the answer must look like: text, JSON, or JSON that keeps to a schema."
    )
    stream: bool = Field(False, description="Answer with server-sent events: `delta`, …, `done`.")


class ChoiceEnd(BaseModel):
    """How one of several answers ended."""

    finish_reason: Literal["stop", "length"] = Field(description="`length`: `max_new_tokens` were made.")


class Choice(ChoiceEnd):
    """One of several answers."""

    text: str = Field(description="The answer, without the prompt.")
    tokens: list[MadeToken] | None = Field(None, description="Its tokens, with `logprobs`.")


class GenerationEnd(ChoiceEnd):
    """Everything of an answer but its text."""

    id: str = Field(description="Names this answer.", examples=["gen_4kq1v9x2m7ahc3zt"])
    adapter: str | None = Field(description="Id of the adapter that answered.")
    base_model: str = Field(description="The base model that answered.")
    usage: Usage = Field(description="Tokens read, and tokens made for all answers.")
    timings: Timings = Field(description="Where the time went; of several answers, for the slowest.")


class StreamEnd(GenerationEnd):
    """The last event of a stream."""

    choices: list[ChoiceEnd] | None = Field(None, description="Every answer's end, with `n` above 1.")


class Generation(GenerationEnd):
    """An answer."""

    text: str = Field(description="The answer, without the prompt.")
    tokens: list[MadeToken] | None = Field(None, description="Its tokens, with `logprobs`.")
    choices: list[Choice] | None = Field(None, description="Every answer, with `n` above 1.")


@router.post(
    "/generate",
    response_model=Generation,
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
    target, asked = await to_thread.run_sync(_plan, services, body)
    answers = Answers(services.engines, target.engine, repeat(asked, body.n))
    try:
        if body.stream and await unless_gone(request, answers.begin()):
            return EventStream(_events(target, answers, body.n), answers)
        whole = None if body.stream else await unless_gone(request, collect(answers))
    except BaseException:
        await answers.close()
        raise
    await answers.close()
    return _generation(target, whole) if whole else Response(status_code=CLIENT_GONE)


def _plan(services: Services, body: GenerateBody) -> tuple[Target, GenerateRequest]:
    """Check what pydantic can't, and find the adapter and the engine."""
    _exactly_one(body, "adapter", "base_model")
    _exactly_one(body, "prompt", "messages")
    with services.database.snapshot() as session:
        if body.adapter:
            target = find_adapter(session, services.settings, body.adapter)
        else:
            target = find_base_model(session, services.settings, body.base_model or "")
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


def _generation(target: Target, whole: list[Answer]) -> Generation:
    end = _end(target, [answer.finished for answer in whole])
    found = Generation(text=whole[0].text, **end.model_dump())
    if whole[0].tokens is not None:
        found.tokens = whole[0].tokens
    if len(whole) > 1:
        found.choices = [_choice(answer) for answer in whole]
    return found


def _choice(answer: Answer) -> Choice:
    tokens = {} if answer.tokens is None else {"tokens": answer.tokens}
    return Choice(finish_reason=answer.finished.finish_reason, text=answer.text, **tokens)


def _end(target: Target, finished: list[Finished]) -> GenerationEnd:
    slowest = max(finished, key=lambda one: one.timings.total_seconds)
    made = sum(one.usage.completion_tokens for one in finished)
    return GenerationEnd(
        id=new_id("gen"),
        adapter=target.adapter.id if target.adapter else None,
        base_model=target.base_model.name,
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
                yield _event("delta", dumps(_delta(reply, index if count > 1 else None)))
    # The status is out: what went wrong can only be said in the stream.
    except EngineRefusal as refusal:
        yield _event("error", dumps(refusal_content(refusal.failed)))
    except TunesmithError as error:
        yield _event("error", dumps(error_content(error)))
    else:
        yield _event("done", _stream_end(target, ends, count).model_dump_json(exclude_unset=True))


def _delta(reply: TokenDelta, index: int | None) -> dict[str, object]:
    content: dict[str, object] = {"text": reply.text}
    if index is not None:
        content["index"] = index
    if reply.tokens is not None:
        content["tokens"] = [token.model_dump() for token in reply.tokens]
    return content


def _stream_end(target: Target, ends: dict[int, Finished], count: int) -> StreamEnd:
    finished = [ends[index] for index in range(count)]
    end = StreamEnd(**_end(target, finished).model_dump())
    if count > 1:
        end.choices = [ChoiceEnd(finish_reason=one.finish_reason) for one in finished]
    return end


def _event(name: str, content: str) -> str:
    return f"event: {name}\ndata: {content}\n\n"
