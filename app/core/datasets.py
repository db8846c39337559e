"""Dataset files: parse, detect the format, validate, report every bad line. Knows no database, no tokenizer.

A file is a stream of JSON lines. Whatever its format, a row comes out as one of three things: a Conversation,
a Completion (prompt and answer as plain text) or a PlainText.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from app.core.errors import DatasetInvalid

MAX_PROBLEMS = 100
_ROLES = ("system", "user", "assistant")
_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
_EXPECTED = (
    'one JSON object a line, for example {"messages": [{"role": "user", "content": "…"}, '
    '{"role": "assistant", "content": "…"}]} or {"prompt": "…", "completion": "…"} or {"text": "…"}'
)


class DatasetFormat(StrEnum):
    """What the rows of a file look like; named after their columns."""

    MESSAGES = "messages"
    PROMPT_COMPLETION = "prompt_completion"
    TEXT = "text"
    INSTRUCTION = "instruction"
    CONVERSATIONS = "conversations"


@dataclass(frozen=True)
class Message:
    """One turn. A weight of 0 keeps an assistant's turn out of the loss."""

    role: str
    content: str
    weight: int = 1


@dataclass(frozen=True)
class Conversation:
    """Turns that the chat template renders."""

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Completion:
    """A prompt and the text that should follow it, both taken as they are."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class PlainText:
    """Text to continue, learned from as a whole."""

    text: str


Row = Conversation | Completion | PlainText


@dataclass(frozen=True)
class Problem:
    """A line that can't be used, and what to do about it. Lines count from 1."""

    line: int
    message: str

    def __str__(self) -> str:
        return f"Line {self.line}: {self.message}"


@dataclass
class Inspection:
    """What was found in a file."""

    format: DatasetFormat | None = None
    columns: list[str] = field(default_factory=list)
    rows: int = 0
    problems: list[Problem] = field(default_factory=list)
    problem_count: int = 0


class BadRow(ValueError):
    """A row can't be used; the message says why."""


def inspect(lines: Iterable[bytes], *, max_rows: int) -> Inspection:
    """Read a file once, without keeping its rows.

    Raises DatasetInvalid where nothing can be made of it: an empty file, unknown columns, too many rows.
    """
    found = Inspection()
    columns: dict[str, None] = {}
    for line, record in _records(lines):
        parsed: Row | Problem
        if isinstance(record, Problem):
            parsed = record
        else:
            columns.update(dict.fromkeys(record))
            found.format = found.format or detect_format(record)
            parsed = _parse_or_problem(line, record, found.format)
        if isinstance(parsed, Problem):
            found.problem_count += 1
            if len(found.problems) < MAX_PROBLEMS:
                found.problems.append(parsed)
            continue
        found.rows += 1
        if found.rows > max_rows:
            raise DatasetInvalid(
                f"The file has more than {max_rows} rows.",
                hint="Split it, or raise TUNESMITH_MAX_DATASET_ROWS.",
            )
    found.columns = list(columns)
    if not found.rows and not found.problem_count:
        raise DatasetInvalid("The file is empty.", hint=f"Expected {_EXPECTED}.")
    return found


def refuse_problems(found: Inspection) -> None:
    """Raise DatasetInvalid, with every problem and its line, when there is any."""
    if not found.problem_count:
        return
    total = found.rows + found.problem_count
    count = f"{found.problem_count} of {total} lines" if total > 1 else "The only line"
    shown = " ".join(str(problem) for problem in found.problems[:5])
    more = f" … and {found.problem_count - 5} more." if found.problem_count > 5 else ""
    raise DatasetInvalid(
        f"{count} can't be used. {shown}{more}",
        problems=[{"line": problem.line, "message": problem.message} for problem in found.problems],
        hint=f"Mend the lines and upload again. Expected {_EXPECTED}.",
    )


def read_rows(lines: Iterable[bytes], dataset_format: DatasetFormat) -> Iterator[tuple[int, Row]]:
    """The rows of an inspected file with their line numbers; lines that can't be used are passed over."""
    for line, record in _records(lines):
        if isinstance(record, dict):
            row = _parse_or_problem(line, record, dataset_format)
            if not isinstance(row, Problem):
                yield line, row


def detect_format(record: dict[str, Any]) -> DatasetFormat:
    """The format that these columns mean. Raises DatasetInvalid when none or several fit."""
    fits = [name for name, columns in _COLUMNS.items() if columns <= record.keys()]
    if len(fits) == 1:
        return fits[0]
    found = ", ".join(sorted(map(repr, record))) or "none"
    if fits:
        choices = " or ".join(fits)
        raise DatasetInvalid(
            f"The columns {found} fit several formats: {choices}.", hint="Remove the columns you do not mean."
        )
    raise DatasetInvalid(
        f"The columns {found} fit no known format.",
        hint="Use `messages`; or `prompt` and `completion`; or `text`; or `instruction` and `output`; or "
        "`conversations`.",
    )


def parse_row(record: dict[str, Any], dataset_format: DatasetFormat) -> Row:
    """One row in its canonical form. Raises BadRow."""
    missing = sorted(_COLUMNS[dataset_format] - record.keys())
    if missing:
        raise BadRow(f"{missing[0]!r} is missing; earlier lines of this file have it.")
    return _PARSERS[dataset_format](record)


def _records(lines: Iterable[bytes]) -> Iterator[tuple[int, dict[str, Any] | Problem]]:
    for number, raw in enumerate(lines, start=1):
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if not raw.strip():
            continue
        yield number, _parse_line(number, raw)


def _parse_line(number: int, raw: bytes) -> dict[str, Any] | Problem:
    try:
        record = json.loads(raw)
    except UnicodeDecodeError:
        return Problem(number, "not UTF-8 text. Save the file as UTF-8.")
    except json.JSONDecodeError as error:
        return Problem(
            number, f"not valid JSON: {error.msg} at column {error.colno}. Expected one JSON object."
        )
    except RecursionError:
        return Problem(number, "the JSON is nested too deeply.")
    if not isinstance(record, dict):
        return Problem(number, f"expected a JSON object, found {_kind(record)}.")
    if any("\ud800" <= character <= "\udfff" for column in record for character in column):
        return Problem(number, "the name of a column holds half of a surrogate pair (\\ud800 to \\udfff).")
    return record


def _parse_or_problem(line: int, record: dict[str, Any], dataset_format: DatasetFormat) -> Row | Problem:
    try:
        return parse_row(record, dataset_format)
    except BadRow as error:
        return Problem(line, str(error))


def _parse_messages(record: dict[str, Any]) -> Conversation:
    return _conversation(record["messages"], "messages", role_key="role", content_key="content")


def _parse_conversations(record: dict[str, Any]) -> Conversation:
    return _conversation(record["conversations"], "conversations", role_key="from", content_key="value")


def _parse_prompt_completion(record: dict[str, Any]) -> Row:
    if isinstance(record["prompt"], list) and isinstance(record["completion"], list):
        turns = [*record["prompt"], *record["completion"]]
        return _conversation(turns, "prompt and completion", role_key="role", content_key="content")
    return Completion(_text(record, "prompt"), _text(record, "completion"))


def _parse_text(record: dict[str, Any]) -> PlainText:
    return PlainText(_text(record, "text"))


def _parse_instruction(record: dict[str, Any]) -> Conversation:
    question = _text(record, "instruction")
    if record.get("input"):
        question += "\n\n" + _text(record, "input")
    messages = [Message("user", question), Message("assistant", _text(record, "output"))]
    if record.get("system"):
        messages.insert(0, Message("system", _text(record, "system")))
    return Conversation(tuple(messages))


def _conversation(turns: object, column: str, *, role_key: str, content_key: str) -> Conversation:
    if not isinstance(turns, list) or not turns:
        raise BadRow(f"{column!r} must be a list of messages, found {_kind(turns)}.")
    messages = tuple(
        _message(turn, index, role_key, content_key) for index, turn in enumerate(turns, start=1)
    )
    _check_order(messages)
    return Conversation(messages)


def _message(turn: object, index: int, role_key: str, content_key: str) -> Message:
    if not isinstance(turn, dict):
        raise BadRow(f"message {index} must be an object with {role_key!r} and {content_key!r}.")
    role = turn.get(role_key)
    known = _SHAREGPT_ROLES if role_key == "from" else {name: name for name in _ROLES}
    if not isinstance(role, str) or role not in known:
        raise BadRow(f"message {index} has the role {role!r}; use one of {', '.join(known)}.")
    if content_key not in turn:
        raise BadRow(f"message {index} has no {content_key!r}.")
    weight = turn.get("weight", 1)
    if weight not in (0, 1):
        raise BadRow(f"message {index} has the weight {weight!r}; use 0 or 1.")
    return Message(known[role], _text(turn, content_key, f"message {index}: "), int(weight))


def _check_order(messages: tuple[Message, ...]) -> None:
    turns = messages[1:] if messages[0].role == "system" else messages
    for index, message in enumerate(turns):
        wanted = "assistant" if index % 2 else "user"
        if message.role != wanted:
            place = index + 1 + len(messages) - len(turns)
            raise BadRow(f"message {place} must be from the {wanted}, found {message.role!r}.")
    if messages[-1].role != "assistant":
        raise BadRow(f"the last message must be from the assistant, found {messages[-1].role!r}.")
    if not any(message.weight for message in messages if message.role == "assistant"):
        raise BadRow("every assistant message has the weight 0, so there is nothing to learn.")


def _text(record: dict[str, Any], column: str, where: str = "") -> str:
    value = record[column]
    if not isinstance(value, str):
        raise BadRow(f"{where}{column!r} must be text, found {_kind(value)}.")
    if not value.strip():
        raise BadRow(f"{where}{column!r} is empty.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow(f"{where}{column!r} holds half of a surrogate pair (\\ud800 to \\udfff).") from None
    return value


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return "an empty list" if value == [] else names.get(type(value), "a number")


_COLUMNS: dict[DatasetFormat, set[str]] = {
    DatasetFormat.MESSAGES: {"messages"},
    DatasetFormat.PROMPT_COMPLETION: {"prompt", "completion"},
    DatasetFormat.TEXT: {"text"},
    DatasetFormat.INSTRUCTION: {"instruction", "output"},
    DatasetFormat.CONVERSATIONS: {"conversations"},
}
_PARSERS: dict[DatasetFormat, Callable[[dict[str, Any]], Row]] = {
    DatasetFormat.MESSAGES: _parse_messages,
    DatasetFormat.PROMPT_COMPLETION: _parse_prompt_completion,
    DatasetFormat.TEXT: _parse_text,
    DatasetFormat.INSTRUCTION: _parse_instruction,
    DatasetFormat.CONVERSATIONS: _parse_conversations,
}
