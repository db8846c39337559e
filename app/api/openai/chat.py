"""POST /v1/chat/completions."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Request, Response
from fastapi.openapi.models import Example
from pydantic import BaseModel, Field

from app.api.chat.calls import CalledFunction, MessageToolCall, as_tool_calls
from app.api.chat.conversation import ChatMessageParam, TextPart, as_turns
from app.api.chat.request_parts import MustBeNull, RequestPart, allow_only
from app.api.chat.template_variables import TemplateFields
from app.api.chat.tools import (
    MAX_FUNCTIONS,
    ChosenFunction,
    FunctionName,
    OfferedFunction,
    ToolFields,
    choose_tools,
)
from app.api.deps import Services, ServicesDep
from app.api.generate.response_format import ResponseFormat, output_schema
from app.api.generate.served import served_headers
from app.api.http.access.auth import CallerDep
from app.api.http.pacing import run_by_length
from app.api.openai.completion_response import CompletionPlan, OpenAICompletion, respond
from app.api.openai.logprobs import ChatLogprobs, chat_logprobs
from app.api.openai.models import find_target
from app.api.openai.parameters import SUBJECT_DESCRIPTION, CommonBody, reject_parameter
from app.core.engine.answers import GeneratedAnswer
from app.core.engine.messages import (
    Delta,
    Finished,
    GenerateRequest,
    ReasoningDelta,
    TokenDelta,
    ToolCallDelta,
    Tools,
)
from app.core.engine.sampling import MAX_NEW_TOKENS, MAX_TOP_LOGPROBS
from app.core.storage.ids import new_id

router = APIRouter(prefix="/chat")

FinishReason = Literal["stop", "length", "tool_calls", "function_call"]


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
    "tools": {
        "summary": "Functions that the model may call",
        "value": {
            "model": "support-bot",
            "messages": [{"role": "user", "content": "What is the weather in Rome?"}],
            "tools": [
                {
                    "type": "function",
                    "function": {
                        "name": "get_weather",
                        "description": "The weather in a city.",
                        "parameters": {
                            "type": "object",
                            "properties": {"city": {"type": "string"}},
                            "required": ["city"],
                        },
                    },
                }
            ],
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


class Prediction(RequestPart):
    """What an answer is expected to be."""

    type: Literal["content"] = Field(description="Only `content`.")
    content: str | Annotated[list[TextPart], Field(min_length=1)] = Field(
        description="Text, or parts of type `text`, which are put together."
    )

    @property
    def text(self) -> str:
        """The expected answer, as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatBody(CommonBody, ToolFields, TemplateFields):
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

    functions: list[OfferedFunction] | None = Field(
        None, max_length=MAX_FUNCTIONS, description="The older form of `tools`."
    )
    function_call: Literal["none", "auto"] | FunctionName | None = Field(
        None, description="The older form of `tool_choice`."
    )
    modalities: Annotated[Any, allow_only(["text"])] = Field(None, description="Only text.")
    audio: MustBeNull = Field(None, description="Only null.")
    web_search_options: MustBeNull = Field(None, description="Only null.")
    moderation: MustBeNull = Field(None, description="Only null.")
    verbosity: Annotated[Any, allow_only("medium")] = Field(None, description="Only `medium`.")

    prediction: Prediction | None = Field(
        None,
        description="A text that the answer will repeat in large part, such as a file with a change to make. "
        "Where it does, tokens come several at a time; the answer is the same.",
    )
    metadata: Any = Field(None, description="Accepted; changes nothing.")
    store: Any = Field(None, description="Accepted; nothing is stored.")
    service_tier: Any = Field(None, description="Accepted; changes nothing.")
    safety_identifier: Any = Field(None, description=f"As `user`. {SUBJECT_DESCRIPTION}")
    prompt_cache_key: Any = Field(None, description=f"As `user`. {SUBJECT_DESCRIPTION}")
    prompt_cache_options: Any = Field(None, description="Accepted; changes nothing.")
    prompt_cache_retention: Any = Field(None, description="Accepted; changes nothing.")

    def check(self) -> None:
        """Raise InvalidRequest for parameters that do not go together."""
        super().check()
        if self.top_logprobs and not self.logprobs:
            reject_parameter("top_logprobs", "it needs `logprobs`")
        if self.functions and self.tools:
            reject_parameter("functions", "not together with `tools`")

    @property
    def calls_functions(self) -> bool:
        """Whether a call is asked for in its older form."""
        return bool(self.functions)

    def find_tools(self) -> Tools | None:
        """The functions of the engine's request. Raises InvalidRequest for those that do not go together."""
        if self.tools or not (self.functions or self.function_call):
            return super().find_tools()
        choice = self.function_call
        return choose_tools(
            self.functions or [],
            ChosenFunction(type="function", function=choice) if isinstance(choice, FunctionName) else choice,
            is_parallel=False,
            name_param="functions.{}.name",
            choice_param="function_call",
        )

    def as_request(self) -> dict[str, Any]:
        """The fields of the engine's request, without the model."""
        most = self.max_completion_tokens or self.max_tokens or MAX_NEW_TOKENS
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return {
            "messages": as_turns(self.messages),
            "sampling": self.sampling(max_new_tokens=most, logprobs=logprobs),
            "output_schema": output_schema(self.response_format),
            "tools": self.find_tools(),
            "template_variables": self.find_variables(),
            "prediction": self.prediction.text if self.prediction else None,
        }


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
    function_call: CalledFunction | None = Field(
        None, exclude_if=_is_none, description="With `functions`: the function to call, if any."
    )


class ChatChoice(BaseModel):
    """One answer."""

    index: int = Field(description="Counts the answers from 0.")
    message: AssistantMessage = Field(description="The answer.")
    logprobs: ChatLogprobs | None = Field(description="With `logprobs`: its tokens.")
    finish_reason: FinishReason = Field(
        description="`length`: no more tokens were wanted or fit. `tool_calls`: functions are to be called; "
        "with `functions` that is `function_call`."
    )


class ChatCompletion(OpenAICompletion):
    """The answers to a conversation."""

    object: Literal["chat.completion"] = Field("chat.completion", description="Always `chat.completion`.")
    choices: list[ChatChoice] = Field(description="The answers.")


class _ChatRenderer:
    def __init__(self, *, calls_functions: bool) -> None:
        self._calls_functions = calls_functions

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
                if self._calls_functions:
                    return _choice(index, {"function_call": _call_delta(reply)["function"]})
                return _choice(index, {"tool_calls": [_call_delta(reply)]})
        return None

    def end(self, index: int, finished: Finished) -> dict[str, Any]:
        return _choice(index, {}, finish_reason=self._finish_reason(finished))

    def whole(self, index: int, answer: GeneratedAnswer) -> ChatChoice:
        return ChatChoice(
            index=index,
            message=self._message(answer),
            logprobs=chat_logprobs(answer.tokens),
            finish_reason=self._finish_reason(answer.finished),
        )

    def _message(self, answer: GeneratedAnswer) -> AssistantMessage:
        calls = as_tool_calls(answer.tool_calls)
        message = AssistantMessage(
            content=answer.text if answer.text or not calls else None, reasoning_content=answer.reasoning
        )
        if calls and self._calls_functions:
            message.function_call = calls[0].function
        else:
            message.tool_calls = calls
        return message

    def _finish_reason(self, finished: Finished) -> FinishReason:
        if finished.finish_reason == "tool_calls" and self._calls_functions:
            return "function_call"
        return finished.finish_reason


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
    body: Annotated[ChatBody, Body(openapi_examples=_EXAMPLES)],
    request: Request,
    response: Response,
    services: ServicesDep,
    caller: CallerDep,
) -> object:
    """Go on with a conversation, rendered with the model's chat template."""
    plan = await _plan(services, body)
    response.headers.update(served_headers(plan.target))
    return await respond(
        plan,
        _ChatRenderer(calls_functions=body.calls_functions),
        ChatCompletion,
        request=request,
        services=services,
        caller=caller,
    )


async def _plan(services: Services, body: ChatBody) -> CompletionPlan:
    body.check()
    target = await find_target(services, body.model, body.quantization, subject=body.subject)
    fields = await run_by_length(body.as_request, len(body.messages))
    request = GenerateRequest(base_model=target.base_model, adapter=target.adapter, **fields)
    return CompletionPlan(body, target, [request], id=new_id("chatcmpl"), object="chat.completion.chunk")
