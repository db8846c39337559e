"""`tunesmith adapters`: list, show, download, rm."""

import os
import re
import sys
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import httpx
import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

from app.cli import completions
from app.cli.client import Client, segment
from app.cli.deletion import Yes, delete_each
from app.cli.failures import UsageProblem
from app.cli.invocation import Json, client_of
from app.cli.names import find_adapter
from app.cli.output import age_text, error_console, print_json, show_fields, show_table, size_text, state_text
from app.cli.views import AdapterView

cli = typer.Typer(help="What jobs have made: list, show, download, rm.", no_args_is_help=True)
Name = Annotated[
    str, typer.Argument(metavar="ADAPTER", help="Name or id.", autocompletion=completions.adapters)
]
_STDOUT = Path("-")


@cli.command("list")
def list_adapters(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 50,
    as_json: Json = False,
) -> None:
    """Adapters, the newest first."""
    found = client_of(context).list("/adapters", limit=limit)
    if as_json:
        return print_json({"data": found})
    rows = [
        (one.name, one.base_model, size_text(one.size_bytes), age_text(one.created_at), one.id)
        for one in map(AdapterView.model_validate, found)
    ]
    show_table(
        ("NAME", "BASE MODEL", "SIZE", "MADE", "ID"),
        rows,
        empty="There is no adapter yet: a job makes one, `tunesmith jobs submit FILE`.",
    )


@cli.command()
def show(context: typer.Context, name: Name, as_json: Json = False) -> None:
    """Where an adapter comes from, and how large it is."""
    answer = find_adapter(client_of(context), name)
    if as_json:
        return print_json(answer)
    found = AdapterView.model_validate(answer)
    show_fields(
        [
            ("id", found.id),
            ("name", found.name),
            ("base model", found.base_model),
            ("state", state_text(found.state)),
            ("job", found.job),
            ("step", str(found.step) if found.step else None),
            ("error", found.error.message if found.error else None),
            ("size", size_text(found.size_bytes)),
            ("made", f"{found.created_at.astimezone():%Y-%m-%d %H:%M}"),
        ]
    )


@cli.command()
def download(
    context: typer.Context,
    name: Name,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; `-` for standard output.")
    ] = None,
    archive: Annotated[Literal["zip", "tar"], typer.Option("--format", help="Kind of archive.")] = "zip",
    force: Annotated[bool, typer.Option("--force", "-f", help="Write over a file that is there.")] = False,
    as_json: Json = False,
) -> None:
    """The PEFT folder of an adapter as an archive. Complete or absent: never half a file under its name."""
    client = client_of(context)
    adapter = AdapterView.model_validate(find_adapter(client, name))
    # An adapter's name may contain characters that a file name can't.
    file_name = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', adapter.name)}.{archive}"
    path = output or Path(file_name)
    if path == _STDOUT:
        return _fetch(client, adapter, archive, sys.stdout.buffer)
    if path.is_dir():
        path = path / file_name
    if path.exists() and not force:
        raise UsageProblem(f"{path} is there already.", hint="--force writes over it; -o names another file.")
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as target:
            _fetch(client, adapter, archive, target)
        os.replace(partial, path)
    except OSError as error:
        raise UsageProblem(f"{path} can't be written: {error.strerror}.") from None
    finally:
        partial.unlink(missing_ok=True)
    size = path.stat().st_size
    if as_json:
        return print_json({"path": str(path), "size_bytes": size, "adapter": adapter.id})
    typer.echo(f"{path}  {size_text(size)}")


@cli.command("rm")
def remove(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(metavar="ADAPTER...", autocompletion=completions.adapters)],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Delete adapters and their files; the jobs that made them stay."""
    client = client_of(context)
    ids = [name if "/" not in name else str(find_adapter(client, name)["id"]) for name in names]
    delete_each(client, "/adapters", "adapter", ids, yes=yes, as_json=as_json)


def _fetch(client: Client, adapter: AdapterView, archive: str, target: BinaryIO) -> None:
    screen = error_console()
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
    path = f"/adapters/{segment(adapter.id)}/download"
    try:
        with (
            client.stream("GET", path, params={"format": archive}) as response,
            Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress,
        ):
            bar = progress.add_task("", total=adapter.size_bytes)
            for chunk in response.iter_bytes():
                target.write(chunk)
                progress.advance(bar, len(chunk))
    except httpx.TransportError as error:
        raise client.unreachable(error) from None
