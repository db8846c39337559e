"""Writes tables, fields, JSON and errors. Control characters in what the API sends are removed."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.cli.failures import CommandFailed
from app.cli.words import in_commands

_MAX_PROBLEMS = 20
_UNITS = ("B", "kB", "MB", "GB", "TB")
_GAP = 2
_NAMES = ("NAME", "BASE MODEL", "COLUMN")
_ALWAYS_SHOWN = ("ID", "NAME", "COLUMN")
# Narrower than this, a folded name can't be read.
_FOLDED_WIDTH = 24
STATE_STYLES = {
    "queued": "yellow",
    "running": "cyan",
    "paused": "magenta",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "bright_black",
    "ready": "green",
    "fetching": "cyan",
    "importing": "cyan",
}


def console(*, to_error: bool = False) -> Console:
    """A console on standard output; made at each call, so that a replaced `sys.stdout` is used."""
    if to_error:
        return error_console()
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def error_console() -> Console:
    """A console on standard error, for everything but a command's result."""
    return Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())


def clean(text: str) -> str:
    """The text without control characters, which could steer a terminal."""
    return "".join(char for char in text if char in "\n\t" or (char.isprintable() or char == "\u00a0"))


def print_json(answer: object) -> None:
    """Write one JSON document to standard output."""
    sys.stdout.write(json.dumps(answer, ensure_ascii=False, indent=2) + "\n")


def print_json_line(answer: object) -> None:
    """Write one line of JSON to standard output, unbuffered."""
    sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def note(message: str, style: str = "") -> None:
    """Write a message for the person to standard error."""
    error_console().print(Text(clean(message), style=style))


def write_thought(text: str) -> None:
    """Write a piece of a model's thoughts for the person to standard error, without a line's end."""
    error_console().print(Text(clean(text), style="dim"), end="")


def show_failure(failure: CommandFailed, *, as_json: bool) -> None:
    """Write an error and its hint to standard error."""
    if as_json:
        sys.stderr.write(json.dumps({"error": _error_json(failure)}, ensure_ascii=False) + "\n")
        return
    screen = error_console()
    screen.print(Text.assemble(("Error: ", "bold red"), clean(in_commands(failure.message))))
    for problem in failure.problems[:_MAX_PROBLEMS]:
        screen.print(Text.assemble((f"  line {problem.line}: ", "bold"), clean(problem.message)))
    if len(failure.problems) > _MAX_PROBLEMS:
        screen.print(f"  … and {len(failure.problems) - _MAX_PROBLEMS} more lines")
    if failure.hint:
        screen.print(Text.assemble(("Hint: ", "bold yellow"), clean(in_commands(failure.hint))))


def show_table(
    columns: Sequence[str], rows: Iterable[Sequence[str | Text]], *, empty: str, to_error: bool = False
) -> None:
    """Write rows under their headings, or the message `empty` where there are none. A pipe gets tabs.

    Other commands accept ids and names as arguments: on a narrow terminal names are folded, other columns are
    left out from the right, with a note that says so, and nothing is cut.
    """
    listed = [[_cell(value) for value in row] for row in rows]
    if not listed:
        return note(empty)
    stream = sys.stderr if to_error else sys.stdout
    if not stream.isatty():
        lines = ["\t".join(columns), *("\t".join(cell.plain for cell in row) for row in listed)]
        stream.write("\n".join(lines) + "\n")
        return
    screen = console(to_error=to_error)
    widths = [max(cell_len(text) for text in texts) for texts in _texts(columns, listed)]
    needed = fit_columns(dict(zip(columns, widths, strict=True)), screen.width)
    shown = [place for place, column in enumerate(columns) if column in needed]
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, _GAP, 0, 0))
    for column, width in needed.items():
        table.add_column(column, no_wrap=column not in _NAMES, overflow="fold", min_width=width)
    for row in listed:
        table.add_row(*(row[place] for place in shown))
    screen.print(table)
    left_out = ", ".join(column for column in columns if column not in needed)
    if left_out:
        note(f"Too narrow for {left_out}: a wider terminal, a pipe or --json shows them.", "dim")


def fit_columns(widths: Mapping[str, int], screen_width: int) -> dict[str, int]:
    """The columns that a screen shows, and the least width of each, from the widths of their contents.

    Ids and names are always shown; a name is folded where an id can be given in its place.
    """
    needed = {
        column: min(width, _FOLDED_WIDTH if column in _NAMES and "ID" in widths else screen_width)
        for column, width in widths.items()
    }
    for column in reversed(list(widths)):
        if sum(needed.values()) + _GAP * (len(needed) - 1) <= screen_width:
            break
        if column not in _ALWAYS_SHOWN:
            del needed[column]
    return needed


def show_fields(fields: Iterable[tuple[str, str | Text | None]]) -> None:
    """Write names and values, one a line; a value of None is left out."""
    shown = [(name, _cell(value)) for name, value in fields if value is not None]
    width = max(len(name) for name, _ in shown)
    if not sys.stdout.isatty():
        sys.stdout.write("".join(f"{name:<{width}}  {value.plain}\n" for name, value in shown))
        return
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in shown:
        table.add_row(name, value)
    console().print(table)


def state_text(state: str, phase: str | None = None) -> Text:
    """A state and its phase in the state's colour."""
    return Text(f"{state}: {phase}" if phase else state, style=STATE_STYLES.get(state, ""))


def size_text(size: float) -> str:
    """A size in bytes with its unit: `512 kB`, `1.2 GB`."""
    for unit in _UNITS:
        if size < 1000 or unit == _UNITS[-1]:
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit in ("B", "kB") else f"{size:.1f} {unit}"


def duration_text(seconds: float) -> str:
    """A duration in its two largest units: `45 s`, `20 min 11 s`, `1 h 2 min`."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minute} min"
    return f"{minute} min {second} s" if minute else f"{second} s"


def age_text(moment: datetime) -> str:
    """How long ago a moment was, in its largest whole unit: `3 h ago`."""
    seconds = max(0.0, (datetime.now(UTC) - moment).total_seconds())
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _texts(columns: Sequence[str], rows: Sequence[Sequence[Text]]) -> Iterator[list[str]]:
    for place, column in enumerate(columns):
        yield [column, *(row[place].plain for row in rows)]


def _cell(value: str | Text) -> Text:
    if isinstance(value, Text):
        return value
    return Text(" ".join(clean(value).split("\n")).replace("\t", " "))


def _error_json(failure: CommandFailed) -> dict[str, object]:
    error: dict[str, object] = {
        "code": failure.code,
        "message": failure.message,
        "param": failure.param,
        "hint": failure.hint,
    }
    if failure.problems:
        error["problems"] = [{"line": one.line, "message": one.message} for one in failure.problems]
    return error
