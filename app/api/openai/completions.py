"""POST /v1/completions: continuations of one prompt or many, without a chat template."""

from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Body, Request
from fastapi.openapi.models import Example
from pydantic import BaseModel, Field

from app.api.chat.request_parts import MustBeFalse, allow_only
from app.api.deps import Services, ServicesDep
from app.api.generate.answers import GeneratedAnswer
from app.api.generate.response_format import ResponseFormat, output_schema
from app.api.generate.schemas import MAX_CHOICES
from app.api.openai.completion_response import CompletionPlan, OpenAICompletion, respond
from app.api.openai.logprobs import CompletionLogprobs, CompletionLogprobsWriter
from app.api.openai.models import find_target
from app.api.openai.parameters import CommonBody, Tokens, as_prompts, reject_parameter
from app.core.engine.messages import Delta, Finished, GenerateRequest, TokenDelta
from app.core.engine.sampling import MAX_NEW_TOKENS, MAX_TOP_LOGPROBS
from app.core.storage.ids import new_id

router = APIRouter()

_DEFAULT_MAX_TOKENS = 16
_EXAMPLES: dict[str, Example] = {
    "text": {
        "summary": "Continue a text",
        "value": {"model": "SmolLM2-135M-Instruct", "prompt": "Once upon a time", "max_tokens": 32},
    },
    "tokens": {
        "summary": "Several prompts, as token ids",
        "value": {"model": "SmolLM2-135M-Instruct", "prompt": [[504, 2365], [12899]], "temperature": 0},
    },
}


class CompletionBody(CommonBody):
    """Text to go on from."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)]
        | Tokens
        | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)]
    ) = Field(description="A text, several, the ids of its tokens, or several lists of them.")
    max_tokens: int | None = Field(
        None, ge=1, le=MAX_NEW_TOKENS, description=f"Most tokens to make; default {_DEFAULT_MAX_TOKENS}."
    )
    logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_TOP_LOGPROBS,
        description="Say the log-probability of each token made, and of so many of the likeliest.",
    )
    response_format: ResponseFormat | None = Field(
        None, description="Not OpenAI's here. What the answer must look like, as in chat."
    )
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES, description="Only what `n` is.")
    echo: MustBeFalse = Field(None, description="Only false.")
    suffix: Annotated[Any, allow_only("")] = Field(None, description="Only null or empty.")

    def check(self) -> None:
        """Raise InvalidRequest for parameters that do not go together."""
        super().check()
        if self.best_of is not None and self.best_of != self.choice_count:
            reject_parameter("best_of", "not supported here, but for the value of `n`; leave it out")

    def as_requests(self) -> list[dict[str, Any]]:
        """The fields of the engine's request for each prompt, without the model."""
        sampling = self.sampling(
            max_new_tokens=self.max_tokens or _DEFAULT_MAX_TOKENS, logprobs=self.logprobs
        )
        common = {"sampling": sampling, "output_schema": output_schema(self.response_format)}
        return [prompt | common for prompt in as_prompts(self.prompt)]


class CompletionChoice(BaseModel):
    """One answer."""

    index: int = Field(description="Counts the answers from 0: all of the first prompt, then the next one's.")
    text: str = Field(description="The answer, without the prompt.")
    logprobs: CompletionLogprobs | None = Field(description="With `logprobs`: its tokens.")
    finish_reason: Literal["stop", "length", "tool_calls"] = Field(
        description="`length`: no more tokens were wanted or fit."
    )


class TextCompletion(OpenAICompletion):
    """How texts go on."""

    object: Literal["text_completion"] = Field("text_completion", description="Always `text_completion`.")
    choices: list[CompletionChoice] = Field(description="The answers.")


class _CompletionRenderer:
    def __init__(self) -> None:
        self._writers: dict[int, CompletionLogprobsWriter] = {}

    def first(self, index: int) -> None:
        self._writers[index] = CompletionLogprobsWriter()

    def delta(self, index: int, reply: Delta) -> dict[str, Any] | None:
        if not isinstance(reply, TokenDelta):
            return None
        logprobs = self._writers[index].write(reply.tokens)
        return _choice(index, reply.text, logprobs=logprobs.model_dump() if logprobs else None)

    def end(self, index: int, finished: Finished) -> dict[str, Any]:
        return _choice(index, "", finish_reason=finished.finish_reason)

    def whole(self, index: int, answer: GeneratedAnswer) -> CompletionChoice:
        return CompletionChoice(
            index=index,
            text=answer.text,
            logprobs=CompletionLogprobsWriter().write(answer.tokens),
            finish_reason=answer.finished.finish_reason,
        )


def _choice(
    index: int, text: str, *, logprobs: object = None, finish_reason: str | None = None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


@router.post(
    "/completions",
    response_model=TextCompletion,
    summary="Complete a text",
    responses={
        200: {
            "description": "The answers. With `stream`: `text_completion` after `text_completion`, then "
            "`[DONE]`; or `error` where it broke off.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    },
)
async def create_completion(
    body: Annotated[CompletionBody, Body(openapi_examples=_EXAMPLES)], request: Request, services: ServicesDep
) -> object:
    """Go on from a text, or from several, without a chat template."""
    plan = await to_thread.run_sync(_plan, services, body)
    return await respond(plan, _CompletionRenderer(), TextCompletion, request=request, services=services)


def _plan(services: Services, body: CompletionBody) -> CompletionPlan:
    body.check()
    target = find_target(services, body.model, body.quantization)
    requests = [
        GenerateRequest(base_model=target.base_model, adapter=target.adapter, **fields)
        for fields in body.as_requests()
    ]
    return CompletionPlan(body, target, requests, id=new_id("cmpl"), object="text_completion")
