"""POST /v1/completions: continuations of one prompt or many, without a chat template."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Request, Response
from fastapi.openapi.models import Example
from pydantic import BaseModel, Field

from app.api.chat.request_parts import allow_only
from app.api.deps import Services, ServicesDep
from app.api.generate.response_format import ResponseFormat, output_schema
from app.api.generate.schemas import MAX_CHOICES
from app.api.generate.served import served_headers
from app.api.http.access.auth import CallerDep
from app.api.http.pacing import run_by_length
from app.api.openai.completion_response import CompletionPlan, OpenAICompletion, respond
from app.api.openai.logprobs import CompletionLogprobs, CompletionLogprobsWriter
from app.api.openai.models import find_target
from app.api.openai.parameters import CommonBody, Tokens, as_prompts, count_parts, reject_parameter
from app.core.adapters.targets import Target
from app.core.engine.answers import GeneratedAnswer
from app.core.engine.messages import Delta, Finished, GenerateRequest, PromptDelta, TokenDelta
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
        None,
        ge=0,
        le=MAX_NEW_TOKENS,
        description=f"Most tokens to make; default {_DEFAULT_MAX_TOKENS}. 0: the prompt is only read.",
    )
    logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_TOP_LOGPROBS,
        description="Say the log-probability of each token made, and of so many of the likeliest; with "
        "`echo`, those of the prompt, too.",
    )
    response_format: ResponseFormat | None = Field(
        None, description="Not OpenAI's here. What the answer must look like, as in chat."
    )
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES, description="Only what `n` is.")
    echo: bool | None = Field(None, description="Put the prompt in front of each answer.")
    suffix: Annotated[Any, allow_only("")] = Field(None, description="Only null or empty.")

    def check(self) -> None:
        """Raise InvalidRequest for parameters that do not go together."""
        super().check()
        if self.best_of is not None and self.best_of != self.choice_count:
            reject_parameter("best_of", "not supported here, but for the value of `n`; leave it out")

    def as_requests(self) -> list[dict[str, Any]]:
        """The fields of the engine's request for each prompt, without the model."""
        max_tokens = _DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        sampling = self.sampling(max_new_tokens=max(1, max_tokens), logprobs=self.logprobs)
        common = {
            "sampling": sampling,
            "output_schema": output_schema(self.response_format),
            "reads_only": max_tokens == 0,
        }
        return [prompt | common | self._scores(prompt) for prompt in as_prompts(self.prompt)]

    def _scores(self, prompt: dict[str, Any]) -> dict[str, int]:
        """What is wanted of a prompt's tokens. The text of one that is given as tokens is made of them."""
        if self.echo and (self.logprobs is not None or "prompt_ids" in prompt):
            return {"prompt_logprobs": self.logprobs or 0}
        return {}


class CompletionChoice(BaseModel):
    """One answer."""

    index: int = Field(description="Counts the answers from 0: all of the first prompt, then the next one's.")
    text: str = Field(description="The answer; with `echo`, after the prompt.")
    logprobs: CompletionLogprobs | None = Field(description="With `logprobs`: its tokens.")
    finish_reason: Literal["stop", "length", "tool_calls"] = Field(
        description="`length`: no more tokens were wanted or fit."
    )


class TextCompletion(OpenAICompletion):
    """How texts go on."""

    object: Literal["text_completion"] = Field("text_completion", description="Always `text_completion`.")
    choices: list[CompletionChoice] = Field(description="The answers.")


class _CompletionRenderer:
    """`prompts`: the request of each choice where its prompt is echoed, else none."""

    def __init__(self, prompts: Sequence[GenerateRequest], *, has_logprobs: bool) -> None:
        self._prompts = prompts
        self._has_logprobs = has_logprobs
        self._writers: dict[int, CompletionLogprobsWriter] = {}

    def first(self, index: int) -> dict[str, Any] | None:
        self._writers[index] = CompletionLogprobsWriter()
        if not self._prompts or self._prompts[index].prompt_logprobs is not None:
            return None
        return _choice(index, self._prompts[index].prompt or "")

    def delta(self, index: int, reply: Delta) -> dict[str, Any] | None:
        if isinstance(reply, PromptDelta):
            text, logprobs = self._echo(index, reply, self._writers[index])
            return _choice(index, text, logprobs=logprobs.model_dump() if logprobs else None)
        if not isinstance(reply, TokenDelta):
            return None
        logprobs = self._writers[index].write(reply.tokens)
        return _choice(index, reply.text, logprobs=logprobs.model_dump() if logprobs else None)

    def end(self, index: int, finished: Finished) -> dict[str, Any]:
        return _choice(index, "", finish_reason=finished.finish_reason)

    def whole(self, index: int, answer: GeneratedAnswer) -> CompletionChoice:
        writer = CompletionLogprobsWriter()
        text, echoed = self._echo(index, answer.prompt, writer)
        made = writer.write(answer.tokens)
        return CompletionChoice(
            index=index,
            text=text + answer.text,
            logprobs=echoed + made if echoed and made else echoed or made,
            finish_reason=answer.finished.finish_reason,
        )

    def _echo(
        self, index: int, prompt: PromptDelta | None, writer: CompletionLogprobsWriter
    ) -> tuple[str, CompletionLogprobs | None]:
        """The text in front of a choice, and its log-probabilities."""
        if not self._prompts:
            return "", None
        text = self._prompts[index].prompt
        if prompt is None:
            return text or "", None
        if text is None:
            parts = [prompt.first.bytes, *(token.bytes for token in prompt.tokens)]
            text = b"".join(map(bytes, parts)).decode(errors="replace")
        return text, writer.write_prompt(prompt, text) if self._has_logprobs else None


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
    body: Annotated[CompletionBody, Body(openapi_examples=_EXAMPLES)],
    request: Request,
    response: Response,
    services: ServicesDep,
    caller: CallerDep,
) -> object:
    """Go on from a text, or from several, without a chat template."""
    plan = await _plan(services, body)
    response.headers.update(served_headers(plan.target))
    renderer = _CompletionRenderer(plan.requests if body.echo else (), has_logprobs=body.logprobs is not None)
    return await respond(plan, renderer, TextCompletion, request=request, services=services, caller=caller)


async def _plan(services: Services, body: CompletionBody) -> CompletionPlan:
    body.check()
    target = await find_target(services, body.model, body.quantization, subject=body.subject)
    requests = await run_by_length(lambda: _make_requests(body, target), count_parts(body.prompt))
    return CompletionPlan(body, target, requests, id=new_id("cmpl"), object="text_completion")


def _make_requests(body: CompletionBody, target: Target) -> list[GenerateRequest]:
    return [
        GenerateRequest(base_model=target.base_model, adapter=target.adapter, **fields)
        for fields in body.as_requests()
    ]
