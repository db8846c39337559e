"""`tunesmith adapters`: list, show, download, import, rm."""

import json
import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from app.cli import completions
from app.cli.adapters.imports import upload_archive, wait_until_verified
from app.cli.adapters.views import AdapterView
from app.cli.connection.client import segment
from app.cli.connection.downloads import STDOUT, choose_path, download as download_file
from app.cli.connection.invocation import Json, client_of
from app.cli.deletion import Yes, delete_each
from app.cli.failures import CommandFailed
from app.cli.names import find_adapter
from app.cli.output import age_text, note, print_json, show_fields, show_table, size_text, state_text

cli = typer.Typer(help="What jobs have made, and what was imported.", no_args_is_help=True)
Name = Annotated[
    str, typer.Argument(metavar="ADAPTER", help="Name or id.", autocompletion=completions.adapters)
]


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
    path = choose_path(output, file_name, force=force)
    url_path = f"/adapters/{segment(adapter.id)}/download"
    size = download_file(client, url_path, path, params={"format": archive}, size=adapter.size_bytes)
    if path == STDOUT:
        return
    if as_json:
        return print_json({"path": str(path), "size_bytes": size, "adapter": adapter.id})
    typer.echo(f"{path}  {size_text(size)}")


@cli.command("import")
def import_adapter(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A folder that PEFT saved, or a zip or tar of it.")],
    name: Annotated[str | None, typer.Option(help="Name of the adapter; default: the file's.")] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            help="Its base model; default: the one that its adapter_config.json names.",
            autocompletion=completions.models,
        ),
    ] = None,
    load_in_4bit: Annotated[
        bool | None,
        typer.Option(help="Whether its base weights were in 4 bits; default: as its files say, or no."),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Until the engine has answered with it.")] = True,
    as_json: Json = False,
) -> None:
    """Take in an adapter that was trained elsewhere. Exit status 1 where it can't be used."""
    client = client_of(context)
    fields = {"name": name, "base_model": base_model}
    if load_in_4bit is not None:
        fields["quantization"] = json.dumps({"load_in_4bit": load_in_4bit})
    answer = upload_archive(client, file, {key: value for key, value in fields.items() if value is not None})
    if wait:
        answer = wait_until_verified(client, answer)
    found = AdapterView.model_validate(answer)
    if as_json:
        print_json(answer)
    else:
        typer.echo(f"{found.id}  {found.name}  {found.state}")
    if found.state == "failed" and found.error:
        raise CommandFailed(found.error.message, code=found.error.code, hint=found.error.hint)
    if found.state == "ready" and not as_json:
        note(f"Talk to it: `tunesmith chat {found.name}`", "dim")


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
