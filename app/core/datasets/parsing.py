"""Turns the records of a file into rows, and accounts for every field of a record. Knows no files.

Every message is for the person who made the file: what is wrong with the row, and what would be right.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from app.core.chat.tools import FunctionTool
from app.core.datasets.conversations.content import checked_text, list_of, messages_of
from app.core.datasets.conversations.conversation import parse_conversation
from app.core.datasets.conversations.functions import functions_of
from app.core.datasets.field_names import Meaning
from app.core.datasets.formats import ColumnLayout, required_columns
from app.core.datasets.problems import BadRow, quoted
from app.core.datasets.readers.json_values import kind_of
from app.core.datasets.rows import Completion, Conversation, DatasetFormat, PlainText, Row
from app.core.datasets.unused_fields import RowFields, has_content, holds_value


@dataclass(frozen=True, slots=True)
class ParsedRow:
    """A row, and the fields of its record from which it takes nothing."""

    row: Row
    unused: RowFields


def parse_row(record: Mapping[str, Any], layout: ColumnLayout) -> ParsedRow:
    """Returns a record as a row. Raises BadRow."""
    names = layout.names_in(record)
    for column in required_columns(layout.format):
        if names[column] not in record:
            raise BadRow(f"{quoted([names[column]])} is missing; this line has {quoted(record)}.")
    fields = RowFields()
    row = _PARSERS[layout.format](record, names, fields)
    used = frozenset(names.values())
    if isinstance(row, Completion):
        # Without a chat template there is no place for them.
        used -= {names[column] for column in ("system", "tools") if column in names}
    if not record.keys() <= used:
        fields.add_columns(record, used, has_question=not isinstance(row, PlainText))
    return ParsedRow(row, fields)


def _parse_messages(record: Mapping[str, Any], names: Mapping[str, str], fields: RowFields) -> Conversation:
    column = names["messages"]
    turns = {column: messages_of(record[column], column)}
    return parse_conversation(
        turns, fields, system=_system(record, names), tools=_tools(record, names, fields)
    )


def _parse_conversations(
    record: Mapping[str, Any], names: Mapping[str, str], fields: RowFields
) -> Conversation:
    column = names["conversations"]
    turns = {column: messages_of(record[column], column)}
    return parse_conversation(
        turns, fields, system=_system(record, names), tools=_tools(record, names, fields)
    )


def _parse_prompt_completion(record: Mapping[str, Any], names: Mapping[str, str], fields: RowFields) -> Row:
    prompt, completion = names["prompt"], names["completion"]
    asked, answer = record[prompt], record[completion]
    if isinstance(asked, list) and isinstance(answer, list):
        _refuse_columns(asked, prompt)
        turns = {prompt: messages_of(asked, prompt), completion: messages_of(answer, completion)}
        return parse_conversation(
            turns, fields, system=_system(record, names), tools=_tools(record, names, fields)
        )
    for column, value, other in ((prompt, asked, completion), (completion, answer, prompt)):
        if isinstance(value, list) and isinstance(record[other], str):
            raise BadRow(
                f"{quoted([column])} is a list and {quoted([other])} is text. Write both as lists of "
                "messages, or both as text."
            )
    return Completion(checked_text(asked, prompt), checked_text(answer, completion))


def _refuse_columns(values: list[object], column: str) -> None:
    """Raise BadRow for a list of texts: the file holds columns, where rows are expected."""
    if len(values) > 1 and all(isinstance(value, str) for value in values):
        raise BadRow(
            f"{quoted([column])} is a list of texts: the file holds whole columns. Write one object for "
            "each row."
        )


def _parse_text(record: Mapping[str, Any], names: Mapping[str, str], _fields: RowFields) -> PlainText:
    return PlainText(checked_text(record[names["text"]], names["text"]))


def _parse_instruction(
    record: Mapping[str, Any], names: Mapping[str, str], fields: RowFields
) -> Conversation:
    question = checked_text(record[names["instruction"]], names["instruction"])
    if context := _optional_text(record, names, "input"):
        question += "\n\n" + context
    answer = checked_text(record[names["output"]], names["output"])
    turns: dict[str, list[object]] = {
        names["history"]: _history(record, names["history"]),
        names["instruction"]: [{"role": "user", "content": question}],
        names["output"]: [{"role": "assistant", "content": answer}],
    }
    return parse_conversation(
        turns, fields, system=_system(record, names), tools=_tools(record, names, fields)
    )


def _history(record: Mapping[str, Any], column: str) -> list[object]:
    """Returns the earlier turns of a row as messages. Their answers are learned too, as in LLaMA-Factory."""
    if not holds_value(record.get(column)):
        return []
    listed = list_of(record[column], column, "a list of [question, answer] pairs, or of messages")
    return listed if any(isinstance(turn, dict) for turn in listed) else _turns_of(listed, column)


def _turns_of(pairs: list[object], column: str) -> list[object]:
    """Returns [question, answer] pairs as messages."""
    messages: list[object] = []
    for number, pair in enumerate(pairs, start=1):
        where = f"pair {number} of "
        if not isinstance(pair, list) or len(pair) != 2:
            found = f"a list of {len(pair)}" if isinstance(pair, list) and pair else kind_of(pair)
            raise BadRow(f"{where}{quoted([column])} must be [question, answer], found {found}.")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            messages.append({"role": role, "content": checked_text(text, column, where)})
    return messages


def _system(record: Mapping[str, Any], names: Mapping[str, str]) -> str | None:
    return _optional_text(record, names, "system")


def _tools(
    record: Mapping[str, Any], names: Mapping[str, str], fields: RowFields
) -> tuple[FunctionTool, ...]:
    """Returns the functions of a row; a switch, `"tools": true`, names none."""
    column = names.get("tools")
    value = record.get(column) if column else None
    if column is None or not holds_value(value):
        return ()
    if not has_content(value, Meaning.TOOLS):
        fields.add(column, value, Meaning.TOOLS)
        return ()
    return functions_of(value, column, fields)


def _optional_text(record: Mapping[str, Any], names: Mapping[str, str], key: str) -> str | None:
    """Returns the text of an optional column; None where the record has none."""
    column = names.get(key)
    value = record.get(column) if column else None
    is_blank = not value.strip() if isinstance(value, str) else not holds_value(value)
    if column is None or is_blank:
        return None
    return checked_text(value, column)


_PARSERS: dict[DatasetFormat, Callable[[Mapping[str, Any], Mapping[str, str], RowFields], Row]] = {
    DatasetFormat.MESSAGES: _parse_messages,
    DatasetFormat.PROMPT_COMPLETION: _parse_prompt_completion,
    DatasetFormat.TEXT: _parse_text,
    DatasetFormat.INSTRUCTION: _parse_instruction,
    DatasetFormat.CONVERSATIONS: _parse_conversations,
}
