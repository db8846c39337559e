"""Finds the format that a file's columns have. Knows no rows and no files."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from app.core.datasets.column_maps.guesses import guess_column_maps
from app.core.datasets.field_names import (
    Meaning,
    is_function_list,
    is_system_prompt,
    meaning_of,
    normalized,
)
from app.core.datasets.problems import MAX_CHARACTERS_SHOWN, quoted, repeated
from app.core.datasets.rows import DatasetFormat
from app.core.datasets.unused_fields import holds_value, is_absent
from app.core.errors.datasets import DatasetInvalid

_REQUIRED: dict[DatasetFormat, tuple[str, ...]] = {
    DatasetFormat.MESSAGES: ("messages",),
    DatasetFormat.PROMPT_COMPLETION: ("prompt", "completion"),
    DatasetFormat.TEXT: ("text",),
    DatasetFormat.INSTRUCTION: ("instruction", "output"),
    DatasetFormat.CONVERSATIONS: ("conversations",),
}
_OPTIONAL: dict[DatasetFormat, tuple[str, ...]] = {
    DatasetFormat.MESSAGES: ("system", "tools"),
    DatasetFormat.PROMPT_COMPLETION: ("system", "tools"),
    DatasetFormat.INSTRUCTION: ("input", "system", "history", "tools"),
    DatasetFormat.CONVERSATIONS: ("system", "tools"),
}
_KNOWN = list(
    dict.fromkeys(name for columns in (*_REQUIRED.values(), *_OPTIONAL.values()) for name in columns)
)
_MAY_LACK = {name for columns in _OPTIONAL.values() for name in columns}
# Optional columns, and whether another name says the same.
_OTHER_NAMES: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("system", is_system_prompt),
    ("tools", is_function_list),
)
_QUESTIONS = ("prompt", "question", "instruction", "input", "query")


class UnknownColumns(DatasetInvalid):
    """These columns fit no format."""


class AmbiguousColumns(DatasetInvalid):
    """These columns fit several formats."""


@dataclass(frozen=True)
class ColumnLayout:
    """A format, and the file's own name for each of its columns."""

    format: DatasetFormat
    names: Mapping[str, str]

    @cached_property
    def used(self) -> frozenset[str]:
        """The file's columns that the format reads."""
        return frozenset(self.names.values())

    def read_of(self, columns: Iterable[str]) -> list[str]:
        """Returns those of a file's columns that the format may read."""
        return [name for name in columns if name in self.used or name in self._others([name])]

    def names_in(self, record: Mapping[str, object]) -> Mapping[str, str]:
        """Returns `names` for a record: its system prompt, and its functions, may have another known name.

        This is so where no column map says which, and the record has no `system` or `tools`.
        """
        others = {
            column: name
            for name, column in reversed(self._others(record).items())
            if _is_filled(record[name], column) and is_absent(record.get(column))
        }
        return {**self.names, **others} if others else self.names

    def _others(self, columns: Iterable[str]) -> dict[str, str]:
        """Returns the columns whose names say what the format's own optional columns hold, and which."""
        return {
            name: column
            for name in columns
            if name not in self.used
            for column, is_other in _OTHER_NAMES
            if self.names.get(column) == column and is_other(name)
        }


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
    """Returns the format with these columns. Raises UnknownColumns, or AmbiguousColumns where several fit."""
    columns = list(columns)
    # One JSON record may lack an optional column that others of the file have.
    check_mapped_columns(columns, {key: name for key, name in column_map.items() if key not in _MAY_LACK})
    fits = [name for name in _REQUIRED if not _missing(name, columns, column_map)]
    if len(fits) > 1:
        choices = [", ".join(_REQUIRED[name]) for name in fits]
        examples = " or ".join(json.dumps({name: name for name in _REQUIRED[fit]}) for fit in fits)
        raise AmbiguousColumns(
            f"The columns {quoted(columns)} fit several formats: {' or '.join(choices)}.",
            hint=f"Say which with column_map: {examples}.",
        )
    if not fits:
        raise _no_format(columns, column_map)
    own = [name for name in _columns(fits[0]) if name not in column_map.values()]
    return ColumnLayout(fits[0], {**{name: name for name in own}, **column_map})


def optional_columns(name: DatasetFormat) -> tuple[str, ...]:
    """Returns the columns that a row of a format may have besides the required ones."""
    return _OPTIONAL.get(name, ())


def required_columns(name: DatasetFormat) -> tuple[str, ...]:
    """Returns the columns without which there is no row of a format."""
    return _REQUIRED[name]


def _columns(name: DatasetFormat) -> tuple[str, ...]:
    return (*_REQUIRED[name], *optional_columns(name))


def _is_filled(value: object, column: str) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return column == "tools" and isinstance(value, list) and holds_value(value)


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
    if any(meaning_of(name) is Meaning.PREFERENCE for name in columns):
        return _preferences(columns)
    example = json.dumps(_example_map(columns), ensure_ascii=False)
    return UnknownColumns(
        f"The columns {quoted(columns)} fit no known format.",
        hint="Use `messages`; or `prompt` and `completion`; or `text`; or `instruction` and `output`; or "
        f"`conversations`. Or say what yours mean with column_map, for example {example}.",
    )


def _example_map(columns: list[str]) -> dict[str, str]:
    """Returns the likeliest column map by the names alone; where none is likely, the first columns."""
    shown = [name[:MAX_CHARACTERS_SHOWN] for name in columns]
    if guesses := guess_column_maps(shown, []):
        return guesses[0].column_map
    return dict(zip(["prompt", "completion"] if len(shown) > 1 else ["text"], shown, strict=False))


def _preferences(columns: list[str]) -> UnknownColumns:
    chosen = next((name for name in columns if normalized(name).startswith("chosen")), None)
    hint = "Write the answers to learn from as `messages`, or as `prompt` and `completion`."
    if chosen:
        question = next((name for name in columns if normalized(name) in _QUESTIONS), None)
        column_map = {"prompt": question, "completion": chosen} if question else {"messages": chosen}
        hint = (
            f"To learn from the chosen answers alone: column_map={json.dumps(column_map)}, on_unused=ignore."
        )
    return UnknownColumns(
        f"The columns {quoted(columns)} hold preferences between answers, which can't be learned from yet.",
        hint=hint,
    )


def _bad_map(message: str, hint: str | None = None) -> UnknownColumns:
    error = UnknownColumns(message, hint=hint)
    error.param = "column_map"
    return error
