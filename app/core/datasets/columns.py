"""Columns of a record that formats share: a question, its context, a system prompt, functions.

Every error is for the person who made the file.
"""

from collections.abc import Mapping
from typing import Any

from app.core.chat.tools import FunctionTool
from app.core.datasets.conversations.content import checked_text, list_of
from app.core.datasets.conversations.functions import functions_of
from app.core.datasets.field_names import Meaning
from app.core.datasets.problems import BadRow, quoted
from app.core.datasets.readers.json_values import kind_of
from app.core.datasets.unused_fields import RowFields, has_content, holds_value


def question_turns(record: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, list[object]]:
    """Returns an instruction with its context, and the turns before it, as messages of their columns."""
    question = checked_text(record[names["instruction"]], names["instruction"])
    if context := optional_text(record, names, "input"):
        question += "\n\n" + context
    return {
        names["history"]: history_of(record, names["history"]),
        names["instruction"]: [{"role": "user", "content": question}],
    }


def history_of(record: Mapping[str, Any], column: str) -> list[object]:
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


def system_of(record: Mapping[str, Any], names: Mapping[str, str]) -> str | None:
    return optional_text(record, names, "system")


def tools_of(
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


def optional_text(record: Mapping[str, Any], names: Mapping[str, str], key: str) -> str | None:
    """Returns the text of an optional column; None where the record has none."""
    column = names.get(key)
    value = record.get(column) if column else None
    is_blank = not value.strip() if isinstance(value, str) else not holds_value(value)
    if column is None or is_blank:
        return None
    return checked_text(value, column)


def refuse_columns(values: list[object], column: str) -> None:
    """Raise BadRow for a list of texts: the file holds columns, where rows are expected."""
    if len(values) > 1 and all(isinstance(value, str) for value in values):
        raise BadRow(
            f"{quoted([column])} is a list of texts: the file holds whole columns. Write one object for "
            "each row."
        )
