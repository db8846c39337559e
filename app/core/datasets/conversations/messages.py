"""Turns one message of a record into a turn: its role, its text, its calls and its thoughts. Knows no files.

Roles and keys of OpenAI, ShareGPT, Gemini, ms-swift and LLaMA-Factory are understood; what is not used of a
message is added to the row's unused fields. Every error is for the person who made the file.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from app.core.chat.tools import ToolCall
from app.core.datasets.conversations.content import checked_text, content_of
from app.core.datasets.conversations.functions import (
    calls_of,
    checked_json,
    split_thought,
    split_written_calls,
    unwrapped_result,
)
from app.core.datasets.conversations.order import CALLS
from app.core.datasets.field_names import Meaning, is_turn_flag, meaning_of
from app.core.datasets.problems import MAX_CHARACTERS_SHOWN, BadRow, quoted, shown
from app.core.datasets.readers.json_values import kind_of
from app.core.datasets.rows import Message
from app.core.datasets.unused_fields import RowFields, has_content, holds_value, is_absent

_OPENAI_ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", **_OPENAI_ROLES}
# A turn that is nothing but calls, and one that is the result of a call.
_CALL_ROLES = ("function_call", "function_calls", "tool_call", "tool_calls")
_RESULT_ROLES = (
    "tool",
    "function",
    "observation",
    "ipython",
    "function_response",
    "function_result",
    "tool_response",
    "tool_result",
)
# `developer` is OpenAI's newer name of `system`, `model` Gemini's and Gemma's of `assistant`.
_ROLES = {
    **_SHAREGPT_ROLES,
    "developer": "system",
    "model": "assistant",
    **dict.fromkeys(_CALL_ROLES, CALLS),
    **dict.fromkeys(_RESULT_ROLES, "tool"),
}
_CONTENT_KEYS = ("content", "value", "parts")
_CALL_KEYS = ("tool_calls", "function_call")
_RESULT_KEYS = ("tool_call_id", "name")


@dataclass
class _RawMessage:
    """A message of a record; `used` are its keys of which something is taken."""

    turn: Mapping[str, Any]
    where: str
    path: str
    is_sharegpt: bool
    fields: RowFields
    used: set[str]

    def content_key(self) -> str:
        """Returns the key of the message's text. Raises BadRow where there is none."""
        key = self.find_content()
        if key is None:
            raise BadRow(f"{self.where} has no {'value' if self.is_sharegpt else 'content'!r}.")
        self.used.add(key)
        return key

    def find_content(self) -> str | None:
        """Returns the key of the message's text: the first that is not null, else the first that is there."""
        usual = "value" if self.is_sharegpt else "content"
        keys = [usual, *(key for key in _CONTENT_KEYS if key != usual)]
        found = next((key for key in keys if self.turn.get(key) is not None), None)
        return found or next((key for key in keys if key in self.turn), None)

    def content(self) -> str:
        """Returns the message's text. Raises BadRow."""
        key = self.content_key()
        return content_of(self.turn[key], key, self.where, self.path, self.fields)

    def calls_in(self, value: object, key: str) -> tuple[ToolCall, ...]:
        return calls_of(value, self.where, f"{self.path}.{key}[]", self.fields)


def parse_message(turn: object, number: int, column: str, fields: RowFields) -> Message:
    """Returns a message of a column, counted from 1; one that is nothing but calls has the role CALLS.

    Raises BadRow.
    """
    where = f"message {number}"
    if not isinstance(turn, dict):
        raise BadRow(f"{where} must be an object with 'role' and 'content', found {kind_of(turn)}.")
    # Parquet fills the keys that other rows have with null.
    is_sharegpt = turn.get("from") is not None and turn.get("role") is None
    role_key = "from" if is_sharegpt else "role"
    if turn.get(role_key) is None:
        raise BadRow(f"{where} has no {role_key!r}.")
    role = _role(turn[role_key], where, is_sharegpt)
    raw = _RawMessage(turn, where, f"{column}[]", is_sharegpt, fields, {role_key})
    weight = _weight(turn, where) if len(turn) > 2 else 1
    message = _READERS.get(role, _read_text)(raw, role)
    if len(turn) > 2:
        for key, value in turn.items():
            if key not in raw.used and not is_turn_flag(key):
                fields.add(f"{column}[].{key}", value, meaning_of(key))
    return message if weight else replace(message, weight=0)


def _role(role: object, where: str, is_sharegpt: bool) -> str:
    name = role.strip().casefold() if isinstance(role, str) else ""
    if name in _ROLES:
        return _ROLES[name]
    known = [*(_SHAREGPT_ROLES if is_sharegpt else _OPENAI_ROLES), "observation" if is_sharegpt else "tool"]
    found = shown(role) if isinstance(role, str) else kind_of(role)
    raise BadRow(f"{where} has the role {found}; use one of {', '.join(known)}.")


def _read_text(raw: _RawMessage, role: str) -> Message:
    key, call_key = raw.find_content(), next((one for one in _CALL_KEYS if raw.turn.get(one)), None)
    if call_key is not None and (key is None or raw.turn[key] is None):
        raise BadRow(
            f"{raw.where} is of the {role} and has {call_key!r}; only the assistant calls functions."
        )
    return Message(role, raw.content())


def _read_result(raw: _RawMessage, role: str) -> Message:
    """Returns the turn of a function's result: text, or a JSON value, which becomes its text."""
    content = raw.turn[raw.content_key()]
    raw.used.update(_RESULT_KEYS)
    if isinstance(content, list) and any(isinstance(part, dict) and "text" in part for part in content):
        content = raw.content()
    if not isinstance(content, str):
        checked_json(content, f"{raw.where}: its contents")
        content = "" if content is None else json.dumps(content, ensure_ascii=False)
    call_id, name = (None if is_absent(raw.turn.get(key)) else str(raw.turn[key]) for key in _RESULT_KEYS)
    checked_json([content, call_id, name], f"{raw.where}: its texts")
    return Message(role, unwrapped_result(content), tool_call_id=call_id, name=name)


def _read_calls(raw: _RawMessage, role: str) -> Message:
    """Returns a turn that is nothing but calls, with the thoughts before them."""
    key = raw.content_key()
    thought, listed = split_thought(raw.turn[key])
    return Message(role, "", tool_calls=raw.calls_in(listed, key), reasoning=_reasoning(raw) or thought)


def _read_answer(raw: _RawMessage, role: str) -> Message:
    """Returns the turn of an assistant: its thoughts, its text and its calls. Calls need no text."""
    reasoning, calls, key = _reasoning(raw), _calls(raw), raw.find_content()
    content = raw.turn[key] if key else None
    is_silent = content is None or content == [] or (isinstance(content, str) and not content.strip())
    if calls and is_silent:
        raw.used.update({key} if key else ())
        return Message(role, "", tool_calls=calls, reasoning=reasoning)
    text = raw.content()
    if not calls and "<tool_call>" in text:
        text, written = split_written_calls(text)
        calls = raw.calls_in(written, "tool_calls") if written else ()
    if reasoning is not None and "<think>" in text:
        raise BadRow(f"{raw.where} has thoughts in its text and in a field of their own. Keep one of them.")
    return Message(role, text, tool_calls=calls, reasoning=reasoning)


def _calls(raw: _RawMessage) -> tuple[ToolCall, ...]:
    found = [key for key in _CALL_KEYS if holds_value(raw.turn.get(key))]
    if len(found) > 1:
        raise BadRow(f"{raw.where} has both {' and '.join(map(repr, found))}. Keep the first.")
    raw.used.update(found)
    return raw.calls_in(raw.turn[found[0]], found[0]) if found else ()


def _reasoning(raw: _RawMessage) -> str | None:
    """Returns the thoughts of an assistant's turn, which trainers and APIs name in several ways."""
    if len(raw.turn) == 2:
        return None
    found = {
        key: value
        for key, value in raw.turn.items()
        if isinstance(value, str)
        and meaning_of(key) is Meaning.REASONING
        and has_content(value, Meaning.REASONING)
    }
    texts = {checked_text(value, key, f"{raw.where}: ").strip() for key, value in found.items()}
    if len(texts) > 1:
        raise BadRow(f"{raw.where} has {quoted(found)}, which differ. Keep one of them.")
    raw.used.update(found)
    return texts.pop() if texts else None


_READERS: dict[str, Callable[[_RawMessage, str], Message]] = {
    "assistant": _read_answer,
    "tool": _read_result,
    CALLS: _read_calls,
}


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
