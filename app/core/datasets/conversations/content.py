"""Texts of a record, and the content of a message: text, or a list of parts. Knows no roles and no files.

What is not used of a part is added to the row's unused fields. Every error is for the person who made the
file.
"""

from collections.abc import Mapping
from typing import Any

from app.core.datasets.field_names import Meaning, meaning_of
from app.core.datasets.problems import BadRow, quoted
from app.core.datasets.readers.json_values import BadJson, decode_json, kind_of
from app.core.datasets.unused_fields import RowFields, is_absent

_TEXT_PARTS = (None, "text", "input_text", "output_text")


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


def content_of(content: object, key: str, where: str, path: str, fields: RowFields) -> str:
    """Returns a message's text: its content, or the texts of its parts, put together. Raises BadRow."""
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
