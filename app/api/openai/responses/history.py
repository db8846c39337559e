"""The items of a conversation, turned into the turns that a chat template renders. Pure."""

from collections.abc import Sequence
from typing import Any

from app.api.openai.parameters import reject_parameter
from app.api.openai.responses.items import (
    FunctionCallItem,
    FunctionOutputItem,
    Item,
    MessageItem,
    ReasoningItem,
)
from app.core.chat.json_limits import parse_arguments
from app.core.chat.tools import ToolCall
from app.core.engine.messages import ChatMessage


def as_turns(instructions: str | None, items: Sequence[Item], *, sent_count: int) -> list[ChatMessage]:
    """The turns of instructions and items; the last `sent_count` items are those of the request's `input`.

    What the model thought, said and called without an output in between is one turn. System messages at the
    beginning are one as well: most chat templates know no second one. A call that was cut short is left out.
    Raises InvalidRequest for arguments that are no JSON object, and an output without its call.
    """
    turns = _Turns(instructions)
    first_sent = len(items) - sent_count
    for index, item in enumerate(items):
        turns.add(
            item, param=f"input.{index - first_sent}" if index >= first_sent else "previous_response_id"
        )
    if not turns.turns:
        reject_parameter("input", "it is empty, and there are no instructions")
    return turns.turns


class _Turns:
    def __init__(self, instructions: str | None) -> None:
        self.turns: list[ChatMessage] = []
        self._names: dict[str, str] = {}  # of functions, by the ids of their calls
        self._is_open = False  # whether the last turn is the assistant's, and more of it may follow
        if instructions:
            self.turns.append(ChatMessage(role="system", content=instructions))

    def add(self, item: Item, *, param: str) -> None:
        """Add an item, as a turn or as a part of the last one."""
        match item:
            case ReasoningItem():
                self._add_reasoning(item.text)
            case MessageItem(role="assistant"):
                self._answer(has_begun=False).content = item.text
            case MessageItem(role="user"):
                self._add_turn(ChatMessage(role="user", content=item.text))
            case MessageItem():
                self._add_system(item.text)
            case FunctionCallItem():
                self._add_call(item, param)
            case FunctionOutputItem():
                self._add_output(item, param)

    def _add_turn(self, turn: ChatMessage, *, is_open: bool = False) -> None:
        self.turns.append(turn)
        self._is_open = is_open

    def _add_system(self, text: str) -> None:
        if len(self.turns) == 1 and self.turns[0].role == "system":
            self.turns[0].content += f"\n\n{text}"
        else:
            self._add_turn(ChatMessage(role="system", content=text))

    def _add_reasoning(self, text: str) -> None:
        turn = self._answer(has_begun=False)
        turn.reasoning = f"{turn.reasoning}\n\n{text}" if turn.reasoning else text or None

    def _add_call(self, item: FunctionCallItem, param: str) -> None:
        if item.status == "incomplete":
            return
        call = ToolCall(id=item.call_id, name=item.name, arguments=_parse_arguments(item, param))
        self._names[item.call_id] = item.name
        self._answer(has_begun=True).tool_calls.append(call)

    def _add_output(self, item: FunctionOutputItem, param: str) -> None:
        name = self._names.get(item.call_id)
        if name is None:
            reject_parameter(f"{param}.call_id", f"no function call {item.call_id!r} comes before its output")
        turn = ChatMessage(role="tool", content=item.text, tool_call_id=item.call_id, name=name)
        self._add_turn(turn)

    def _answer(self, *, has_begun: bool) -> ChatMessage:
        """The assistant's turn to add to: the last one, or a new one.

        `has_begun`: whether that may be a turn which has said or called something already.
        """
        last = self.turns[-1] if self._is_open else None
        if last is None or ((last.content or last.tool_calls) and not has_begun):
            last = ChatMessage(role="assistant", content="")
            self._add_turn(last, is_open=True)
        return last


def _parse_arguments(item: FunctionCallItem, param: str) -> dict[str, Any]:
    try:
        return parse_arguments(item.arguments)
    except ValueError as error:
        reject_parameter(f"{param}.arguments", f"those of {item.call_id!r} are {error}")
