"""Finds the format that a file's columns have, and turns its records into rows. Knows no files.

Every message is for the person who made the file: what is wrong with the row, and what would be right.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from app.core.datasets.problems import repeated
from app.core.datasets.readers.json_values import BadJson, decode_json, kind_of
from app.core.datasets.rows import Completion, Conversation, DatasetFormat, Message, PlainText, Row
from app.core.errors.datasets import DatasetInvalid

_ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", **_ROLES}
_REQUIRED: dict[DatasetFormat, tuple[str, ...]] = {
    DatasetFormat.MESSAGES: ("messages",),
    DatasetFormat.PROMPT_COMPLETION: ("prompt", "completion"),
    DatasetFormat.TEXT: ("text",),
    DatasetFormat.INSTRUCTION: ("instruction", "output"),
    DatasetFormat.CONVERSATIONS: ("conversations",),
}
_OPTIONAL: dict[DatasetFormat, tuple[str, ...]] = {
    DatasetFormat.INSTRUCTION: ("input", "system"),
    DatasetFormat.CONVERSATIONS: ("system",),
}
_KNOWN = list(
    dict.fromkeys(name for columns in (*_REQUIRED.values(), *_OPTIONAL.values()) for name in columns)
)
_MAY_LACK = {name for columns in _OPTIONAL.values() for name in columns}
_MAX_COLUMNS_SHOWN = 20
_MAX_CHARACTERS_SHOWN = 60


class BadRow(ValueError):
    """A row can't be used; the message says why."""


class UnknownColumns(DatasetInvalid):
    """These columns fit no format."""


@dataclass(frozen=True)
class ColumnLayout:
    """A format, and the file's own name for each of its columns."""

    format: DatasetFormat
    names: Mapping[str, str]


def check_column_map(column_map: Mapping[str, str]) -> None:
    """Raise DatasetInvalid where a column map is wrong for any file."""
    unknown = [name for name in column_map if name not in _KNOWN]
    if unknown:
        raise _bad_map(
            f"column_map has {quoted(unknown)}, which is no column of any format.",
            hint=f"Its keys are columns of a format ({quoted(_KNOWN)}), its values columns of your file.",
        )
    if twice := repeated(column_map.values()):
        raise _bad_map(f"column_map uses the column {quoted(twice)} more than once.")


def check_mapped_columns(columns: Iterable[str], column_map: Mapping[str, str]) -> None:
    """Raise UnknownColumns where the map names a column that the file does not have."""
    columns = list(columns)
    absent = [name for name in column_map.values() if name not in columns]
    if absent:
        raise _bad_map(f"column_map names {quoted(absent)}, but the file's columns are {quoted(columns)}.")


def choose_layout(columns: Iterable[str], column_map: Mapping[str, str]) -> ColumnLayout:
    """Returns the format with these columns. Raises UnknownColumns, or DatasetInvalid where several fit."""
    columns = list(columns)
    # One JSON record may lack an optional column that others of the file have.
    check_mapped_columns(columns, {key: name for key, name in column_map.items() if key not in _MAY_LACK})
    fits = [name for name in _REQUIRED if not _missing(name, columns, column_map)]
    if len(fits) > 1:
        choices = [", ".join(_REQUIRED[name]) for name in fits]
        examples = " or ".join(json.dumps({name: name for name in _REQUIRED[fit]}) for fit in fits)
        raise DatasetInvalid(
            f"The columns {quoted(columns)} fit several formats: {' or '.join(choices)}.",
            hint=f"Say which with column_map: {examples}.",
        )
    if not fits:
        raise _no_format(columns, column_map)
    own = [name for name in _columns(fits[0]) if name not in column_map.values()]
    return ColumnLayout(fits[0], {**{name: name for name in own}, **column_map})


def parse_row(record: Mapping[str, Any], layout: ColumnLayout) -> Row:
    """Returns a record as a row. Raises BadRow."""
    names = layout.names
    for column in _REQUIRED[layout.format]:
        if names[column] not in record:
            raise BadRow(f"{quoted([names[column]])} is missing; this line has {quoted(record)}.")
    return _PARSERS[layout.format](record, names)


def quoted(names: Iterable[str]) -> str:
    """Returns names for a message: quoted, printable, and no more than `_MAX_COLUMNS_SHOWN` of them."""
    names = list(names)
    shown = ", ".join(_shown(name) for name in names[:_MAX_COLUMNS_SHOWN]) or "none"
    more = len(names) - _MAX_COLUMNS_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _columns(name: DatasetFormat) -> tuple[str, ...]:
    return (*_REQUIRED[name], *_OPTIONAL.get(name, ()))


def _missing(name: DatasetFormat, columns: list[str], column_map: Mapping[str, str]) -> list[str]:
    """Returns the columns that a format lacks; all of them where the map names another format's columns."""
    if not column_map.keys() <= set(_columns(name)):
        return list(_REQUIRED[name])
    taken = column_map.values()
    return [
        column
        for column in _REQUIRED[name]
        if column not in column_map and (column not in columns or column in taken)
    ]


def _no_format(columns: list[str], column_map: Mapping[str, str]) -> UnknownColumns:
    if column_map:
        meant = [name for name in _REQUIRED if column_map.keys() <= set(_columns(name))]
        wanted = " or ".join(quoted(_missing(name, columns, column_map)) for name in meant)
        has = quoted(column_map)
        if not meant:
            return _bad_map(f"column_map mixes columns of several formats: {has}.")
        return _bad_map(
            f"column_map has {has} and still needs {wanted}; the file's columns are {quoted(columns)}."
        )
    pair = ["prompt", "completion"] if len(columns) > 1 else ["text"]
    example = json.dumps(dict(zip(pair, (name[:_MAX_CHARACTERS_SHOWN] for name in columns), strict=False)))
    return UnknownColumns(
        f"The columns {quoted(columns)} fit no known format.",
        hint="Use `messages`; or `prompt` and `completion`; or `text`; or `instruction` and `output`; or "
        f"`conversations`. Or say what yours mean with column_map, for example {example}.",
    )


def _bad_map(message: str, hint: str | None = None) -> UnknownColumns:
    error = UnknownColumns(message, hint=hint)
    error.param = "column_map"
    return error


def _parse_messages(record: Mapping[str, Any], names: Mapping[str, str]) -> Conversation:
    return _conversation(record[names["messages"]], names["messages"])


def _parse_conversations(record: Mapping[str, Any], names: Mapping[str, str]) -> Conversation:
    return _conversation(record[names["conversations"]], names["conversations"], _system(record, names))


def _parse_prompt_completion(record: Mapping[str, Any], names: Mapping[str, str]) -> Row:
    prompt, completion = names["prompt"], names["completion"]
    if isinstance(record[prompt], list) and isinstance(record[completion], list):
        return _conversation([*record[prompt], *record[completion]], f"{prompt} and {completion}")
    return Completion(_text(record, prompt), _text(record, completion))


def _parse_text(record: Mapping[str, Any], names: Mapping[str, str]) -> PlainText:
    return PlainText(_text(record, names["text"]))


def _parse_instruction(record: Mapping[str, Any], names: Mapping[str, str]) -> Conversation:
    question = _text(record, names["instruction"])
    context = names.get("input")
    if context and record.get(context):
        question += "\n\n" + _text(record, context)
    answer = _text(record, names["output"])
    return Conversation((*_system(record, names), Message("user", question), Message("assistant", answer)))


def _system(record: Mapping[str, Any], names: Mapping[str, str]) -> tuple[Message, ...]:
    """Returns the system prompt as messages, none where the record has no such column."""
    column = names.get("system")
    return (Message("system", _text(record, column)),) if column and record.get(column) else ()


def _conversation(turns: object, column: str, system: tuple[Message, ...] = ()) -> Conversation:
    if isinstance(turns, str):
        turns = _json_cell(turns, column)
    if not isinstance(turns, list) or not turns:
        raise BadRow(f"{quoted([column])} must be a list of messages, found {kind_of(turns)}.")
    messages = (*system, *(_message(turn, index) for index, turn in enumerate(turns, start=1)))
    _check_order(messages)
    return Conversation(messages)


def _json_cell(cell: str, column: str) -> object:
    """Returns the list that a CSV cell holds as JSON. Raises BadRow."""
    try:
        return decode_json(cell)
    except BadJson as error:
        raise BadRow(f"{quoted([column])} must be a list of messages: {error}") from None


def _message(turn: object, index: int) -> Message:
    if not isinstance(turn, dict):
        raise BadRow(f"message {index} must be an object with 'role' and 'content', found {kind_of(turn)}.")
    sharegpt = "from" in turn and "role" not in turn
    role_key, content_key = ("from", "value") if sharegpt else ("role", "content")
    known = _SHAREGPT_ROLES if sharegpt else _ROLES
    for key in (role_key, content_key):
        if key not in turn:
            raise BadRow(f"message {index} has no {key!r}.")
    role = turn[role_key]
    if not isinstance(role, str) or role not in known:
        shown = _shown(role) if isinstance(role, str) else kind_of(role)
        raise BadRow(f"message {index} has the role {shown}; use one of {', '.join(known)}.")
    weight = turn.get("weight")
    if weight is not None and weight not in (0, 1):
        raise BadRow(f"message {index} has a weight that is neither 0 nor 1.")
    return Message(known[role], _text(turn, content_key, f"message {index}: "), 0 if weight == 0 else 1)


def _check_order(messages: tuple[Message, ...]) -> None:
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


def _text(record: Mapping[str, Any], column: str, where: str = "") -> str:
    value = record[column]
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


def _shown(name: str) -> str:
    cut = name if len(name) <= _MAX_CHARACTERS_SHOWN else name[:_MAX_CHARACTERS_SHOWN] + "…"
    return repr(cut)


_PARSERS: dict[DatasetFormat, Callable[[Mapping[str, Any], Mapping[str, str]], Row]] = {
    DatasetFormat.MESSAGES: _parse_messages,
    DatasetFormat.PROMPT_COMPLETION: _parse_prompt_completion,
    DatasetFormat.TEXT: _parse_text,
    DatasetFormat.INSTRUCTION: _parse_instruction,
    DatasetFormat.CONVERSATIONS: _parse_conversations,
}
