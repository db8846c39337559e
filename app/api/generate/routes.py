"""POST /generate: one answer of an adapter or a base model, or several, whole or as server-sent events."""

from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from fastapi.openapi.models import Example

from app.api.chat.calls import as_tool_calls
from app.api.chat.conversation import as_turns
from app.api.deps import Services, ServicesDep
from app.api.generate.answer_events import EventStream
from app.api.generate.answers import CLIENT_CLOSED_REQUEST, Answers, collect, repeat, unless_disconnected
from app.api.generate.response_format import output_schema
from app.api.generate.schemas import (
    ChoiceEndRead,
    ChoiceRead,
    GenerateBody,
    GenerationEndRead,
    GenerationRead,
    StreamEndRead,
)
from app.api.generate.served import served_headers
from app.api.generate.use import RequestUse
from app.api.http.access.auth import CallerDep
from app.api.http.errors import EngineRefusal, documented, dumps, error_content, refusal_content
from app.api.http.pacing import run_by_length
from app.api.http.server_sent_events import server_sent
from app.core.adapters.targets import Target, Targets
from app.core.engine.answers import GeneratedAnswer
from app.core.engine.messages import (
    Delta,
    Finished,
    GenerateRequest,
    PromptDelta,
    ReasoningDelta,
    TokenDelta,
    Usage,
)
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
            "description": "The answer. With `stream`: events `reasoning` and `delta` (`text`; with "
            "`logprobs` also `tokens`), `tool_call` (`call`, which counts the calls; at first `id` and "
            "`name`; more of `arguments`, JSON; or `withdrawn`, where it turns out to be no call: its text "
            "follows as a `delta`), each with `n` also with the answer's `index`; then `done` (the answer "
            "without its text), or `error` (the error shape) where it broke off.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    },
)
async def generate(
    body: Annotated[GenerateBody, Body(openapi_examples=_EXAMPLES)],
    request: Request,
    response: Response,
    services: ServicesDep,
    caller: CallerDep,
) -> object:
    """Ask an adapter, a base model, or what an alias points to. A client that goes away ends the work."""
    target, generate_request = await _plan(services, body)
    response.headers.update(served_headers(target))
    use = RequestUse(services.usage_meter, caller, target.name, choices=body.n)
    answers = Answers(services.engines, target.engine, repeat(generate_request, body.n), use=use)
    try:
        if body.stream and await unless_disconnected(request, answers.begin()):
            events = _events(target, answers, body.n)
            return EventStream(events, answers, headers=served_headers(target))
        whole = None if body.stream else await unless_disconnected(request, collect(answers))
    except BaseException:
        await answers.close()
        raise
    await answers.close()
    return _generation(target, whole) if whole else Response(status_code=CLIENT_CLOSED_REQUEST)


async def _plan(services: Services, body: GenerateBody) -> tuple[Target, GenerateRequest]:
    """Check what pydantic can't, and find the adapter and the engine."""
    _exactly_one(body, "adapter", "base_model", "model")
    _exactly_one(body, "prompt", "messages")
    if body.prompt is not None:
        _refuse_with_prompt(body)
    target = await services.lookups.find(
        lambda targets: _find_target(targets, body), body.adapter or body.model
    )
    request = await run_by_length(lambda: _make_request(body, target), len(body.messages or ()))
    return target, request


def _find_target(targets: Targets, body: GenerateBody) -> Target:
    if body.adapter:
        return targets.find_adapter(body.adapter, quantization=body.quantization)
    if body.model:
        return targets.find_named(body.model, quantization=body.quantization, subject=body.user)
    return targets.find_base_model(body.base_model or "", quantization=body.quantization)


def _make_request(body: GenerateBody, target: Target) -> GenerateRequest:
    return GenerateRequest(
        base_model=target.base_model,
        adapter=target.adapter,
        prompt=body.prompt,
        messages=as_turns(body.messages) if body.messages else None,
        sampling=Sampling.model_validate(body.model_dump(include=set(Sampling.model_fields))),
        output_schema=output_schema(body.response_format),
        tools=body.find_tools(),
        template_variables=body.find_variables(),
    )


def _exactly_one(body: GenerateBody, *names: str) -> None:
    given = [name for name in names if getattr(body, name) is not None]
    if len(given) != 1:
        problem = f"{' and '.join(given)} are given" if given else "none is given"
        choices = " or ".join(f"`{name}`" for name in names)
        raise InvalidRequest(f"Give one of {choices}: {problem}.", param=names[0])


def _refuse_with_prompt(body: GenerateBody) -> None:
    for name in ("tools", "chat_template_kwargs", "reasoning_effort"):
        if getattr(body, name):
            raise InvalidRequest(
                f"{name}: it needs `messages`: a prompt is taken as it is, without the chat template.",
                param=name,
            )


def _generation(target: Target, whole: list[GeneratedAnswer]) -> GenerationRead:
    end = _end(target, [answer.finished for answer in whole])
    found = GenerationRead(text=whole[0].text, **_parts(whole[0]), **end.model_dump())
    if len(whole) > 1:
        found.choices = [_choice(answer) for answer in whole]
    return found


def _choice(answer: GeneratedAnswer) -> ChoiceRead:
    return ChoiceRead(finish_reason=answer.finished.finish_reason, text=answer.text, **_parts(answer))


def _parts(answer: GeneratedAnswer) -> dict[str, Any]:
    """What the answer has besides its text."""
    calls = as_tool_calls(answer.tool_calls)
    parts = {"tokens": answer.tokens, "reasoning": answer.reasoning, "tool_calls": calls}
    return {name: part for name, part in parts.items() if part is not None}


def _end(target: Target, finished: list[Finished]) -> GenerationEndRead:
    slowest = max(finished, key=lambda one: one.timings.total_seconds)
    return GenerationEndRead(
        id=new_id("gen"),
        adapter=target.adapter.id if target.adapter else None,
        base_model=target.base_model.name,
        quantization=target.base_model.quantization,
        finish_reason=finished[0].finish_reason,
        usage=_total_usage([one.usage for one in finished]),
        timings=slowest.timings,
    )


def _total_usage(usages: list[Usage]) -> Usage:
    """The tokens read once, and those made for all answers."""
    total = Usage(
        prompt_tokens=usages[0].prompt_tokens,
        completion_tokens=sum(usage.completion_tokens for usage in usages),
    )
    if thoughts := sum(usage.reasoning_tokens for usage in usages):
        total.reasoning_tokens = thoughts
    return total


async def _events(target: Target, answers: Answers, count: int) -> AsyncGenerator[str, None]:
    ends: dict[int, Finished] = {}
    try:
        async for index, reply in answers:
            if isinstance(reply, Finished):
                ends[index] = reply
            else:
                name, content = _delta(reply)
                if count > 1:
                    content["index"] = index
                yield server_sent(dumps(content), event=name)
    # The status has been sent: an error can only be an event of the stream.
    except EngineRefusal as refusal:
        yield server_sent(dumps(refusal_content(refusal.failed)), event="error")
    except TunesmithError as error:
        yield server_sent(dumps(error_content(error)), event="error")
    else:
        end = _stream_end(target, ends, count)
        yield server_sent(end.model_dump_json(exclude_unset=True), event="done")


def _delta(reply: Delta) -> tuple[str, dict[str, object]]:
    """The name of an event, and its content."""
    assert not isinstance(reply, PromptDelta)  # /generate does not ask for it
    tokens = {} if reply.tokens is None else {"tokens": [token.model_dump() for token in reply.tokens]}
    if isinstance(reply, TokenDelta):
        return "delta", {"text": reply.text, **tokens}
    if isinstance(reply, ReasoningDelta):
        return "reasoning", {"text": reply.text, **tokens}
    call: dict[str, object] = {"call": reply.index}
    if reply.is_withdrawn:
        return "tool_call", {**call, "withdrawn": True}
    if reply.id is not None:
        call |= {"id": reply.id, "name": reply.name}
    return "tool_call", {**call, "arguments": reply.arguments}


def _stream_end(target: Target, ends: dict[int, Finished], count: int) -> StreamEndRead:
    finished = [ends[index] for index in range(count)]
    end = StreamEndRead(**_end(target, finished).model_dump())
    if count > 1:
        end.choices = [ChoiceEndRead(finish_reason=one.finish_reason) for one in finished]
    return end
