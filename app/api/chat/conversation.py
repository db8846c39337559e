"""The messages of a request, turned into the turns that a chat template renders."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NoReturn

from pydantic import Field, model_validator

from app.api.chat.request_parts import MustBeNull, RequestPart
from app.core.chat.json_limits import check_levels, parse_arguments
from app.core.chat.tools import ToolCall
from app.core.engine.messages import ChatMessage
from app.core.errors import InvalidRequest

# What other services' answers carry besides the text, and what clients add to an answer (openai's `parsed`).
_ANSWER_FIELDS = frozenset(
    {
        "annotations",
        "citations",
        "images",
        "parsed",
        "provider_specific_fields",
        "reasoning_details",
        "thinking_blocks",
    }
)


# OpenAI's other kinds of parts, and vLLM's.
_OTHER_PARTS = {
    "image_url": "image",
    "input_image": "image",
    "input_audio": "audio",
    "audio_url": "audio",
    "video_url": "video",
    "file": "file",
    "input_file": "file",
}


class TextPart(RequestPart):
    """A piece of a message."""

    ignored_fields = frozenset({"annotations"})
    type: Literal["text"] = Field(description="Text is all that is understood.")
    text: str = Field(description="The text.")

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_parts(cls, content: Any) -> Any:
        kind = content.get("type") if isinstance(content, dict) else None
        if isinstance(kind, str) and kind in _OTHER_PARTS:
            raise ValueError(f"{_OTHER_PARTS[kind]} parts are not supported")
        return content


class CalledFunctionParam(RequestPart):
    """What an assistant's turn has called."""

    ignored_fields = frozenset({"parsed_arguments"})
    name: str = Field(min_length=1, max_length=256, description="The function's name.")
    arguments: str | dict[str, Any] | None = Field(
        None, description="Its arguments: a JSON object, as text or as it is."
    )


class ToolCallParam(RequestPart):
    """A call of a function that an assistant's turn made."""

    ignored_fields = frozenset({"index", "provider_specific_fields", "extra_content"})
    id: str | None = Field(None, max_length=256, description="What the result of the call refers to.")
    type: Literal["function"] = Field("function", description="Only functions.")
    function: CalledFunctionParam = Field(description="What was called.")


class ChatMessageParam(RequestPart):
    """One turn. What an answer of this API or of another one carries may be sent back as it came."""

    ignored_fields = _ANSWER_FIELDS
    role: Literal["system", "developer", "user", "assistant", "tool", "function"] = Field(
        description="Who speaks; `developer` is another word for `system`, `function` for `tool`."
    )
    content: str | Annotated[list[TextPart], Field(min_length=1)] | None = Field(
        None,
        description="What is said: text, or parts of type `text`, which are put together; null where an "
        "assistant's turn only calls functions. Of a tool's turn: the result.",
    )
    name: str | None = Field(
        None,
        description="Of a tool's turn: the function's name. Otherwise accepted; templates do not show it.",
    )
    refusal: MustBeNull = Field(None, description="Only null.")
    audio: MustBeNull = Field(None, description="Only null.")
    tool_calls: list[ToolCallParam] | None = Field(
        None, description="The functions that an assistant's turn called."
    )
    tool_call_id: str | None = Field(None, description="Of a tool's turn: which call it is the result of.")
    function_call: CalledFunctionParam | None = Field(None, description="The older form of one call.")
    reasoning_content: str | None = Field(
        None, description="Not OpenAI's. What an assistant's turn thought before it answered."
    )
    reasoning: Any = Field(None, description="Another name of `reasoning_content`, where it is a text.")

    @property
    def text(self) -> str:
        """What is said, as one text."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""

    @property
    def thoughts(self) -> str | None:
        """What an assistant's turn thought; None: nothing."""
        other = self.reasoning if isinstance(self.reasoning, str) else None
        return (self.reasoning_content or other or None) if self.role == "assistant" else None


def as_turns(messages: Sequence[ChatMessageParam]) -> list[ChatMessage]:
    """The messages as the engine takes them.

    Raises InvalidRequest where a turn has what its role can't have, where arguments are no JSON object, and
    where a result belongs to no call before it.
    """
    turns: list[ChatMessage] = []
    names: dict[str, str] = {}  # of the functions called so far, by the id of the call
    for index, message in enumerate(messages):
        place = f"messages.{index}"
        _check_fields(message, place)
        calls = _calls(message, place)
        names |= {call.id: call.name for call in calls if call.id is not None}
        if message.role in ("tool", "function"):
            turns.append(_result(message, place, names))
            continue
        role = "system" if message.role == "developer" else message.role
        turns.append(
            ChatMessage(
                role=role,
                content=message.text,
                tool_calls=calls,
                reasoning=message.thoughts,
            )
        )
    return turns


def _check_fields(message: ChatMessageParam, place: str) -> None:
    has_calls = bool(message.tool_calls or message.function_call)
    if has_calls and message.role != "assistant":
        name = "tool_calls" if message.tool_calls else "function_call"
        _refuse(f"{place}.{name}", "only an assistant's turn calls functions")
    if message.tool_calls and message.function_call:
        _refuse(f"{place}.function_call", "not together with `tool_calls`")
    if message.content is None and not has_calls:
        _refuse(f"{place}.content", "it is missing; only an assistant's turn that calls functions has none")


def _calls(message: ChatMessageParam, place: str) -> list[ToolCall]:
    if message.function_call is not None:
        function = message.function_call
        arguments = _arguments(function, f"{place}.function_call")
        # The result refers to the function's name, so that is the id, too.
        return [ToolCall(id=function.name, name=function.name, arguments=arguments)]
    return [
        ToolCall(
            id=call.id,
            name=call.function.name,
            arguments=_arguments(call.function, f"{place}.tool_calls.{number}.function"),
        )
        for number, call in enumerate(message.tool_calls or [])
    ]


def _arguments(function: CalledFunctionParam, place: str) -> dict[str, Any]:
    try:
        if isinstance(function.arguments, dict):
            check_levels(function.arguments)
            return function.arguments
        return parse_arguments(function.arguments or "")
    except ValueError as error:
        _refuse(f"{place}.arguments", f"those of {function.name!r} are {error}")


def _result(message: ChatMessageParam, place: str, names: Mapping[str, str]) -> ChatMessage:
    """The turn of a call's result."""
    field, call_id = (
        ("tool_call_id", message.tool_call_id) if message.role == "tool" else ("name", message.name)
    )
    if call_id is None:
        _refuse(f"{place}.{field}", "it is missing: a result names the call that it belongs to")
    if call_id not in names:
        _refuse(f"{place}.{field}", f"there is no call {call_id!r} in the turns before")
    return ChatMessage(role="tool", content=message.text, tool_call_id=call_id, name=names[call_id])


def _refuse(param: str, problem: str) -> NoReturn:
    raise InvalidRequest(f"{param}: {problem}.", param=param)
