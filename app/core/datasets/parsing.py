"""Turns the records of a file into rows, and accounts for every field of a record. Knows no files.

Every message is for the person who made the file: what is wrong with the row, and what would be right.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from app.core.datasets.columns import question_turns, refuse_columns, system_of, tools_of
from app.core.datasets.conversations.content import checked_text, messages_of
from app.core.datasets.conversations.conversation import parse_conversation
from app.core.datasets.formats import ColumnLayout
from app.core.datasets.preferences import parse_comparison, parse_labelled_answer
from app.core.datasets.problems import BadRow, quoted
from app.core.datasets.rows import (
    AnswerComparison,
    Completion,
    Conversation,
    DatasetFormat,
    LabelledAnswer,
    PlainText,
    Row,
    is_text,
)
from app.core.datasets.unused_fields import RowFields


@dataclass(frozen=True, slots=True)
class ParsedRow:
    """A row, and the fields of its record from which it takes nothing."""

    row: Row
    unused: RowFields


def parse_row(record: Mapping[str, Any], layout: ColumnLayout) -> ParsedRow:
    """Returns a record as a row. Raises BadRow."""
    names = layout.names_in(record)
    for column in layout.required:
        if names[column] not in record:
            raise BadRow(f"{quoted([names[column]])} is missing; this line has {quoted(record)}.")
    fields = RowFields()
    row = _PARSERS[layout.format](record, names, fields)
    used = frozenset(names.values())
    if is_text(row):
        # Without a chat template there is no place for them.
        used -= {names[column] for column in ("system", "tools") if column in names}
    if not record.keys() <= used:
        fields.add_columns(
            record,
            used,
            has_question=not isinstance(row, PlainText),
            has_preference=isinstance(row, AnswerComparison | LabelledAnswer),
        )
    return ParsedRow(row, fields)


def _parse_messages(record: Mapping[str, Any], names: Mapping[str, str], fields: RowFields) -> Conversation:
    column = names["messages"]
    turns = {column: messages_of(record[column], column)}
    return parse_conversation(
        turns, fields, system=system_of(record, names), tools=tools_of(record, names, fields)
    )


def _parse_conversations(
    record: Mapping[str, Any], names: Mapping[str, str], fields: RowFields
) -> Conversation:
    column = names["conversations"]
    turns = {column: messages_of(record[column], column)}
    return parse_conversation(
        turns, fields, system=system_of(record, names), tools=tools_of(record, names, fields)
    )


def _parse_prompt_completion(record: Mapping[str, Any], names: Mapping[str, str], fields: RowFields) -> Row:
    prompt, completion = names["prompt"], names["completion"]
    asked, answer = record[prompt], record[completion]
    if isinstance(asked, list) and isinstance(answer, list):
        refuse_columns(asked, prompt)
        turns = {prompt: messages_of(asked, prompt), completion: messages_of(answer, completion)}
        return parse_conversation(
            turns, fields, system=system_of(record, names), tools=tools_of(record, names, fields)
        )
    for column, value, other in ((prompt, asked, completion), (completion, answer, prompt)):
        if isinstance(value, list) and isinstance(record[other], str):
            raise BadRow(
                f"{quoted([column])} is a list and {quoted([other])} is text. Write both as lists of "
                "messages, or both as text."
            )
    return Completion(checked_text(asked, prompt), checked_text(answer, completion))


def _parse_text(record: Mapping[str, Any], names: Mapping[str, str], _fields: RowFields) -> PlainText:
    return PlainText(checked_text(record[names["text"]], names["text"]))


def _parse_instruction(
    record: Mapping[str, Any], names: Mapping[str, str], fields: RowFields
) -> Conversation:
    answer = checked_text(record[names["output"]], names["output"])
    turns: dict[str, list[object]] = {
        **question_turns(record, names),
        names["output"]: [{"role": "assistant", "content": answer}],
    }
    return parse_conversation(
        turns, fields, system=system_of(record, names), tools=tools_of(record, names, fields)
    )


_PARSERS: dict[DatasetFormat, Callable[[Mapping[str, Any], Mapping[str, str], RowFields], Row]] = {
    DatasetFormat.MESSAGES: _parse_messages,
    DatasetFormat.PROMPT_COMPLETION: _parse_prompt_completion,
    DatasetFormat.TEXT: _parse_text,
    DatasetFormat.INSTRUCTION: _parse_instruction,
    DatasetFormat.CONVERSATIONS: _parse_conversations,
    DatasetFormat.COMPARISONS: parse_comparison,
    DatasetFormat.LABELLED_ANSWERS: parse_labelled_answer,
}
