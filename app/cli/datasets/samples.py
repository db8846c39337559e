"""Shows the first records of a file, what its columns may mean, and rows as they are read."""

import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from rich.text import Text

from app.cli.datasets.views import UnusedFieldView
from app.cli.failures import CommandFailed, LineProblem
from app.cli.output import clean, console, note, show_failure, show_table

_CELL = 48
_MAX_SHOWN = 20
_PREFERRED, _REJECTED = ("chosen", "preferred"), ("rejected", "dispreferred", "non_preferred")


class RecordView(BaseModel):
    """A record of a file, as it is there."""

    line: int
    values: dict[str, Any]


class DatasetRowView(BaseModel):
    """A row as it is read."""

    line: int
    row: dict[str, Any]


class ReadingErrorView(BaseModel):
    """Why a file would be refused."""

    code: str
    message: str
    hint: str | None = None


class FileSampleView(BaseModel):
    """The first records of a file, and how they are read with `column_map`."""

    columns: list[str]
    records: list[RecordView]
    column_map: dict[str, str]
    format: str | None = None
    rows: list[DatasetRowView]
    problems: list[LineProblem] = []
    unused_fields: list[UnusedFieldView] = []
    error: ReadingErrorView | None = None

    @property
    def lost(self) -> list[str]:
        """The fields that change what is learned and are not used."""
        return [one.field for one in self.unused_fields if one.changes_learning]


def show_sample(sample: FileSampleView, path: Path, *, to_error: bool = False) -> None:
    """Write the columns with their first values, and the first row as it is read."""
    meanings = {column: meaning for meaning, column in sample.column_map.items()}
    rows = [
        (column, meanings.get(column) or _own_meaning(sample, column), *_first_values(sample, column))
        for column in sample.columns[:_MAX_SHOWN]
    ]
    heads = ("COLUMN", "READ AS", *("FIRST ROW", "SECOND ROW")[: len(sample.records)])
    show_table(heads, rows, empty="The file has no columns.", to_error=to_error)
    if len(sample.columns) > _MAX_SHOWN:
        note(f"… and {len(sample.columns) - _MAX_SHOWN} more columns", "dim")
    if sample.rows:
        note(f"The first row of {path.name} is read as {sample.format}:", "dim")
        print_row(sample.rows[0].row, to_error=to_error)
    _show_pair(sample, to_error=to_error)


def print_row(row: Mapping[str, Any], *, to_error: bool = False) -> None:
    """Write a row as it is read: its turns with thoughts, calls and results, or its texts."""
    screen = console(to_error=to_error)
    for title, text in _turns(row):
        screen.print(Text.assemble((f"  {title}: ", "bold"), clean(text)))


def offer_mapping(failure: CommandFailed, path: Path, *, as_json: bool) -> dict[str, str]:
    """Ask whether a file that was refused is to be added as its columns are guessed.

    Returns the fields of the upload that do so. Raises the failure, with the command that does so as its
    hint, where nothing is guessed, nobody can be asked, or the person declines.
    """
    sample = FileSampleView.model_validate(failure.sample)
    if not sample.rows:
        failure.hint = (
            f"{failure.hint or ''} `tunesmith datasets inspect {_quoted(path)}` shows its first rows."
        )
        raise failure
    if as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        failure.hint = f"{_add_command(sample, path)} adds it as its columns are guessed."
        if not sample.column_map:
            failure.hint = f"{_add_command(sample, path)} adds it without these fields."
        raise failure
    failure.hint = None
    show_failure(failure, as_json=False)
    show_sample(sample, path, to_error=True)
    without = f" without {', '.join(map(clean, sample.lost))}" if sample.lost else ""
    if not typer.confirm(f"Add it as shown{without}?", default=not sample.lost, err=True):
        raise CommandFailed(
            "Nothing was added.",
            code="not_confirmed",
            hint=f"{_add_command(sample, path)} adds it as shown; --column MEANING=COLUMN says otherwise.",
        )
    fields = {"column_map": json.dumps(sample.column_map)} if sample.column_map else {}
    return {**fields, "on_unused": "ignore"} if sample.lost else fields


def show_add_command(sample: FileSampleView, path: Path) -> None:
    """Write the command that adds the file as it is shown, or why it would be refused."""
    if sample.rows:
        note(f"{_add_command(sample, path)} adds it so.", "dim")
    if sample.error:
        note(f"Warning: {sample.error.message} {sample.error.hint or ''}", "yellow")


def _add_command(sample: FileSampleView, path: Path) -> str:
    columns = "".join(
        f" --column {shlex.quote(f'{meaning}={column}')}" for meaning, column in sample.column_map.items()
    )
    unused = " --on-unused ignore" if sample.lost else ""
    return f"`tunesmith datasets add {_quoted(path)}{columns}{unused}`"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _own_meaning(sample: FileSampleView, column: str) -> str:
    unused = {one.field for one in sample.unused_fields}
    return "not used" if column in unused or sample.format is None or sample.column_map else column


def _first_values(sample: FileSampleView, column: str) -> Iterator[str]:
    for record in sample.records[:2]:
        text = _as_text(record.values.get(column))
        yield text if len(text) <= _CELL else text[:_CELL] + "…"


def _show_pair(sample: FileSampleView, *, to_error: bool) -> None:
    """Write the first preferred and rejected answers, where the file has both and is not read so."""
    values = sample.records[0].values if sample.records and sample.format != "comparisons" else {}
    found = [
        next((name for name in values if name.lower().startswith(names)), None)
        for names in (_PREFERRED, _REJECTED)
    ]
    if None in found:
        return
    note("Read so, the answers are not compared: rejected ones are not used.", "yellow")
    screen = console(to_error=to_error)
    for title, name in zip(("chosen", "rejected"), found, strict=True):
        screen.print(Text.assemble((f"  {title}: ", "bold"), clean(_as_text(values[str(name)]))))


def _turns(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for tool in row.get("tools", ()):
        yield "function", f"{tool['function']['name']}: {tool['function'].get('description') or ''}"
    if "messages" in row:
        yield from _message_turns(row["messages"])
        return
    for name, part in row.items():
        title = name
        if "label" in row and name == "completion":
            title = "good answer" if row["label"] else "bad answer"
        if isinstance(part, str):
            yield title, part
        elif isinstance(part, list) and name != "tools":
            yield from (
                (f"{title}, {role}" if name != "prompt" else role, text)
                for role, text in _message_turns(part)
            )


def _message_turns(messages: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for message in messages:
        role, calls = message["role"], message.get("tool_calls", ())
        if message.get("reasoning_content"):
            yield f"{role} thinks", message["reasoning_content"]
        left_out = " (not learned)" if message.get("weight") == 0 else ""
        source = message.get("name") or message.get("tool_call_id") if role == "tool" else None
        if message["content"] or not calls:
            yield f"{role}{f' {source}' if source else ''}{left_out}", message["content"]
        for call in calls:
            yield f"{role} calls", f"{call['function']['name']}({_as_text(call['function']['arguments'])})"


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
