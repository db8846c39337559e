"""`tunesmith exports`: create, list, show, download, priority, cancel, retry, rm."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from app.cli import completions
from app.cli.connection.client import Client, segment
from app.cli.connection.downloads import STDOUT, choose_path, download as download_file
from app.cli.connection.invocation import Json, client_of
from app.cli.deletion import Yes, delete_each
from app.cli.exports.views import ExportedFileView, ExportView
from app.cli.failures import UsageProblem
from app.cli.names import find_adapter
from app.cli.output import (
    age_text,
    note,
    print_json,
    show_fields,
    show_table,
    size_text,
    state_text,
)
from app.cli.work import (
    TAKES_NEGATIVES,
    NewPriority,
    PriorityOption,
    change_priority,
    check_success,
    place_text,
    request_change,
    wait_for_end,
)

cli = typer.Typer(help="Adapters in other formats: merged models, GGUF, the Hub.", no_args_is_help=True)
Export = Annotated[str, typer.Argument(metavar="EXPORT", help="Id, from `tunesmith exports list`.")]
Wait = Annotated[bool, typer.Option(help="Until it has ended.")]


@cli.command()
def create(
    context: typer.Context,
    adapter: Annotated[
        str, typer.Argument(metavar="ADAPTER", help="Name or id.", autocompletion=completions.adapters)
    ],
    kind: Annotated[
        Literal["adapter", "merged", "fp8", "awq", "gptq", "pytorch_bin", "gguf", "gguf_lora", "hub"],
        typer.Option(
            "--format",
            "-f",
            metavar="FORMAT",
            help="adapter, merged, fp8, awq, gptq, pytorch_bin, gguf, gguf_lora or hub; docs/exports.md "
            "says more.",
        ),
    ] = "gguf",
    weights: Annotated[
        list[str] | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="Of GGUF: q8_0, q6_k, q5_k_m, q4_k_m, iq4_xs, q3_k_m, q4_0, f16, bf16 and others. Given "
            "several times, a file each.",
        ),
    ] = None,
    importance_matrix: Annotated[
        bool,
        typer.Option(
            "--importance-matrix",
            help="Of K-quants and iq4_xs: round by what the rows of the adapter's dataset use most.",
        ),
    ] = False,
    calibration_tokens: Annotated[
        int | None,
        typer.Option(
            "--calibration-tokens",
            metavar="TOKENS",
            help="Of awq and gptq: how many tokens of the adapter's rows are used, at most.",
        ),
    ] = None,
    base: Annotated[
        Literal["dequantized", "original"] | None,
        typer.Option(metavar="WEIGHTS", help="Merge into the base weights dequantized, or original."),
    ] = None,
    repository: Annotated[
        str | None,
        typer.Option("--repository", metavar="OWNER/NAME", help="Of the Hub."),
    ] = None,
    private: Annotated[bool | None, typer.Option(help="Of the Hub: whether only its owner sees it.")] = None,
    revision: Annotated[
        str | None,
        typer.Option(metavar="BRANCH", help="Of the Hub; made where it is missing; default: main."),
    ] = None,
    tags: Annotated[
        list[str] | None,
        typer.Option("--tag", metavar="TAG", help="Of the Hub: a tag of the model card; may be repeated."),
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Of the Hub: push into a repository that exists.")
    ] = False,
    priority: PriorityOption = None,
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """Ask a worker for an adapter in another format. With --wait, exit status 1 unless it succeeds."""
    client = client_of(context)
    given = {
        "type": weights[0] if weights and len(weights) == 1 else weights or None,
        "importance_matrix": importance_matrix or None,
        "calibration_tokens": calibration_tokens,
        "base": base,
        "repository": repository,
        "private": private,
        "revision": revision,
        "tags": tags or None,
        "update": update or None,
        "priority": priority,
    }
    body = {"format": kind, **{name: value for name, value in given.items() if value is not None}}
    found = find_adapter(client, adapter)
    answer = client.create(f"/adapters/{segment(str(found['id']))}/exports", body)
    if wait:
        return _finish(_wait(client, answer), as_json=as_json)
    if as_json:
        return print_json(answer)
    typer.echo(answer["id"])
    note(f"Queued. `tunesmith exports show {answer['id']}` shows how far it is.", "dim")


@cli.command("list")
def list_exports(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 50,
    as_json: Json = False,
) -> None:
    """Exports, the newest first."""
    found = client_of(context).list("/exports", limit=limit)
    if as_json:
        return print_json({"data": found})
    rows = [
        (
            one.id,
            one.adapter_name,
            _format_text(one),
            state_text(one.state, one.phase),
            size_text(one.size_bytes) if one.files else "",
            age_text(one.created_at),
        )
        for one in map(ExportView.model_validate, found)
    ]
    show_table(
        ("ID", "NAME", "FORMAT", "STATE", "SIZE", "ASKED FOR"),
        rows,
        empty="There is no export yet: `tunesmith exports create ADAPTER --format gguf` makes one.",
    )


@cli.command()
def show(context: typer.Context, export: Export, wait: Wait = False, as_json: Json = False) -> None:
    """State, progress, agreement with the live adapter, files, and the error of a failed export."""
    client = client_of(context)
    answer = client.get(f"/exports/{segment(export)}")
    if wait:
        return _finish(_wait(client, answer), as_json=as_json)
    if as_json:
        return print_json(answer)
    _show(ExportView.model_validate(answer))


@cli.command()
def download(
    context: typer.Context,
    export: Export,
    file: Annotated[str | None, typer.Option(help="One of several files; default: a tar of all.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; `-` for standard output.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Write over a file that is there.")] = False,
    as_json: Json = False,
) -> None:
    """The files of an export. A connection that breaks is continued."""
    client = client_of(context)
    found = ExportView.model_validate(client.get(f"/exports/{segment(export)}"))
    files = [one for one in found.files if file in (None, one.name)]
    if file is not None and not files:
        names = ", ".join(one.name for one in found.files)
        raise UsageProblem(f"The export has no file {file!r}.", hint=f"It has: {names}.")
    name = files[0].name if len(files) == 1 else f"{found.adapter_name}-{found.spec['format']}.tar"
    path = choose_path(output, name, force=force)
    size = download_file(
        client,
        f"/exports/{segment(found.id)}/download",
        path,
        params={"file": file},
        size=sum(one.size_bytes for one in files),
    )
    if path == STDOUT:
        return
    if as_json:
        return print_json({"path": str(path), "size_bytes": size, "export": found.id})
    typer.echo(f"{path}  {size_text(size)}")


@cli.command("priority", context_settings=TAKES_NEGATIVES)
def set_priority(
    context: typer.Context, export: Export, priority: NewPriority, as_json: Json = False
) -> None:
    """Give a waiting export another place in the queue."""
    change_priority(context, f"/exports/{segment(export)}", priority, as_json=as_json)


@cli.command()
def cancel(context: typer.Context, export: Export, as_json: Json = False) -> None:
    """End an export; what it had made is removed."""
    request_change(context, f"/exports/{segment(export)}", "cancel", as_json=as_json)


@cli.command()
def retry(context: typer.Context, export: Export, as_json: Json = False) -> None:
    """Run a failed or cancelled export again."""
    request_change(context, f"/exports/{segment(export)}", "retry", as_json=as_json)


@cli.command("rm")
def remove(
    context: typer.Context,
    exports: Annotated[list[str], typer.Argument(metavar="EXPORT...")],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Delete exports that have ended, and their files."""
    delete_each(client_of(context), "/exports", "export", exports, yes=yes, as_json=as_json)


def _wait(client: Client, export: Any) -> Any:
    return wait_for_end(
        client,
        f"/exports/{export['id']}",
        export,
        lambda answer: f"{answer['phase'] or 'starting'}: {answer['progress']:.0%}",
    )


def _finish(answer: Any, *, as_json: bool) -> None:
    """Show an export that has ended. Raises CommandFailed unless it has succeeded."""
    found = ExportView.model_validate(answer)
    if as_json:
        print_json(answer)
    else:
        _show(found)
    check_success(found.state, found.error, noun="export", code="export_not_ready")


def _show(found: ExportView) -> None:
    agreement = found.agreement
    progress = f" {found.progress:.0%}" if found.state == "running" else ""
    show_fields(
        [
            ("id", found.id),
            ("adapter", f"{found.adapter_name} ({found.adapter})"),
            ("format", _format_text(found)),
            ("state", state_text(found.state, f"{found.phase}{progress}" if found.phase else None)),
            ("in line", place_text(found.queue_position, found.spec)),
            (
                "agreement",
                f"{agreement.greedy_match:.0%} of the next tokens as live, mean KL {agreement.mean_kl:.2g}"
                if agreement
                else None,
            ),
            *(("file", _file_text(one)) for one in found.files),
            ("pushed to", found.url),
            *(("note", text) for text in found.notes),
            ("error", f"{found.error.message} ({found.error.code})" if found.error else None),
            ("asked for", f"{found.created_at.astimezone():%Y-%m-%d %H:%M}"),
        ]
    )
    if found.state == "succeeded" and found.files:
        note(f"`tunesmith exports download {found.id}` fetches it.", "dim")


def _file_text(file: ExportedFileView) -> str:
    text = f"{file.name}, {size_text(file.size_bytes)}"
    return f"{text}, mean KL {file.agreement.mean_kl:.2g}" if file.agreement else text


def _format_text(found: ExportView) -> str:
    kind = found.spec.get("type") or ""
    types = " ".join(kind) if isinstance(kind, list) else kind
    return f"{found.spec['format']} {types}".strip()
