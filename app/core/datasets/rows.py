"""The rows of a dataset, and the form in which they are stored.

A stored dataset is a file of JSON lines, whatever was uploaded: each has the line of the upload where the row
begins, and the row. Supervised training learns examples (Conversation, Completion, PlainText); preference
training learns comparisons of two answers, and answers labelled good or bad. Knows no database, no tokenizer.
"""

import json
from collections.abc import Container, Iterable, Iterator
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
    COMPARISONS = "comparisons"
    LABELLED_ANSWERS = "labelled_answers"


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


# A prompt or an answer: messages, which the chat template renders, or text without a chat template.
Passage = tuple[Message, ...] | str


@dataclass(frozen=True, slots=True)
class AnswerComparison:
    """A prompt, an answer that is preferred, and one that is rejected; all messages, or all text.

    The messages of a prompt end with a turn of the user or a function's result, those of an answer with one
    of the assistant.
    """

    prompt: Passage
    chosen: Passage
    rejected: Passage
    tools: tuple[FunctionTool, ...] = ()


@dataclass(frozen=True, slots=True)
class LabelledAnswer:
    """A prompt, an answer to it, and whether the answer is a good one; both messages, or both text."""

    prompt: Passage
    completion: Passage
    label: bool
    tools: tuple[FunctionTool, ...] = ()


Example = Conversation | Completion | PlainText
Preference = AnswerComparison | LabelledAnswer
Row = Example | Preference


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
    """Returns the row as `write_plain` writes it.

    An example has `messages`, or `prompt` and `completion`, or `text`; a comparison `prompt`, `chosen` and
    `rejected`; a labelled answer `prompt`, `completion` and `label`.
    """
    return _fields(row)


def join(prompt: Passage, answer: Passage, tools: tuple[FunctionTool, ...] = ()) -> Conversation | Completion:
    """Returns a prompt with one of its answers as an example. Both are messages, or both text."""
    if isinstance(prompt, str) and isinstance(answer, str):
        return Completion(prompt, answer)
    assert not isinstance(prompt, str)
    assert not isinstance(answer, str)
    return Conversation((*prompt, *answer), tools)


def is_text(row: Row) -> bool:
    """Whether the row has a prompt without a chat template, so no place for a system prompt or functions."""
    return isinstance(row, Completion | AnswerComparison | LabelledAnswer) and isinstance(row.prompt, str)


def as_example(row: Row) -> Example:
    """Returns the row as one to imitate: of a comparison, the prompt with the chosen answer."""
    match row:
        case AnswerComparison(prompt, chosen, _, tools):
            return join(prompt, chosen, tools)
        case LabelledAnswer(prompt, completion, _, tools):
            return join(prompt, completion, tools)
        case _:
            return row


def read_rows_after(lines: Iterable[bytes], line: int) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a stored dataset that begin after a line of the upload."""
    return read_rows(raw for raw in lines if _line_of(raw) > line)


def read_rows_at(lines: Iterable[bytes], wanted: Container[int]) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a stored dataset that begin at some lines of the upload."""
    return read_rows(raw for raw in lines if _line_of(raw) in wanted)


def read_rows(lines: Iterable[bytes]) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a stored dataset, each with its line in the upload."""
    for raw in lines:
        record = json.loads(raw)
        yield record["line"], _row(record)


# How a stored row begins: its line is read without the rest.
_LINE = b'{"line":'
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode


def _line_of(raw: bytes) -> int:
    return int(raw[len(_LINE) : raw.index(b",")])


def _fields(row: Row) -> dict[str, object]:
    match row:
        case Conversation(messages, tools):
            return {"messages": _turns(messages), **_tools(tools)}
        case Completion(prompt, completion):
            return {"prompt": prompt, "completion": completion}
        case PlainText(text):
            return {"text": text}
        case AnswerComparison(prompt, chosen, rejected, tools):
            texts = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
            return {**{name: _passage(text) for name, text in texts.items()}, **_tools(tools)}
        case LabelledAnswer(prompt, completion, label, tools):
            texts = {"prompt": prompt, "completion": completion}
            return {**{name: _passage(text) for name, text in texts.items()}, "label": label, **_tools(tools)}


def _passage(passage: Passage) -> object:
    return passage if isinstance(passage, str) else _turns(passage)


def _tools(tools: tuple[FunctionTool, ...]) -> dict[str, object]:
    return {"tools": [tool.as_template_tool() for tool in tools]} if tools else {}


def _turns(messages: tuple[Message, ...]) -> list[dict[str, object]]:
    return [_turn(message) for message in messages]


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
    tools = tuple(FunctionTool(**tool["function"]) for tool in record.get("tools", ()))
    if "messages" in record:
        return Conversation(tuple(map(_message, record["messages"])), tools)
    if "rejected" in record:
        prompt, chosen, rejected = (_read_passage(record[name]) for name in ("prompt", "chosen", "rejected"))
        return AnswerComparison(prompt, chosen, rejected, tools)
    if "label" in record:
        prompt, completion = (_read_passage(record[name]) for name in ("prompt", "completion"))
        return LabelledAnswer(prompt, completion, record["label"], tools)
    if "prompt" in record:
        return Completion(record["prompt"], record["completion"])
    return PlainText(record["text"])


def _read_passage(stored: Any) -> Passage:
    return stored if isinstance(stored, str) else tuple(map(_message, stored))


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
