"""Fields of an upload from which nothing is learned: found in each row, counted over the file, refused.

The memory for them does not grow with the file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field as dataclass_field
from enum import StrEnum
from typing import Any

from app.core.datasets.field_names import Meaning, meaning_of, meaning_of_rest
from app.core.datasets.problems import shown_column_map
from app.core.errors.datasets import FieldsUnused

EMPTY_TEXTS = ("", "[]", "{}", "null")
# Tools and reasoning are switched on and off by fields of the same names, which hold nothing to learn.
_SWITCHES = ("on", "off", "true", "false")
_SWITCHED = (Meaning.TOOLS, Meaning.REASONING)
# The column of a format that learns a field with this meaning.
_COLUMNS = {Meaning.SYSTEM: "system", Meaning.HISTORY: "history", Meaning.QUESTION: "input"}
_PREFERENCES = (Meaning.PREFERENCE, Meaning.LABEL)
_PREFERENCE_ROWS = (
    "Preferences are learned from `prompt`, `chosen` and `rejected`, or from `prompt`, `completion` and "
    "`label`, in every row; column_map says which columns these are. "
)
_MAX_DEPTH = 8
_MAX_FIELDS = 200
_MAX_CHARACTERS = 200
_MAX_LINES = 5
_FIELDS_IN_MESSAGE = 10
_UNNAMED = "(unnamed)"


class OnUnused(StrEnum):
    """What to do with an upload that has unused fields which change what is learned."""

    REFUSE = "refuse"
    IGNORE = "ignore"


@dataclass
class UnusedField:
    """A field from which nothing is learned.

    `field` is a path, such as `category` or `messages[].tool_calls`. `rows` are those in which it has a
    value; where it is empty in all of them, those that have it. `lines` are the first of these rows.
    """

    field: str
    rows: int
    changes_learning: bool
    meaning: Meaning | None = None
    lines: list[int] = dataclass_field(default_factory=list)

    def as_record(self) -> dict[str, object]:
        """Returns the field as the table of datasets has it."""
        return {
            "field": self.field,
            "rows": self.rows,
            "changes_learning": self.changes_learning,
            "lines": self.lines,
        }


class RowFields:
    """The unused fields of one row: for each path whether it has a value, and what that says."""

    __slots__ = ("found",)

    def __init__(self) -> None:
        self.found: dict[str, tuple[bool, Meaning | None]] = {}

    def add(self, path: str, value: object, meaning: Meaning | None) -> None:
        """Add a field, unless the row does not have it: null, NaN, or an object of nothing else."""
        if not is_absent(value):
            earlier = self.found.get(path)
            self.found[path] = (has_content(value, meaning) or bool(earlier and earlier[0]), meaning)

    def add_columns(
        self,
        columns: Mapping[str, Any],
        used: frozenset[str],
        *,
        has_question: bool,
        has_preference: bool = False,
    ) -> None:
        """Add the columns that are not used.

        A row without a question lacks no part of it. Of a row with preferences, `rejected_images` and its
        like are about one of the answers, and say what follows the first word.
        """
        for name, value in columns.items():
            if name not in used:
                meaning = meaning_of_rest(name) if has_preference else meaning_of(name)
                self.add(name, value, None if meaning is Meaning.QUESTION and not has_question else meaning)


@dataclass
class _Count:
    meaning: Meaning | None
    rows: int = 0
    rows_with_value: int = 0
    lines: list[int] = dataclass_field(default_factory=list)


class UnusedTally:
    """Counts the unused fields of many rows, up to 200 that change what is learned and 200 others."""

    def __init__(self) -> None:
        self._counts: dict[bool, dict[str, _Count]] = {True: {}, False: {}}

    def add(self, line: int, fields: RowFields) -> None:
        """Count the unused fields of a row."""
        for path, (has_value, meaning) in fields.found.items():
            name = printable(path or _UNNAMED)
            counts = self._counts[meaning is not None]
            count = counts.get(name)
            if count is None:
                if len(counts) >= _MAX_FIELDS:
                    continue
                count = counts[name] = _Count(meaning)
            count.rows += 1
            if has_value:
                count.rows_with_value += 1
                if len(count.lines) < _MAX_LINES:
                    count.lines.append(line)

    def result(self) -> list[UnusedField]:
        """Returns the fields, those that change what is learned first."""
        found = [
            UnusedField(
                field=name,
                rows=count.rows_with_value or count.rows,
                changes_learning=count.meaning is not None and count.rows_with_value > 0,
                meaning=count.meaning,
                lines=count.lines,
            )
            for counts in self._counts.values()
            for name, count in counts.items()
        ]
        return sorted(found, key=lambda one: not one.changes_learning)


def refuse_unused(
    unused: list[UnusedField],
    rows: int,
    on_unused: OnUnused = OnUnused.REFUSE,
    *,
    place: str = "line",
    free_columns: Sequence[str] = (),
) -> None:
    """Raise FieldsUnused where a field that changes what is learned is not used, and that is not ignored.

    `rows` is the number of usable rows; `place` is what their numbers count; `free_columns` are columns that
    the format reads and the file lacks.
    """
    lost = [one for one in unused if one.changes_learning]
    if not lost or on_unused is OnUnused.IGNORE:
        return
    shown = "; ".join(_in_words(one, rows, place) for one in lost[:_FIELDS_IN_MESSAGE])
    more = f"; and {len(lost) - _FIELDS_IN_MESSAGE} more fields" if len(lost) > _FIELDS_IN_MESSAGE else ""
    them = "these fields" if len(lost) > 1 else "this field"
    column_map = _mapped(lost, free_columns)
    unsupported = [one for one in lost if one.field not in column_map.values()]
    never = any(one.meaning not in _PREFERENCES for one in unsupported)
    learn = f"To learn it: column_map={shown_column_map(column_map)}. " if column_map else ""
    if any(one.meaning in _PREFERENCES for one in unsupported):
        learn += _PREFERENCE_ROWS
    raise FieldsUnused(
        f"Nothing would be learned from {shown}{more}.{' That is not supported yet.' if never else ''}",
        unused_fields=[one.as_record() for one in lost],
        hint=f"{learn}Remove {them}, or train without {'them' if len(lost) > 1 else 'it'}: on_unused=ignore.",
    )


def _mapped(lost: Sequence[UnusedField], free_columns: Sequence[str]) -> dict[str, str]:
    """Returns a column map with which some of the fields are learned."""
    column_map: dict[str, str] = {}
    for one in lost:
        column = _COLUMNS.get(one.meaning) if one.meaning and "[]." not in one.field else None
        if column in free_columns and column is not None:
            column_map.setdefault(column, one.field)
    return column_map


def describe_unused(unused: Sequence[UnusedField]) -> str:
    """Returns a sentence that names unused fields; empty where there are none."""
    lost = [one for one in unused if one.changes_learning]
    others = [one for one in unused if not one.changes_learning]
    said = [
        f"{start}: {_name(fields)}."
        for start, fields in (
            ("Not used, although their names say that they change what is learned", lost),
            ("Not used", others),
        )
        if fields
    ]
    return " ".join(said)


def has_content(value: object, meaning: Meaning | None) -> bool:
    """Whether a value says anything that a field with this meaning can say, so not where it is a switch."""
    if meaning in _SWITCHED and _is_switch(value):
        return False
    if meaning is Meaning.QUESTION and isinstance(value, bool | int | float):
        return False
    return holds_value(value)


def _is_switch(value: object) -> bool:
    return isinstance(value, bool) or (
        isinstance(value, str) and len(value) <= _MAX_CHARACTERS and value.strip().casefold() in _SWITCHES
    )


def holds_value(value: object, depth: int = 0) -> bool:
    """Whether a value says anything: not null, NaN, empty, `[]` as text, or a list or object of only such."""
    if isinstance(value, str):
        return len(value) > _MAX_CHARACTERS or value.strip() not in EMPTY_TEXTS
    if depth >= _MAX_DEPTH:
        return True
    if isinstance(value, dict):
        return any(holds_value(part, depth + 1) for part in value.values())
    if isinstance(value, list | tuple):
        return any(holds_value(part, depth + 1) for part in value)
    return not is_absent(value)


def is_absent(value: object, depth: int = 0) -> bool:
    """Whether a row does not have a field.

    Parquet and the Hub's library fill fields that a row lacks with null; pandas writes NaN.
    """
    if value is None or value != value:
        return True
    if isinstance(value, dict) and value and depth < _MAX_DEPTH:
        return all(is_absent(part, depth + 1) for part in value.values())
    return False


def printable(name: str) -> str:
    """Returns a name as valid UTF-8 of limited length, which any database and client accepts."""
    return name[:_MAX_CHARACTERS].encode("utf-8", "backslashreplace").decode()[:_MAX_CHARACTERS]


def _name(fields: Sequence[UnusedField]) -> str:
    named = [
        f"{one.field!r} ({one.rows} row{'s' if one.rows != 1 else ''})" for one in fields[:_FIELDS_IN_MESSAGE]
    ]
    more = f" and {len(fields) - len(named)} more" if len(fields) > len(named) else ""
    return ", ".join(named) + more


def _in_words(one: UnusedField, rows: int, place: str) -> str:
    lines = ", ".join(map(str, one.lines)) + (", …" if one.rows > len(one.lines) else "")
    places = f"{place}s" if one.rows > 1 else place
    return f"{one.field!r} ({one.meaning}) in {one.rows} of {rows} rows ({places} {lines})"
