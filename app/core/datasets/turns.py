"""Turns the messages of a record into a conversation. Knows no formats and no files.

Roles and keys of OpenAI, ShareGPT and Gemini are understood; what is not used of a message is added to the
row's unused fields. Every error is for the person who made the file.
"""

from collections.abc import Mapping
from typing import Any

from app.core.datasets.field_names import Meaning, is_turn_flag, meaning_of
from app.core.datasets.problems import MAX_CHARACTERS_SHOWN, BadRow, quoted, shown
from app.core.datasets.readers.json_values import BadJson, decode_json, kind_of
from app.core.datasets.rows import Conversation, Message
from app.core.datasets.unused_fields import RowFields, holds_value, is_absent

_OPENAI_ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", **_OPENAI_ROLES}
# `developer` is OpenAI's newer name of `system`, `model` Gemini's and Gemma's of `assistant`.
_ROLES = {**_SHAREGPT_ROLES, "developer": "system", "model": "assistant"}
_TOOL_ROLES = {
    "tool",
    "function",
    "observation",
    "ipython",
    "function_call",
    "function_response",
    "tool_call",
    "tool_calls",
    "tool_response",
    "tool_result",
}
_CONTENT_KEYS = ("content", "value", "parts")
_TEXT_PARTS = (None, "text", "input_text", "output_text")


def parse_conversation(
    turns: Mapping[str, list[object]], fields: RowFields, *, system: str | None = None
) -> Conversation:
    """Returns the messages of a conversation in which user and assistant take turns.

    `turns` are one after the other in the named columns; `system` is a system prompt that is not among them.
    Raises BadRow.
    """
    placed = [(column, turn) for column, listed in turns.items() for turn in listed]
    messages = [
        _message(turn, number, column, fields) for number, (column, turn) in enumerate(placed, start=1)
    ]
    _check_order(messages)
    if any(not message.weight for message in messages if message.role != "assistant"):
        _add_learned_questions(placed, messages, fields)
    if system is not None:
        messages = _with_system(system, messages)
    return Conversation(tuple(messages))


def messages_of(cell: object, column: str) -> list[object]:
    """Returns the list that a column holds, or its JSON in a cell of text. Raises BadRow."""
    turns = list_of(cell, column, "a list of messages")
    if not turns:
        raise BadRow(f"{quoted([column])} must be a list of messages, found an empty list.")
    return turns


def list_of(cell: object, column: str, what: str) -> list[object]:
    """Returns the list that a column holds, or its JSON in a cell of text. Raises BadRow."""
    if isinstance(cell, str):
        try:
            cell = decode_json(cell)
        except BadJson as error:
            raise BadRow(f"{quoted([column])} must be {what}: {error}") from None
    if not isinstance(cell, list):
        raise BadRow(f"{quoted([column])} must be {what}, found {kind_of(cell)}.")
    return cell


def checked_text(value: object, column: str, where: str = "") -> str:
    """Returns a value that must be text which can be learned. Raises BadRow."""
    if not isinstance(value, str):
        raise BadRow(f"{where}{quoted([column])} must be text, found {kind_of(value)}.")
    if not value or value.isspace():
        raise BadRow(f"{where}{quoted([column])} is empty. Fill it in, or remove the row.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):04x}"
        what = f"{where}{quoted([column])} holds {half}"
        raise BadRow(f"{what}, half of a surrogate pair. Write the whole character.") from None
    return value


def _message(turn: object, number: int, path: str, fields: RowFields) -> Message:
    where = f"message {number}"
    if not isinstance(turn, dict):
        raise BadRow(f"{where} must be an object with 'role' and 'content', found {kind_of(turn)}.")
    # Parquet fills the keys that other rows have with null.
    is_sharegpt = turn.get("from") is not None and turn.get("role") is None
    role_key = "from" if is_sharegpt else "role"
    if turn.get(role_key) is None:
        raise BadRow(f"{where} has no {role_key!r}.")
    role = _role(turn[role_key], where, is_sharegpt)
    content_key = _content_key(turn, where, is_sharegpt)
    content = _content(turn, content_key, where, f"{path}[]", fields)
    if len(turn) == 2:
        return Message(role, content)
    weight = _weight(turn, where)
    for key, value in turn.items():
        if key not in (role_key, content_key) and not is_turn_flag(key):
            fields.add(f"{path}[].{key}", value, meaning_of(key))
    return Message(role, content, weight)


def _role(role: object, where: str, is_sharegpt: bool) -> str:
    name = role.strip().casefold() if isinstance(role, str) else ""
    if name in _ROLES:
        return _ROLES[name]
    if name in _TOOL_ROLES:
        raise BadRow(f"{where} has the role {shown(str(role))}: tool turns are not supported yet.")
    known = _SHAREGPT_ROLES if is_sharegpt else _OPENAI_ROLES
    found = shown(role) if isinstance(role, str) else kind_of(role)
    raise BadRow(f"{where} has the role {found}; use one of {', '.join(known)}.")


def _content_key(turn: Mapping[str, Any], where: str, is_sharegpt: bool) -> str:
    """Returns the key of a message's text: the first that is not null, else the first that is there."""
    usual = "value" if is_sharegpt else "content"
    keys = [usual, *(key for key in _CONTENT_KEYS if key != usual)]
    found = next((key for key in keys if turn.get(key) is not None), None)
    found = found or next((key for key in keys if key in turn), None)
    if found is None or (turn[found] in (None, "") and _calls_tool(turn)):
        if _calls_tool(turn):
            raise BadRow(f"{where} only calls a tool: tool calls are not supported yet.")
        raise BadRow(f"{where} has no {usual!r}.")
    return found


def _calls_tool(turn: Mapping[str, Any]) -> bool:
    return any(meaning_of(key) is Meaning.TOOLS and holds_value(value) for key, value in turn.items())


def _content(turn: Mapping[str, Any], key: str, where: str, path: str, fields: RowFields) -> str:
    content = turn[key]
    if not isinstance(content, list) or not content:
        return checked_text(content, key, f"{where}: ")
    texts = [
        _part(part, f"{where}: part {number}", f"{path}.{key}[]", fields)
        for number, part in enumerate(content, start=1)
    ]
    joined = "".join(text for text in texts if text is not None)
    if not joined and None in texts:
        raise BadRow(f"{where} has no text; only text can be learned from yet.")
    return checked_text(joined, key, f"{where}: ")


def _part(part: object, where: str, path: str, fields: RowFields) -> str | None:
    """Returns the text of one part of a message's content; None for a part of another kind."""
    if not isinstance(part, dict):
        raise BadRow(f"{where} must be an object with 'type' and 'text', found {kind_of(part)}.")
    kind = part.get("type")
    if kind in _TEXT_PARTS and isinstance(part.get("text"), str):
        for key, value in part.items():
            if key not in ("type", "text"):
                fields.add(f"{path}.{key}", value, meaning_of(key))
        return str(part["text"])
    if kind in _TEXT_PARTS and not any(not is_absent(value) for key, value in part.items() if key != "type"):
        raise BadRow(f"{where} has no 'text'.")
    name = kind if isinstance(kind, str) and kind not in _TEXT_PARTS else _first_key(part)
    fields.add(f"{path}.{name}", True, meaning_of(name) or Meaning.PART)
    return None


def _first_key(part: Mapping[str, Any]) -> str:
    return next((key for key, value in part.items() if key != "type" and not is_absent(value)), "type")


def _weight(turn: Mapping[str, Any], where: str) -> int:
    """Returns 0 for a message that a flag excludes from the loss, else 1."""
    flags = {key: value for key, value in turn.items() if is_turn_flag(key) and not is_absent(value)}
    for key, value in flags.items():
        if value not in (0, 1):
            known = "0 nor 1" if key.casefold() == "weight" else "true nor false"
            raise BadRow(f"{where} has a {key[:MAX_CHARACTERS_SHOWN]} that is neither {known}.")
    if len({bool(value) for value in flags.values()}) > 1:
        raise BadRow(f"{where} has {quoted(flags)}, which contradict each other. Remove one.")
    return 0 if flags and not any(flags.values()) else 1


def _add_learned_questions(
    placed: list[tuple[str, object]], messages: list[Message], fields: RowFields
) -> None:
    """Add the flags of users' turns that are to be learned in a row where others are not.

    A row is learned whole, or its assistant's turns alone.
    """
    for (column, turn), message in zip(placed, messages, strict=True):
        if isinstance(turn, dict) and message.role != "assistant" and message.weight:
            for key, value in turn.items():
                if is_turn_flag(key):
                    fields.add(f"{column}[].{key}", value, Meaning.MASK)


def _check_order(messages: list[Message]) -> None:
    has_system = messages[0].role == "system"
    wanted = "user"
    for place, message in enumerate(messages[has_system:], start=1 + has_system):
        if message.role != wanted:
            raise BadRow(f"message {place} must be from the {wanted}, found {message.role!r}.")
        wanted = "assistant" if wanted == "user" else "user"
    if messages[-1].role != "assistant":
        raise BadRow(f"the last message must be from the assistant, found {messages[-1].role!r}.")
    if not any(message.weight for message in messages if message.role == "assistant"):
        raise BadRow("every assistant message has the weight 0, so there is nothing to learn.")


def _with_system(system: str, messages: list[Message]) -> list[Message]:
    if messages[0].role != "system":
        return [Message("system", system), *messages]
    if messages[0].content.strip() != system.strip():
        raise BadRow("the row has two system prompts, a column and a message, that differ. Keep one.")
    return messages
