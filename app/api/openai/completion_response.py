"""Responses of /v1/chat/completions and /v1/completions, whole or streamed; each renders its own choices."""

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from fastapi import Request, Response
from pydantic import BaseModel, Field

from app.api.deps import Services
from app.api.generate.answer_events import EventStream
from app.api.generate.answers import CLIENT_CLOSED_REQUEST, Answers, collect, repeat, unless_disconnected
from app.api.generate.schemas import MAX_CHOICES
from app.api.generate.served import answered_model, served_headers
from app.api.generate.use import RequestUse
from app.api.http.errors import EngineRefusal, dumps, error_content, refusal_content
from app.api.http.server_sent_events import server_sent
from app.api.openai.errors import openai_error
from app.api.openai.parameters import CommonBody, reject_parameter
from app.core.adapters.targets import Target
from app.core.engine.answers import GeneratedAnswer
from app.core.engine.messages import Delta, Finished, GenerateRequest
from app.core.errors import TunesmithError
from app.core.keys.records import Caller


class CompletionTokensDetails(BaseModel):
    """What the tokens made are."""

    reasoning_tokens: int = Field(description="Thoughts, which are not part of the answer.")
    accepted_prediction_tokens: int = Field(
        0, description="With `prediction`: tokens of the answer that were looked up and not made one by one."
    )
    rejected_prediction_tokens: int = Field(
        0, description="With `prediction`: tokens that were looked up, and that the answer does not have."
    )


class OpenAIUsage(BaseModel):
    """Tokens read and made, over all answers. A prompt counts once however many answers it has."""

    prompt_tokens: int = Field(description="Tokens read.")
    completion_tokens: int = Field(description="Tokens made.")
    total_tokens: int = Field(description="Both together.")
    completion_tokens_details: CompletionTokensDetails = Field(description="What the tokens made are.")


class OpenAICompletion(BaseModel):
    """What both kinds of completion have besides their choices."""

    id: str = Field(description="Names this completion.")
    object: str
    created: int = Field(description="When it was asked for, in seconds since 1970.")
    model: str = Field(description="`model` as it was asked for; of an alias, the model that served.")
    usage: OpenAIUsage = Field(description="Tokens read and made.")
    system_fingerprint: str = Field(
        description="How the base model's weights were quantized.", examples=["nf4-auto"]
    )


ChoiceT = TypeVar("ChoiceT", covariant=True)


class ChoiceRenderer(Protocol[ChoiceT]):
    """Renders the choices of a response as JSON. There is one for each request, so it may hold state."""

    def first(self, index: int) -> dict[str, Any] | None:
        """The chunk that opens a choice in a stream, or None."""

    def delta(self, index: int, reply: Delta) -> dict[str, Any] | None:
        """A chunk with more of a choice, or None."""

    def end(self, index: int, finished: Finished) -> dict[str, Any]:
        """The chunk that ends a choice."""

    def whole(self, index: int, answer: GeneratedAnswer) -> ChoiceT:
        """A whole choice, without streaming."""


@dataclass(frozen=True)
class CompletionPlan:
    """The engine requests of one API request: one for each prompt, each repeated `choice_count` times."""

    body: CommonBody
    target: Target
    prompts: Sequence[GenerateRequest]
    id: str
    object: str
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def requests(self) -> list[GenerateRequest]:
        """One request for each choice, in the order of their indexes. Raises InvalidRequest for too many."""
        count = self.body.choice_count
        if len(self.prompts) * count > MAX_CHOICES:
            reject_parameter("n", f"at most {MAX_CHOICES} answers at a time, over all prompts")
        return [request for prompt in self.prompts for request in repeat(prompt, count)]

    @property
    def head(self) -> dict[str, Any]:
        """The fields that the response, or each chunk of its stream, begins with."""
        return {
            "id": self.id,
            "created": self.created,
            "model": answered_model(self.target, self.body.model),
            "system_fingerprint": self.target.base_model.quantization.label,
        }

    def usage(self, finished: Sequence[Finished]) -> OpenAIUsage:
        """The tokens of all choices together."""
        read = sum(one.usage.prompt_tokens for one in finished[:: self.body.choice_count])
        made = sum(one.usage.completion_tokens for one in finished)
        details = CompletionTokensDetails(
            reasoning_tokens=sum(one.usage.reasoning_tokens for one in finished)
        )
        if any(one.prediction for one in self.prompts):
            drafted = sum(one.timings.drafted_tokens for one in finished)
            details.accepted_prediction_tokens = sum(one.timings.accepted_tokens for one in finished)
            details.rejected_prediction_tokens = drafted - details.accepted_prediction_tokens
        return OpenAIUsage(
            prompt_tokens=read,
            completion_tokens=made,
            total_tokens=read + made,
            completion_tokens_details=details,
        )


async def respond(
    plan: CompletionPlan,
    renderer: ChoiceRenderer[ChoiceT],
    whole: Callable[..., OpenAICompletion],
    *,
    request: Request,
    services: Services,
    caller: Caller,
) -> object:
    """The stream, or the response that `whole` makes. A client that disconnects cancels the requests."""
    use = RequestUse(services.usage_meter, caller, plan.target.name, choices=plan.body.choice_count)
    answers = Answers(services.engines, plan.target.engine, plan.requests, use=use)
    is_stream = plan.body.stream
    try:
        if is_stream and await unless_disconnected(request, answers.begin()):
            events = _events(plan, renderer, answers)
            return EventStream(events, answers, headers=served_headers(plan.target))
        found = None if is_stream else await unless_disconnected(request, collect(answers))
    except BaseException:
        await answers.close()
        raise
    await answers.close()
    if not found:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    choices = [renderer.whole(index, answer) for index, answer in enumerate(found)]
    return whole(**plan.head, choices=choices, usage=plan.usage([answer.finished for answer in found]))


async def _events(
    plan: CompletionPlan, renderer: ChoiceRenderer[object], answers: Answers
) -> AsyncGenerator[str, None]:
    begun: set[int] = set()
    ends: dict[int, Finished] = {}
    try:
        async for index, reply in answers:
            if index not in begun:
                begun.add(index)
                if (first := renderer.first(index)) is not None:
                    yield _chunk(plan, [first])
            if isinstance(reply, Finished):
                ends[index] = reply
                yield _chunk(plan, [renderer.end(index, reply)])
            elif (more := renderer.delta(index, reply)) is not None:
                yield _chunk(plan, [more])
    # The status has been sent: an error can only be an event of the stream.
    except EngineRefusal as refusal:
        yield _event(openai_error(refusal_content(refusal.failed)))
    except TunesmithError as error:
        yield _event(openai_error(error_content(error)))
    else:
        if plan.body.includes_usage:
            usage = plan.usage([ends[index] for index in sorted(ends)])
            yield _chunk(plan, [], usage.model_dump())
        yield server_sent("[DONE]")


def _chunk(plan: CompletionPlan, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> str:
    content = {**plan.head, "object": plan.object, "choices": choices}
    if plan.body.includes_usage:
        content["usage"] = usage
    return _event(content)


def _event(content: dict[str, Any]) -> str:
    return server_sent(dumps(content))
