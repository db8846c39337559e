"""Turns the messages of a record into a conversation. Knows no formats and no files.

Every error is for the person who made the file.
"""

from collections.abc import Mapping, Sequence

from app.core.chat.tools import FunctionTool
from app.core.datasets.conversations.functions import functions_of
from app.core.datasets.conversations.messages import parse_message
from app.core.datasets.conversations.order import CALLS, ordered
from app.core.datasets.field_names import Meaning, is_turn_flag
from app.core.datasets.problems import BadRow, quoted
from app.core.datasets.rows import Conversation, Message
from app.core.datasets.unused_fields import RowFields, holds_value

# The roles of turns to which the assistant replies.
ASKING = ("user", "tool")


def parse_conversation(
    turns: Mapping[str, list[object]],
    fields: RowFields,
    *,
    system: str | None = None,
    tools: tuple[FunctionTool, ...] = (),
) -> Conversation:
    """Returns the messages of a conversation in which user and assistant take turns, with calls of functions.

    `turns` are one after the other in the named columns; `system` is a system prompt that is not among them,
    `tools` are the functions that may be called. Raises BadRow.
    """
    placed = _place(turns)
    return _arrange(placed, _read(placed, fields), fields, system, tools)


def parse_exchange(
    prompt: Mapping[str, list[object]],
    answer: Mapping[str, list[object]],
    fields: RowFields,
    *,
    system: str | None = None,
    tools: tuple[FunctionTool, ...] = (),
) -> tuple[Conversation, int]:
    """Returns a prompt and an answer to it as a conversation, and how many of its messages are the prompt.

    The prompt ends with a turn of the user or a function's result. Raises BadRow, also where every turn of
    the answer has the weight 0.
    """
    asked = _place(prompt)
    placed = [*asked, *_place(answer)]
    messages = _read(placed, fields)
    if (last := messages[len(asked) - 1].role) not in ASKING:
        found = "assistant" if last == CALLS else last
        raise BadRow(f"{quoted(prompt)} must end with a message from the user, found {found!r}.")
    # Turns of calls become a part of the assistant's; those that ask stay as they are.
    asking = sum(message.role in ASKING for message in messages[: len(asked)])
    whole = _arrange(placed, messages, fields, system, tools)
    border = [place for place, message in enumerate(whole.messages, start=1) if message.role in ASKING][
        asking - 1
    ]
    check_answer(whole.messages[border:])
    return whole, border


def check_answer(messages: Sequence[Message]) -> None:
    """Raise BadRow for an answer of which nothing is learned."""
    if not any(message.weight for message in messages if message.role == "assistant"):
        raise BadRow("every message of the answer has the weight 0, so there is nothing to learn.")


def _place(turns: Mapping[str, list[object]]) -> list[tuple[str, object]]:
    return [(column, turn) for column, listed in turns.items() for turn in listed]


def _read(placed: list[tuple[str, object]], fields: RowFields) -> list[Message]:
    return [
        parse_message(turn, number, column, fields) for number, (column, turn) in enumerate(placed, start=1)
    ]


def _arrange(
    placed: list[tuple[str, object]],
    messages: list[Message],
    fields: RowFields,
    system: str | None,
    tools: tuple[FunctionTool, ...],
) -> Conversation:
    """Returns the conversation that the messages of the turns are, in order."""
    tools = tools or _tools_of_system(placed[0][1], placed[0][0], fields)
    if any(not message.weight for message in messages if message.role not in ("assistant", CALLS)):
        _add_learned_questions(placed, messages, fields)
    messages = ordered(messages, tools)
    if system is not None:
        messages = _with_system(system, messages)
    # Hermes' datasets list the functions in the system prompt, and in a column as well.
    lists_tools = messages[0].role == "system" and "<tools>" in messages[0].content
    return Conversation(tuple(messages), () if lists_tools else tools)


def _tools_of_system(turn: object, column: str, fields: RowFields) -> tuple[FunctionTool, ...]:
    """Returns the functions in the system message, where Phi's datasets have them."""
    if not isinstance(turn, dict) or not holds_value(turn.get("tools")):
        return ()
    path = f"{column}[].tools"
    fields.found.pop(path, None)
    return functions_of(turn["tools"], path, fields)


def _add_learned_questions(
    placed: list[tuple[str, object]], messages: list[Message], fields: RowFields
) -> None:
    """Add the flags of users' turns that are to be learned in a row where others are not.

    A row is learned whole, or its assistant's turns alone.
    """
    for (column, turn), message in zip(placed, messages, strict=True):
        if isinstance(turn, dict) and message.role not in ("assistant", CALLS) and message.weight:
            for key, value in turn.items():
                if is_turn_flag(key):
                    fields.add(f"{column}[].{key}", value, Meaning.MASK)


def _with_system(system: str, messages: list[Message]) -> list[Message]:
    if messages[0].role != "system":
        return [Message("system", system), *messages]
    if messages[0].content.strip() != system.strip():
        raise BadRow("the row has two system prompts, a column and a message, that differ. Keep one.")
    return messages
