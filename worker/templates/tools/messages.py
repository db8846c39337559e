"""Messages as a chat template reads them: results with their calls, one call a turn, reasoning in place."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from app.core.chat.tools import FunctionTool, ToolCall
from app.core.datasets.rows import Message
from app.core.errors import InvalidRequest

_SHORT_ID = 9


class Turn(Protocol):
    """A message of a conversation, of a dataset's row or of a request."""

    @property
    def role(self) -> str: ...

    @property
    def content(self) -> str: ...

    @property
    def tool_calls(self) -> Sequence[ToolCall]: ...

    @property
    def tool_call_id(self) -> str | None: ...

    @property
    def name(self) -> str | None: ...

    @property
    def reasoning(self) -> str | None: ...


@dataclass(frozen=True)
class MessageForm:
    """How a chat template reads functions, calls and reasoning.

    `lists_functions`, `writes_calls`: whether what it renders has the functions; the calls and their results.
    `arguments_as_text`: whether it writes the arguments as they are, so that they must be JSON text.
    `silent_content`: the content of a turn of calls alone. `writes_calls_beside_text`: whether a turn with a
    text has its calls. `has_one_call`: whether it writes one call of a turn at most. `needs_short_ids`:
    whether the ids of calls must be nine letters or digits. `reasoning_key`: the key of a message that it
    reads thoughts from; None where they are a part of the content, between the tags of `thought_tag`.
    """

    lists_functions: bool = True
    writes_calls: bool = True
    arguments_as_text: bool = False
    silent_content: str | None = ""
    writes_calls_beside_text: bool = True
    has_one_call: bool = False
    needs_short_ids: bool = False
    reasoning_key: str | None = None
    thought_tag: str = "think"


def adapt(turns: Sequence[Turn], form: MessageForm) -> tuple[Message, ...]:
    """The messages with what the template needs to know of them; adapted ones stay as they are.

    Results have the id and the name of their call; calls are alone in a turn where the template writes one;
    thoughts are in the content where the template reads them there. Raises InvalidRequest where calls can't
    be told apart into turns.
    """
    messages = [_as_message(turn) for turn in turns]
    if any(message.tool_calls or message.role == "tool" for message in messages):
        messages = _match_results(messages, form.needs_short_ids)
        messages = _one_call_a_turn(messages) if form.has_one_call else messages
    return tuple(_with_reasoning(message, form) for message in messages)


def uses_functions(turns: Sequence[Turn], tools: Sequence[FunctionTool]) -> bool:
    """Whether a conversation lists functions, calls one, or has a result."""
    return bool(tools) or any(turn.role == "tool" or turn.tool_calls for turn in turns)


def as_dicts(messages: Sequence[Message], form: MessageForm) -> list[dict[str, Any]]:
    """The messages as dicts, which templates expect."""
    return [_as_dict(message, form) for message in messages]


def as_template_tools(tools: Sequence[FunctionTool]) -> list[Any] | None:
    """The functions as templates expect them; None where there is none."""
    return [tool.as_template_tool() for tool in tools] or None


def _as_message(turn: Turn) -> Message:
    if isinstance(turn, Message):
        return turn
    return Message(
        turn.role,
        turn.content,
        tool_calls=tuple(turn.tool_calls),
        tool_call_id=turn.tool_call_id,
        name=turn.name,
        reasoning=turn.reasoning,
    )


def _as_dict(message: Message, form: MessageForm) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = [_call_as_dict(call, form) for call in message.tool_calls]
        if not message.content or not form.writes_calls_beside_text:
            turn["content"] = form.silent_content
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        turn["name"] = message.name
    if message.reasoning is not None:
        turn[form.reasoning_key or "reasoning_content"] = message.reasoning
    return turn


def _call_as_dict(call: ToolCall, form: MessageForm) -> dict[str, Any]:
    found = call.as_template_call()
    if form.arguments_as_text:
        found["function"]["arguments"] = json.dumps(call.arguments, ensure_ascii=False)
    return found


def _match_results(messages: Sequence[Message], needs_short_ids: bool) -> list[Message]:
    """The messages, in which every result has the id and the name of its call where these are known."""
    matched: list[Message] = []
    waiting: list[tuple[str | None, ToolCall]] = []  # the id that the conversation has, and the call
    for number, message in enumerate(messages):
        if message.tool_calls:
            calls = tuple(
                _with_short_id(call, f"{number}.{place}") if needs_short_ids else call
                for place, call in enumerate(message.tool_calls)
            )
            waiting = [(old.id, call) for old, call in zip(message.tool_calls, calls, strict=True)]
            message = replace(message, tool_calls=calls)
        elif message.role == "tool":
            message = _match_result(message, waiting, needs_short_ids)
        matched.append(message)
    return matched


def _match_result(
    result: Message, waiting: list[tuple[str | None, ToolCall]], needs_short_ids: bool
) -> Message:
    """The result with the id and the name of its call, which is taken from the waiting ones."""
    wanted = result.tool_call_id
    place = next(
        (place for place, (call_id, _call) in enumerate(waiting) if call_id == wanted is not None), 0
    )
    if not waiting:
        short = _short_id(wanted or "") if needs_short_ids else wanted
        return replace(result, tool_call_id=short)
    _call_id, call = waiting.pop(place)
    return replace(result, tool_call_id=call.id or wanted, name=result.name or call.name)


def _with_short_id(call: ToolCall, place: str) -> ToolCall:
    return call.model_copy(update={"id": _short_id(call.id or place)})


def _short_id(call_id: str) -> str:
    """Nine letters or digits for an id: itself, or some of its digest."""
    if len(call_id) == _SHORT_ID and call_id.isalnum() and call_id.isascii():
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:_SHORT_ID]


def _one_call_a_turn(messages: Sequence[Message]) -> list[Message]:
    """The messages, in which calls that were made at once follow each other, each with its result."""
    split: list[Message] = []
    place = 0
    while place < len(messages):
        message, place = messages[place], place + 1
        if len(message.tool_calls) < 2:
            split.append(message)
            continue
        results = []
        while place < len(messages) and messages[place].role == "tool":
            results.append(messages[place])
            place += 1
        split += _pair(message, results, place - len(results))
    return split


def _pair(message: Message, results: list[Message], number: int) -> list[Message]:
    """A turn of each call, and its result after it."""
    if len(results) != len(message.tool_calls):
        raise InvalidRequest(
            f"Message {number} makes {len(message.tool_calls)} calls at once, and the chat template writes "
            "one call in a turn.",
            hint="Make one turn of each call, with its result after it.",
        )
    pairs: list[Message] = []
    for call in message.tool_calls:
        by_id = [one for one in results if one.tool_call_id == call.id is not None]
        result = (by_id or results)[0]
        results = [one for one in results if one is not result]
        turn = replace(message, tool_calls=(call,))
        pairs += [replace(turn, content="", reasoning=None) if pairs else turn, result]
    return pairs


def _with_reasoning(message: Message, form: MessageForm) -> Message:
    if message.reasoning is None or form.reasoning_key is not None:
        return message
    tag = form.thought_tag
    after = f"\n\n{message.content}" if message.content else "\n"
    return replace(message, content=f"<{tag}>\n{message.reasoning}\n</{tag}>{after}", reasoning=None)
