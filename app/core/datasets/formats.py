"""Finds the format that a file's columns have. Knows no rows and no files."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from app.core.datasets.column_maps.guesses import guess_column_maps
from app.core.datasets.field_names import is_function_list, is_system_prompt, normalized
from app.core.datasets.problems import MAX_CHARACTERS_SHOWN, quoted, repeated, shown_column_map
from app.core.datasets.rows import DatasetFormat
from app.core.datasets.unused_fields import holds_value, is_absent
from app.core.errors.datasets import DatasetInvalid


@dataclass(frozen=True)
class _Columns:
    """Columns that a format may have: those without which there is no row, and others."""

    format: DatasetFormat
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.required, *self.optional)


_SHARED = ("system", "tools")
_QUESTION = ("input", "system", "history", "tools")
_KNOWN_COLUMNS = (
    _Columns(DatasetFormat.MESSAGES, ("messages",), _SHARED),
    _Columns(DatasetFormat.PROMPT_COMPLETION, ("prompt", "completion"), _SHARED),
    _Columns(DatasetFormat.TEXT, ("text",)),
    _Columns(DatasetFormat.INSTRUCTION, ("instruction", "output"), _QUESTION),
    _Columns(DatasetFormat.CONVERSATIONS, ("conversations",), _SHARED),
    # TRL, LLaMA-Factory, ms-swift and OpenAI.
    _Columns(DatasetFormat.COMPARISONS, ("chosen", "rejected"), ("prompt", *_SHARED)),
    _Columns(DatasetFormat.COMPARISONS, ("instruction", "chosen", "rejected"), _QUESTION),
    _Columns(DatasetFormat.COMPARISONS, ("conversations", "chosen", "rejected"), _SHARED),
    _Columns(DatasetFormat.COMPARISONS, ("messages", "rejected_response"), _SHARED),
    _Columns(DatasetFormat.COMPARISONS, ("input", "preferred_output", "non_preferred_output")),
    _Columns(DatasetFormat.LABELLED_ANSWERS, ("prompt", "completion", "label"), _SHARED),
    _Columns(DatasetFormat.LABELLED_ANSWERS, ("messages", "label"), _SHARED),
    _Columns(DatasetFormat.LABELLED_ANSWERS, ("conversations", "label"), _SHARED),
    _Columns(DatasetFormat.LABELLED_ANSWERS, ("instruction", "output", "label"), _QUESTION),
)
_KNOWN = list(dict.fromkeys(name for columns in _KNOWN_COLUMNS for name in columns.all))
_MAY_LACK = {name for columns in _KNOWN_COLUMNS for name in columns.optional}
# Required columns, and what others call them: LLaMA-Factory and ms-swift.
_SYNONYMS = {"label": ("kto_tag", "kto_label"), "rejected_response": ("rejected_messages",)}
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
    """A format, the file's own name for each of its columns, and which of them every row has."""

    format: DatasetFormat
    names: Mapping[str, str]
    required: tuple[str, ...]

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
    synonyms = {} if column_map else _find_synonyms(columns)
    fits = _find_fits(columns, synonyms) if synonyms else []
    if fits:
        column_map = synonyms
    else:
        fits = _find_fits(columns, column_map)
    if len(fits) > 1:
        choices = [", ".join(known.required) for known in fits]
        examples = " or ".join(shown_column_map({name: name for name in known.required}) for known in fits)
        raise AmbiguousColumns(
            f"The columns {quoted(columns)} fit several formats: {' or '.join(choices)}.",
            hint=f"Say which with column_map: {examples}.",
        )
    if not fits:
        raise _no_format(columns, column_map)
    [found] = fits
    own = [name for name in found.all if name not in column_map.values()]
    layout = ColumnLayout(found.format, {**{name: name for name in own}, **column_map}, found.required)
    if found.required == ("chosen", "rejected") and not column_map:
        _refuse_unread_question(columns)
    return layout


def optional_columns(layout: ColumnLayout) -> tuple[str, ...]:
    """Returns the columns that a row may have besides the required ones."""
    return next(
        known.optional
        for known in _KNOWN_COLUMNS
        if (known.format, known.required) == (layout.format, layout.required)
    )


def _find_synonyms(columns: list[str]) -> dict[str, str]:
    """Returns the columns of a file that stand for a required one under another name."""
    return {
        name: other
        for name, others in _SYNONYMS.items()
        for other in others
        if name not in columns and other in columns
    }


def _find_fits(columns: list[str], column_map: Mapping[str, str]) -> list[_Columns]:
    """Returns what fits, without what is a part of another that fits: an answer and its label are both read.

    Where the column map names all columns that some of them require, only those fit.
    """
    fits = [known for known in _KNOWN_COLUMNS if not _missing(known, columns, column_map)]
    fits = [known for known in fits if column_map.keys() >= set(known.required)] or fits
    return [known for known in fits if not any(set(known.required) < set(other.required) for other in fits)]


def _refuse_unread_question(columns: list[str]) -> None:
    """Raise UnknownColumns where a column that is not read seems to be the prompt of two answers."""
    question = next((name for name in columns if normalized(name) in _QUESTIONS), None)
    if question is None or "prompt" in columns:
        return
    answers = {"chosen": "chosen", "rejected": "rejected"}
    asked, begun = map(shown_column_map, ({"instruction": question, **answers}, answers))
    raise UnknownColumns(
        f"The columns {quoted(columns)} hold comparisons of answers, and it is not certain that "
        f"{quoted([question])} is their prompt.",
        hint=f"Say so: column_map={asked}. Where the answers begin with their prompt: column_map={begun}.",
    )


def _is_filled(value: object, column: str) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return column == "tools" and isinstance(value, list) and holds_value(value)


def _missing(known: _Columns, columns: list[str], column_map: Mapping[str, str]) -> list[str]:
    """Returns the columns that a format lacks; all of them where the map names another format's columns."""
    if not column_map.keys() <= set(known.all):
        return list(known.required)
    taken = column_map.values()
    return [
        column
        for column in known.required
        if column not in column_map and (column not in columns or column in taken)
    ]


def _no_format(columns: list[str], column_map: Mapping[str, str]) -> UnknownColumns:
    if column_map:
        meant = [known for known in _KNOWN_COLUMNS if column_map.keys() <= set(known.all)]
        lacking = [_missing(known, columns, column_map) for known in meant]
        least = [one for one in lacking if not any(set(other) < set(one) for other in lacking)]
        wanted = " or ".join(dict.fromkeys(map(quoted, least)))
        has = quoted(column_map)
        if not meant:
            return _bad_map(f"column_map mixes columns of several formats: {has}.")
        return _bad_map(
            f"column_map has {has} and still needs {wanted}; the file's columns are {quoted(columns)}."
        )
    example = shown_column_map(_example_map(columns))
    return UnknownColumns(
        f"The columns {quoted(columns)} fit no known format.",
        hint="Use `messages`; or `prompt` and `completion`; or `text`; or `instruction` and `output`; or "
        "`conversations`; for preferences `prompt`, `chosen` and `rejected`; or `prompt`, `completion` and "
        f"`label`. Or say what yours mean with column_map, for example {example}.",
    )


def _example_map(columns: list[str]) -> dict[str, str]:
    """Returns the likeliest column map by the names alone; where none is likely, the first columns."""
    shown = [name[:MAX_CHARACTERS_SHOWN] for name in columns]
    if guesses := guess_column_maps(shown, []):
        return guesses[0].column_map
    return dict(zip(["prompt", "completion"] if len(shown) > 1 else ["text"], shown, strict=False))


def _bad_map(message: str, hint: str | None = None) -> UnknownColumns:
    error = UnknownColumns(message, hint=hint)
    error.param = "column_map"
    return error
