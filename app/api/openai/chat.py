"""POST /v1/chat/completions."""

from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Body, Request
from fastapi.openapi.models import Example
from pydantic import BaseModel, Field

from app.api.deps import Services, ServicesDep
from app.api.generate.answers import GeneratedAnswer
from app.api.generate.response_format import ResponseFormat, output_schema
from app.api.openai.completion_response import CompletionPlan, OpenAICompletion, respond
from app.api.openai.conversation import ChatMessageParam
from app.api.openai.logprobs import ChatLogprobs, chat_logprobs
from app.api.openai.models import find_target
from app.api.openai.parameters import (
    CommonBody,
    MustBeEmpty,
    MustBeNull,
    allow_only,
    reject_parameter,
)
from app.core.engine.messages import (
    Delta,
    Finished,
    GenerateRequest,
    ReasoningDelta,
    TokenDelta,
    ToolCallDelta,
)
from app.core.engine.sampling import MAX_NEW_TOKENS, MAX_TOP_LOGPROBS
from app.core.storage.ids import new_id

router = APIRouter(prefix="/chat")


def _is_none(value: object) -> bool:
    return value is None


_EXAMPLES: dict[str, Example] = {
    "chat": {
        "summary": "Ask an adapter",
        "value": {
            "model": "support-bot",
            "messages": [{"role": "user", "content": "How do I cancel a job?"}],
            "max_completion_tokens": 64,
        },
    },
    "schema": {
        "summary": "JSON that keeps to a schema",
        "value": {
            "model": "support-bot",
            "messages": [{"role": "user", "content": "Name a city."}],
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": "city",
                    "strict": True,
                    "schema": {
                        "type": "object",
                        "properties": {"city": {"type": "string"}},
                        "required": ["city"],
                        "additionalProperties": False,
                    },
                },
            },
        },
    },
}


class ChatBody(CommonBody):
    """A conversation to go on with."""

    messages: list[ChatMessageParam] = Field(min_length=1, description="The conversation so far.")
    max_completion_tokens: int | None = Field(
        None, ge=1, le=MAX_NEW_TOKENS, description="Most tokens to make; default: as many as fit."
    )
    max_tokens: int | None = Field(
        None, ge=1, le=MAX_NEW_TOKENS, description="The older name of `max_completion_tokens`."
    )
    logprobs: bool | None = Field(None, description="Say the log-probability of each token made.")
    top_logprobs: int | None = Field(
        None, ge=0, le=MAX_TOP_LOGPROBS, description="And of so many of the likeliest. Needs `logprobs`."
    )
    response_format: ResponseFormat | None = Field(
        None, description="What the answer must look like: text, JSON, or JSON that keeps to a schema."
    )

    tools: MustBeEmpty = Field(None, description="Only null or empty: the engine calls no tools.")
    tool_choice: Annotated[Any, allow_only("none", "auto")] = Field(
        None, description="Only `none` or `auto`."
    )
    functions: MustBeEmpty = Field(None, description="Only null or empty.")
    function_call: Annotated[Any, allow_only("none", "auto")] = Field(
        None, description="Only `none` or `auto`."
    )
    modalities: Annotated[Any, allow_only(["text"])] = Field(None, description="Only text.")
    audio: MustBeNull = Field(None, description="Only null.")
    web_search_options: MustBeNull = Field(None, description="Only null.")
    moderation: MustBeNull = Field(None, description="Only null.")
    reasoning_effort: Annotated[Any, allow_only("none")] = Field(None, description="Only `none`.")
    verbosity: Annotated[Any, allow_only("medium")] = Field(None, description="Only `medium`.")

    parallel_tool_calls: Any = Field(None, description="Accepted; changes nothing.")
    prediction: Any = Field(None, description="Accepted; changes nothing.")
    metadata: Any = Field(None, description="Accepted; changes nothing.")
    store: Any = Field(None, description="Accepted; nothing is stored.")
    service_tier: Any = Field(None, description="Accepted; changes nothing.")
    safety_identifier: Any = Field(None, description="Accepted; changes nothing.")
    prompt_cache_key: Any = Field(None, description="Accepted; changes nothing.")
    prompt_cache_options: Any = Field(None, description="Accepted; changes nothing.")
    prompt_cache_retention: Any = Field(None, description="Accepted; changes nothing.")

    def check(self) -> None:
        """Raise InvalidRequest for parameters that do not go together."""
        super().check()
        if self.top_logprobs and not self.logprobs:
            reject_parameter("top_logprobs", "it needs `logprobs`")

    def as_request(self) -> dict[str, Any]:
        """The fields of the engine's request, without the model."""
        most = self.max_completion_tokens or self.max_tokens or MAX_NEW_TOKENS
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return {
            "messages": [message.as_turn() for message in self.messages],
            "sampling": self.sampling(max_new_tokens=most, logprobs=logprobs),
            "output_schema": output_schema(self.response_format),
        }


class CalledFunction(BaseModel):
    """A function's name, and what it is called with."""

    name: str = Field(description="The function's name.")
    arguments: str = Field(description="Its arguments, as JSON. Check them: a model may err.")


class MessageToolCall(BaseModel):
    """A call of a function."""

    id: str = Field(description="Names the call; its result refers to it.")
    type: Literal["function"] = Field("function", description="Always `function`.")
    function: CalledFunction = Field(description="What is called.")


class AssistantMessage(BaseModel):
    """What was answered."""

    role: Literal["assistant"] = Field("assistant", description="Always `assistant`.")
    content: str | None = Field(description="The answer; null where there are only calls.")
    refusal: None = Field(None, description="Always null.")
    reasoning_content: str | None = Field(
        None,
        exclude_if=_is_none,
        description="Not OpenAI's. What was thought before the answer, if anything.",
    )
    tool_calls: list[MessageToolCall] | None = Field(
        None, exclude_if=_is_none, description="The functions to call, if any."
    )


class ChatChoice(BaseModel):
    """One answer."""

    index: int = Field(description="Counts the answers from 0.")
    message: AssistantMessage = Field(description="The answer.")
    logprobs: ChatLogprobs | None = Field(description="With `logprobs`: its tokens.")
    finish_reason: Literal["stop", "length", "tool_calls"] = Field(
        description="`length`: no more tokens were wanted or fit. `tool_calls`: functions are to be called."
    )


class ChatCompletion(OpenAICompletion):
    """The answers to a conversation."""

    object: Literal["chat.completion"] = Field("chat.completion", description="Always `chat.completion`.")
    choices: list[ChatChoice] = Field(description="The answers.")


class _ChatRenderer:
    def first(self, index: int) -> dict[str, Any]:
        return _choice(index, {"role": "assistant", "content": "", "refusal": None})

    def delta(self, index: int, reply: Delta) -> dict[str, Any] | None:
        match reply:
            case TokenDelta():
                logprobs = chat_logprobs(reply.tokens)
                content = {"content": reply.text}
                return _choice(index, content, logprobs=logprobs.model_dump() if logprobs else None)
            case ReasoningDelta():
                return _choice(index, {"reasoning_content": reply.text})
            case ToolCallDelta(is_withdrawn=False):
                return _choice(index, {"tool_calls": [_call_delta(reply)]})
        return None

    def end(self, index: int, finished: Finished) -> dict[str, Any]:
        return _choice(index, {}, finish_reason=finished.finish_reason)

    def whole(self, index: int, answer: GeneratedAnswer) -> ChatChoice:
        return ChatChoice(
            index=index,
            message=_message(answer),
            logprobs=chat_logprobs(answer.tokens),
            finish_reason=answer.finished.finish_reason,
        )


def _message(answer: GeneratedAnswer) -> AssistantMessage:
    calls = [
        MessageToolCall(id=call.id, function=CalledFunction(name=call.name, arguments=call.arguments))
        for call in answer.tool_calls
    ]
    return AssistantMessage(
        content=answer.text if answer.text or not calls else None,
        reasoning_content=answer.reasoning,
        tool_calls=calls or None,
    )


def _call_delta(delta: ToolCallDelta) -> dict[str, Any]:
    function = {"arguments": delta.arguments}
    if delta.id is None:
        return {"index": delta.index, "function": function}
    return {
        "index": delta.index,
        "id": delta.id,
        "type": "function",
        "function": {"name": delta.name, **function},
    }


def _choice(
    index: int, delta: dict[str, Any], *, logprobs: object = None, finish_reason: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


@router.post(
    "/completions",
    response_model=ChatCompletion,
    summary="Chat",
    responses={
        200: {
            "description": "The answers. With `stream`: `chat.completion.chunk` after chunk, then `[DONE]`, "
            "or `error` where it broke off.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    },
)
async def create_chat_completion(
    body: Annotated[ChatBody, Body(openapi_examples=_EXAMPLES)], request: Request, services: ServicesDep
) -> object:
    """Go on with a conversation, rendered with the model's chat template."""
    plan = await to_thread.run_sync(_plan, services, body)
    return await respond(plan, _ChatRenderer(), ChatCompletion, request=request, services=services)


def _plan(services: Services, body: ChatBody) -> CompletionPlan:
    body.check()
    target = find_target(services, body.model, body.quantization)
    request = GenerateRequest(base_model=target.base_model, adapter=target.adapter, **body.as_request())
    return CompletionPlan(body, target, [request], id=new_id("chatcmpl"), object="chat.completion.chunk")
