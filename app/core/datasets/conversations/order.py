"""The order of the turns of a conversation, and which call a result is of. Knows no formats and no files."""

from collections.abc import Sequence
from dataclasses import replace

from app.core.chat.tools import FunctionTool
from app.core.datasets.conversations.functions import checked_calls
from app.core.datasets.problems import BadRow, quoted, shown
from app.core.datasets.rows import Message

# The role of a turn that is nothing but calls, until it has become a part of the assistant's turn.
CALLS = "calls"
_FOLLOWS = {"user": ("assistant",), "assistant": ("user",), "tool": ("tool", "assistant", "user")}
_FOLLOWS_CALLS = ("tool", "user")


def ordered(messages: Sequence[Message], tools: Sequence[FunctionTool]) -> list[Message]:
    """Returns messages in the order of a conversation, with turns of calls as a part of the assistant's.

    A system prompt may begin; user and assistant take turns, and results follow the turn whose calls they are
    of. Raises BadRow, also for a call of a function that is not among the tools.
    """
    turns = _join_calls(messages)
    _check_order([message.role for _number, message in turns], turns)
    joined: list[Message] = []
    for number, message in turns:
        if message.tool_calls:
            calls = checked_calls(message.tool_calls, tools, f"message {number}")
            message = replace(message, tool_calls=calls)
        joined.append(message)
    _check_results(turns)
    return joined


def _join_calls(messages: Sequence[Message]) -> list[tuple[int, Message]]:
    """Returns the messages, calls as a part of the assistant's turn before them, with their first numbers."""
    joined: list[tuple[int, Message]] = []
    for number, message in enumerate(messages, start=1):
        if message.role != CALLS:
            joined.append((number, message))
            continue
        first, last = joined[-1] if joined else (number, message)
        if joined and last.role == "assistant" and not _has_own_calls(messages[first - 1]):
            if last.weight != message.weight:
                raise BadRow(f"messages {first} and {number} are one turn and have different weights.")
            calls = (*last.tool_calls, *message.tool_calls)
            thoughts = [one.reasoning for one in (last, message) if one.reasoning]
            reasoning = "\n\n".join(thoughts) or None
            joined[-1] = first, replace(last, tool_calls=calls, reasoning=reasoning)
        else:
            joined.append((number, replace(message, role="assistant")))
    return joined


def _has_own_calls(message: Message) -> bool:
    return message.role != CALLS and bool(message.tool_calls)


def _check_order(roles: Sequence[str], turns: Sequence[tuple[int, Message]]) -> None:
    allowed: tuple[str, ...] = ("user",)
    for place, (number, message) in enumerate(turns):
        if place == 0 and message.role == "system":
            continue
        if message.role not in allowed:
            if message.role == "tool":
                raise BadRow(
                    f"message {number} is the result of a call, and the turn before it calls nothing."
                )
            raise BadRow(f"message {number} must be from the {_wanted(allowed)}, found {message.role!r}.")
        allowed = _FOLLOWS_CALLS if message.tool_calls else _FOLLOWS[message.role]
    if roles[-1] != "assistant":
        raise BadRow(f"the last message must be from the assistant, found {roles[-1]!r}.")
    if not any(message.weight for _number, message in turns if message.role == "assistant"):
        raise BadRow("every assistant message has the weight 0, so there is nothing to learn.")


def _wanted(allowed: Sequence[str]) -> str:
    return " or the ".join(allowed)


def _check_results(turns: Sequence[tuple[int, Message]]) -> None:
    """Raise BadRow for results that are of none of the calls before them, or of one that has a result."""
    calls: set[str] = set()
    left = 0
    for number, message in turns:
        if message.tool_calls:
            calls = {call.id for call in message.tool_calls if call.id is not None}
            left = len(message.tool_calls)
        if message.role != "tool":
            continue
        left -= 1
        if left < 0:
            raise BadRow(f"message {number} is one result more than the turn before it makes calls.")
        if message.tool_call_id is None or not calls:
            continue
        if message.tool_call_id not in calls:
            raise BadRow(
                f"message {number} is the result of {shown(message.tool_call_id)}, which is not among the "
                f"calls before it: {quoted(sorted(calls))}."
            )
