"""The rows of a dataset, and the form in which they are stored.

A stored dataset is a file of JSON lines, whatever was uploaded: each has the line of the upload where the row
begins, and the row as a Conversation, a Completion or a PlainText. Knows no database and no tokenizer.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from app.core.chat.tools import FunctionTool, ToolCall


class DatasetFormat(StrEnum):
    """What the rows of an upload look like; named after their columns."""

    MESSAGES = "messages"
    PROMPT_COMPLETION = "prompt_completion"
    TEXT = "text"
    INSTRUCTION = "instruction"
    CONVERSATIONS = "conversations"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. A weight of 0 excludes an assistant's turn from the loss.

    Of another turn, it restricts the loss to the assistant's turns of the conversation. `tool_calls` and
    `reasoning` (the thoughts before the answer) are an assistant's. `tool_call_id` and `name` say which call
    a turn with the role `tool` is the result of.
    """

    role: str
    content: str
    weight: int = 1
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    reasoning: str | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages that the chat template renders, and the functions that the assistant may call."""

    messages: tuple[Message, ...]
    tools: tuple[FunctionTool, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """A prompt and the text that should follow it, both without a chat template."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class PlainText:
    """Text without a chat template; the loss counts all of its tokens."""

    text: str


Row = Conversation | Completion | PlainText


@dataclass(frozen=True)
class Problem:
    """A row that can't be used, and what to do about it.

    `line` is where the row begins, counted from 1; in Parquet, which has no lines, it is the row's number.
    """

    line: int
    message: str

    def __str__(self) -> str:
        return f"Line {self.line}: {self.message}"


def write_row(line: int, row: Row) -> bytes:
    """Returns the row as a line of a stored dataset."""
    return _encode({"line": line, **_fields(row)}).encode() + b"\n"


def write_plain(row: Row) -> bytes:
    """Returns the row as a JSON line that can be uploaded, without the line number of the stored form."""
    return _encode(_fields(row)).encode(errors="replace") + b"\n"


def as_plain(row: Row) -> dict[str, object]:
    """Returns the row as `write_plain` writes it: `messages`, `prompt` and `completion`, or `text`."""
    return _fields(row)


def read_rows_after(lines: Iterable[bytes], line: int) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a stored dataset that begin after a line of the upload."""
    later = (raw for raw in lines if int(raw[len(_LINE) : raw.index(b",")]) > line)
    return read_rows(later)


def read_rows(lines: Iterable[bytes]) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a stored dataset, each with its line in the upload."""
    for raw in lines:
        record = json.loads(raw)
        yield record["line"], _row(record)


# How a stored row begins: its line is read without the rest.
_LINE = b'{"line":'
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode


def _fields(row: Row) -> dict[str, object]:
    match row:
        case Conversation(messages, tools):
            turns: dict[str, object] = {"messages": [_turn(message) for message in messages]}
            return {**turns, "tools": [tool.as_template_tool() for tool in tools]} if tools else turns
        case Completion(prompt, completion):
            return {"prompt": prompt, "completion": completion}
        case PlainText(text):
            return {"text": text}


def _turn(message: Message) -> dict[str, object]:
    turn: dict[str, object] = {"role": message.role, "content": message.content}
    if not message.weight:
        turn["weight"] = 0
    if message.tool_calls:
        turn["tool_calls"] = [call.as_template_call() for call in message.tool_calls]
    for key, value in (
        ("tool_call_id", message.tool_call_id),
        ("name", message.name),
        ("reasoning_content", message.reasoning),
    ):
        if value is not None:
            turn[key] = value
    return turn


def _row(record: dict[str, Any]) -> Row:
    if "messages" in record:
        tools = tuple(FunctionTool(**tool["function"]) for tool in record.get("tools", ()))
        return Conversation(tuple(map(_message, record["messages"])), tools)
    if "prompt" in record:
        return Completion(record["prompt"], record["completion"])
    return PlainText(record["text"])


def _message(turn: dict[str, Any]) -> Message:
    if len(turn) == 2:
        return Message(turn["role"], turn["content"])
    calls = (ToolCall(id=call.get("id"), **call["function"]) for call in turn.get("tool_calls", ()))
    return Message(
        turn["role"],
        turn["content"],
        turn.get("weight", 1),
        tuple(calls),
        turn.get("tool_call_id"),
        turn.get("name"),
        turn.get("reasoning_content"),
    )
