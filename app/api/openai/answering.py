"""From a request under /v1 to its answer or its stream; chat and completions bring the shapes."""

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from fastapi import Request, Response
from pydantic import BaseModel, Field

from app.api.deps import Services
from app.api.generate.answer_events import EventStream
from app.api.generate.answers import (
    CLIENT_GONE,
    Answers,
    GeneratedAnswer,
    Target,
    collect,
    repeat,
    unless_gone,
)
from app.api.http.errors import EngineRefusal, dumps, error_content, refusal_content
from app.api.openai.errors import openai_error
from app.api.openai.parameters import MAX_CHOICES, CommonBody, refuse
from app.core.engine.messages import Finished, GenerateRequest, TokenDelta
from app.core.errors import TunesmithError


class OpenAIUsage(BaseModel):
    """Tokens read and made, over all answers. A prompt counts once however many answers it has."""

    prompt_tokens: int = Field(description="Tokens read.")
    completion_tokens: int = Field(description="Tokens made.")
    total_tokens: int = Field(description="Both together.")


ChoiceT = TypeVar("ChoiceT", covariant=True)


class Shape(Protocol[ChoiceT]):
    """How the pieces of an answer look. One for each request: it may remember what it has said."""

    def first(self, index: int) -> dict[str, Any] | None:
        """What a stream says of a choice before anything else, or None."""

    def delta(self, index: int, reply: TokenDelta) -> dict[str, Any]:
        """A choice that goes on."""

    def end(self, index: int, finished: Finished) -> dict[str, Any]:
        """A choice that ends."""

    def whole(self, index: int, answer: GeneratedAnswer) -> ChoiceT:
        """A choice at once."""


@dataclass(frozen=True)
class Question:
    """What is asked: one request for each prompt, each to be answered `choice_count` times."""

    body: CommonBody
    target: Target
    prompts: Sequence[GenerateRequest]
    id: str
    object: str
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def requests(self) -> list[GenerateRequest]:
        """One for each choice, in the order of their indexes. Raises InvalidRequest for too many."""
        count = self.body.choice_count
        if len(self.prompts) * count > MAX_CHOICES:
            refuse("n", f"at most {MAX_CHOICES} answers at a time, over all prompts")
        return [request for prompt in self.prompts for request in repeat(prompt, count)]

    def usage(self, finished: Sequence[Finished]) -> OpenAIUsage:
        """Of all answers together."""
        read = sum(one.usage.prompt_tokens for one in finished[:: self.body.choice_count])
        made = sum(one.usage.completion_tokens for one in finished)
        return OpenAIUsage(prompt_tokens=read, completion_tokens=made, total_tokens=read + made)


async def respond(
    question: Question,
    shape: Shape[ChoiceT],
    make_whole: Callable[[list[ChoiceT], OpenAIUsage], BaseModel],
    *,
    request: Request,
    services: Services,
) -> object:
    """The answer or the stream. A client that goes away ends the work."""
    answers = Answers(services.engines, question.target.engine, question.requests)
    is_stream = question.body.stream
    try:
        if is_stream and await unless_gone(request, answers.begin()):
            return EventStream(_events(question, shape, answers), answers)
        whole = None if is_stream else await unless_gone(request, collect(answers))
    except BaseException:
        await answers.close()
        raise
    await answers.close()
    if not whole:
        return Response(status_code=CLIENT_GONE)
    choices = [shape.whole(index, answer) for index, answer in enumerate(whole)]
    return make_whole(choices, question.usage([answer.finished for answer in whole]))


async def _events(question: Question, shape: Shape[object], answers: Answers) -> AsyncGenerator[str, None]:
    begun: set[int] = set()
    ends: dict[int, Finished] = {}
    try:
        async for index, reply in answers:
            if index not in begun:
                begun.add(index)
                if (first := shape.first(index)) is not None:
                    yield _chunk(question, [first])
            if isinstance(reply, Finished):
                ends[index] = reply
                yield _chunk(question, [shape.end(index, reply)])
            else:
                yield _chunk(question, [shape.delta(index, reply)])
    # The status is out: what went wrong can only be said in the stream.
    except EngineRefusal as refusal:
        yield _event(openai_error(refusal_content(refusal.failed)))
    except TunesmithError as error:
        yield _event(openai_error(error_content(error)))
    else:
        if question.body.includes_usage:
            usage = question.usage([ends[index] for index in sorted(ends)])
            yield _chunk(question, [], usage.model_dump())
        yield "data: [DONE]\n\n"


def _chunk(question: Question, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> str:
    content: dict[str, Any] = {
        "id": question.id,
        "object": question.object,
        "created": question.created,
        "model": question.body.model,
        "choices": choices,
    }
    if question.body.includes_usage:
        content["usage"] = usage
    return _event(content)


def _event(content: dict[str, Any]) -> str:
    return f"data: {dumps(content)}\n\n"
