"""`tunesmith datasets`: add, inspect, list, show, rows, preview, rm."""

import json
import sys
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from app.cli import completions
from app.cli.connection.client import Client, Params
from app.cli.connection.invocation import Json, client_of
from app.cli.datasets import uploads
from app.cli.datasets.samples import (
    DatasetRowView,
    FileSampleView,
    offer_mapping,
    print_row,
    show_add_command,
    show_sample,
)
from app.cli.datasets.views import DatasetView, PreviewRowView, PreviewView, TokenView
from app.cli.deletion import Yes, delete_each
from app.cli.failures import CommandFailed, UsageProblem
from app.cli.names import find_dataset, find_dataset_id
from app.cli.output import (
    age_text,
    clean,
    console,
    error_console,
    note,
    print_json,
    show_fields,
    show_table,
    state_text,
)

cli = typer.Typer(
    help="Rows to learn from: add, inspect, list, show, rows, preview, rm.", no_args_is_help=True
)
Name = Annotated[
    str, typer.Argument(metavar="DATASET", help="Id or name.", autocompletion=completions.datasets)
]
Columns = Annotated[
    list[str] | None,
    typer.Option(metavar="FORMAT=YOURS", help="What a column of yours means: --column prompt=question."),
]
_FETCH_POLL_SECONDS = 1.0
_MAX_PROBLEMS = 20


class UnusedChoice(StrEnum):
    """What to do with a dataset that has unused fields which change what is learned."""

    REFUSE = "refuse"
    IGNORE = "ignore"


@cli.command()
def add(
    context: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(help="JSON lines, JSON, CSV, TSV or Parquet; gzip too.", show_default=False),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the dataset; default: the file's.")] = None,
    column: Columns = None,
    skip_problems: Annotated[
        bool, typer.Option("--skip-problems", help="Leave bad rows out instead of refusing the file.")
    ] = False,
    on_unused: Annotated[
        UnusedChoice,
        typer.Option(
            help="What to do where a field that changes what is learned (tools, images) is not used."
        ),
    ] = UnusedChoice.REFUSE,
    hub: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="A dataset of the Hub instead of a file.")
    ] = None,
    config: Annotated[str | None, typer.Option(help="With --hub: its configuration.")] = None,
    split: Annotated[str | None, typer.Option(help="With --hub: its split; default: train.")] = None,
    revision: Annotated[str | None, typer.Option(help="With --hub: branch, tag or commit.")] = None,
    wait: Annotated[bool, typer.Option(help="With --hub: until a worker has fetched it.")] = True,
    as_json: Json = False,
) -> None:
    """Upload a file of rows, or have a worker fetch a dataset of the Hub."""
    client = client_of(context)
    if (file is None) == (hub is None):
        raise UsageProblem(
            "Give either a file or --hub.", hint="For example `tunesmith datasets add rows.jsonl`."
        )
    fields = _fields(name, column or [], skip_problems, on_unused)
    if file is not None:
        answer = _upload(client, file, fields, as_json=as_json)
    else:
        named = {"hub_dataset": hub, "config": config, "split": split, "revision": revision, "name": name}
        body: dict[str, Any] = {key: value for key, value in named.items() if value is not None}
        body |= {"column_map": json.loads(fields["column_map"])} if column else {}
        body |= {key: fields[key] for key in ("on_problem", "on_unused") if key in fields}
        answer = client.create("/datasets", body)
        if wait:
            answer = _wait_for_rows(client, answer)
    _show_dataset(answer, as_json=as_json)


@cli.command()
def inspect(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="JSON lines, JSON, CSV, TSV or Parquet; gzip too.")],
    column: Columns = None,
    as_json: Json = False,
) -> None:
    """The first rows of a file, what its columns may mean, and how they would be read; nothing is stored."""
    fields = _fields(None, column or [], False, UnusedChoice.REFUSE)
    answer = uploads.inspect(client_of(context), file, fields)
    if as_json:
        return print_json(answer)
    sample = FileSampleView.model_validate(answer)
    show_sample(sample, file)
    show_add_command(sample, file)


@cli.command("list")
def list_datasets(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 50,
    as_json: Json = False,
) -> None:
    """Datasets, the newest first."""
    found = client_of(context).list("/datasets", limit=limit)
    if as_json:
        return print_json({"data": found})
    rows = [
        (one.id, one.name, state_text(one.state), one.format or "", f"{one.rows:,}", age_text(one.created_at))
        for one in map(DatasetView.model_validate, found)
    ]
    show_table(
        ("ID", "NAME", "STATE", "FORMAT", "ROWS", "ADDED"),
        rows,
        empty="There is no dataset yet: `tunesmith datasets add FILE` uploads one.",
    )


@cli.command()
def show(context: typer.Context, name: Name, as_json: Json = False) -> None:
    """Format, rows, columns, and the lines that were left out."""
    _show_dataset(find_dataset(client_of(context), name), as_json=as_json)


@cli.command()
def rows(
    context: typer.Context,
    name: Name,
    limit: Annotated[int, typer.Option(min=1, max=100, help="So many rows.")] = 3,
    after: Annotated[int, typer.Option(min=0, help="Only rows after this line of the file.")] = 0,
    as_json: Json = False,
) -> None:
    """Rows as they were read: turns with thoughts, calls of functions and results, or texts."""
    client = client_of(context)
    answer = client.get(f"/datasets/{find_dataset_id(client, name)}/rows", {"limit": limit, "after": after})
    if as_json:
        return print_json(answer)
    for row in map(DatasetRowView.model_validate, answer["data"]):
        console().print(Text(f"── line {row.line}", style="bold"))
        print_row(row.row)


@cli.command()
def preview(
    context: typer.Context,
    name: Name,
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="Base model whose template is used.", autocompletion=completions.models
        ),
    ],
    limit: Annotated[int, typer.Option(min=1, max=50, metavar="N", help="So many rows.")] = 3,
    after: Annotated[
        int, typer.Option(min=0, metavar="LINE", help="Only rows after this line of the file.")
    ] = 0,
    assistant_only_loss: Annotated[
        bool, typer.Option("--assistant-only-loss", help="Mark as a job with this setting would train.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Rows as the model will see them; what it learns from is marked."""
    client = client_of(context)
    params: Params = {
        "base_model": model,
        "limit": limit,
        "after": after,
        "assistant_only_loss": assistant_only_loss,
    }
    answer = client.get(f"/datasets/{find_dataset_id(client, name)}/preview", params)
    if as_json:
        return print_json(answer)
    found = PreviewView.model_validate(answer)
    screen = console()
    for row in found.data:
        screen.print(_row_text(row, marked=not screen.is_terminal or screen.no_color))
    how = "green" if screen.is_terminal else "between « and »"
    note(f"What the model learns from is {how}.", "dim")
    for warning in found.warnings:
        note(f"Warning: {warning.message}", "yellow")


@cli.command("rm")
def remove(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(metavar="DATASET...", autocompletion=completions.datasets)],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Delete datasets that no waiting or running job needs."""
    client = client_of(context)
    ids = [find_dataset_id(client, name) for name in names]
    delete_each(client, "/datasets", "dataset", ids, yes=yes, as_json=as_json)


def _upload(client: Client, file: Path, fields: dict[str, str], *, as_json: bool) -> Any:
    """Upload a file; on a terminal, ask what columns mean that are not known."""
    try:
        return uploads.upload(client, file, fields)
    except CommandFailed as failure:
        if failure.sample is None:
            raise
        return uploads.upload(client, file, fields | offer_mapping(failure, file, as_json=as_json))


def _fields(
    name: str | None, columns: list[str], skip_problems: bool, on_unused: UnusedChoice
) -> dict[str, str]:
    fields = {"name": name} if name else {}
    pairs = [column.partition("=") for column in columns]
    for (theirs, equals, yours), column in zip(pairs, columns, strict=True):
        if not (theirs and equals and yours):
            raise UsageProblem(
                f"--column {column} is not of the form FORMAT=YOURS.",
                hint="For example --column prompt=question",
            )
    if pairs:
        fields["column_map"] = json.dumps({theirs: yours for theirs, _, yours in pairs})
    if skip_problems:
        fields["on_problem"] = "skip"
    if on_unused is UnusedChoice.IGNORE:
        fields["on_unused"] = "ignore"
    return fields


def _wait_for_rows(client: Client, dataset: Any) -> Any:
    with error_console().status("A worker fetches it from the Hub") as status:
        while dataset["state"] == "fetching":
            time.sleep(_FETCH_POLL_SECONDS)
            dataset = client.get(f"/datasets/{dataset['id']}")
            status.update(f"A worker fetches it from the Hub: {dataset['rows']:,} rows")
    return dataset


def _show_dataset(answer: Any, *, as_json: bool) -> None:
    """Show a dataset. Raises CommandFailed for one that could not be fetched."""
    found = DatasetView.model_validate(answer)
    if as_json:
        print_json(answer)
    else:
        show_fields(
            [
                ("id", found.id),
                ("name", found.name),
                ("state", state_text(found.state)),
                ("format", found.format),
                ("rows", f"{found.rows:,}"),
                ("columns", ", ".join(found.columns) or None),
                ("hub", found.hub["hub_dataset"] if found.hub else None),
                ("left out", f"{found.problem_count:,} rows" if found.problem_count else None),
                ("not used", _unused_text(found)),
                ("added", f"{found.created_at.astimezone():%Y-%m-%d %H:%M}"),
            ]
        )
        for problem in found.problems[:_MAX_PROBLEMS]:
            sys.stdout.write(f"  line {problem.line}: {clean(problem.message)}\n")
    if found.error:
        raise CommandFailed(found.error.message, code=found.error.code, hint=found.error.hint)
    if any(one.changes_learning for one in found.unused_fields):
        note("Warning: the dataset says more than is learned from it; see its unused fields.", "yellow")


def _unused_text(found: DatasetView) -> str | None:
    named = [
        f"{clean(one.field)} ({one.rows:,} row{'' if one.rows == 1 else 's'}"
        + (", changes what is learned)" if one.changes_learning else ")")
        for one in found.unused_fields[:_MAX_PROBLEMS]
    ]
    more = len(found.unused_fields) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "") or None


def _row_text(row: PreviewRowView, *, marked: bool) -> Text:
    text = Text.assemble((f"── line {row.line}" + (" (cut)" if row.truncated else ""), "bold"), "\n")
    if row.problem:
        return text.append(clean(row.problem) + "\n", style="red")
    for notice in row.notices:
        text.append(clean(notice) + "\n", style="yellow")
    if row.answers:
        text.append(f"prompt, {_tokens_text(row.token_count, len(row.tokens))}\n", style="bold")
    _append_tokens(text, row.tokens, marked=marked)
    for answer in row.answers:
        names = {"completion": "good answer" if answer.is_good else "bad answer"}
        counted = _tokens_text(answer.token_count, len(answer.tokens))
        text.append(f"{names.get(answer.name, answer.name)}, {counted}\n", style="bold")
        _append_tokens(text, answer.tokens, marked=marked)
    return text


def _tokens_text(count: int, shown: int) -> str:
    return f"{count:,} token{'' if count == 1 else 's'}" + (f", cut to {shown:,}" if shown < count else "")


def _append_tokens(text: Text, tokens: Sequence[TokenView], *, marked: bool) -> None:
    """Add tokens as a line; those that are learned are green, or between « and »."""
    is_trained = False
    for token in tokens:
        if marked and token.trained != is_trained:
            text.append("«" if token.trained else "»")
        is_trained = token.trained
        text.append(clean(token.text), style="green" if token.trained else "")
    text.append("»\n" if marked and is_trained else "\n")
