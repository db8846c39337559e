"""`tunesmith models`: base models here and on the Hub: list, search, fit, download, downloads, cancel, rm."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from app.cli import completions
from app.cli.connection.client import segment
from app.cli.connection.invocation import Json, client_of
from app.cli.deletion import Yes, delete_each
from app.cli.failures import CommandFailed
from app.cli.models.views import BaseModelView, DownloadView, FitView, HubModelView
from app.cli.output import (
    age_text,
    note,
    print_json,
    show_fields,
    show_table,
    size_text,
    state_text,
)
from app.cli.work import check_success, request_change, wait_for_end

cli = typer.Typer(help="Base models, here and on the Hub; without a command: list.")
Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="From `tunesmith models`.", autocompletion=completions.models),
]
HubModel = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Its name on the Hub.")]


@cli.callback(invoke_without_command=True)
def models(context: typer.Context, as_json: Json = False) -> None:
    """List base models where no other command is named."""
    if context.invoked_subcommand is None:
        list_models(context, as_json=as_json)


@cli.command("list")
def list_models(context: typer.Context, as_json: Json = False) -> None:
    """Base models that a job or a question may name."""
    answer = client_of(context).get("/models")
    if as_json:
        return print_json(answer)
    rows = [
        (
            model.name,
            model.state.replace("_", " "),
            size_text(model.size_bytes) if model.size_bytes else "",
            f"{model.context_length:,}" if model.context_length else "",
            age_text(model.used_at) if model.used_at else "",
            _describe_needs(model),
            model.architecture or "",
        )
        for model in map(BaseModelView.model_validate, answer["data"])
    ]
    show_table(
        ("NAME", "STATE", "SIZE", "CONTEXT", "USED", "NEEDED BY", "ARCHITECTURE"),
        rows,
        empty="No base model is here yet: `tunesmith models search WORDS` finds some on the Hub.",
    )
    if answer["any_hub_model"]:
        note("Any model of the Hub may be named too, as owner/name.", "dim")


@cli.command()
def search(
    context: typer.Context,
    words: Annotated[list[str], typer.Argument(help="Of its name: `qwen3 0.6b`.")],
    limit: Annotated[int, typer.Option(min=1, max=50, help="Most models.")] = 20,
    as_json: Json = False,
) -> None:
    """Models of the Hub that may be trained, the most downloaded first."""
    answer = client_of(context).get("/models/search", {"query": " ".join(words), "limit": limit})
    if as_json:
        return print_json(answer)
    if answer["state"] != "ok":
        raise CommandFailed(
            answer["message"],
            code=f"hub_{answer['state']}",
            hint="`tunesmith models` lists what is here.",
        )
    rows = [
        (
            model.name,
            _count_text(model.parameters),
            size_text(model.size_bytes) if model.size_bytes else "",
            "here" if model.downloaded else "gated" if model.is_gated else "",
            model.license or "",
            _count_text(model.downloads),
        )
        for model in map(HubModelView.model_validate, answer["data"])
    ]
    columns = ("NAME", "PARAMETERS", "SIZE", "NOTE", "LICENCE", "DOWNLOADS")
    show_table(columns, rows, empty="The Hub has no such model that may be trained.")


@cli.command()
def fit(context: typer.Context, model: Model, as_json: Json = False) -> None:
    """Whether a job of the default QLoRA settings fits into the memory of the worker's device."""
    answer = client_of(context).get("/models/fit", {"base_model": model})
    if as_json:
        return print_json(answer)
    found = FitView.model_validate(answer)
    needed, memory = size_text(found.needed_bytes), size_text(found.memory_bytes)
    show_fields(
        [
            ("fits", "yes" if found.fits else "no"),
            ("memory", f"about {needed} of {memory} on {found.device}"),
            ("parameters", _count_text(found.parameters)),
            ("for", f"QLoRA, batches of {found.batch_size}, rows of {found.row_tokens:,} tokens"),
        ]
    )


@cli.command()
def download(
    context: typer.Context,
    model: HubModel,
    wait: Annotated[bool, typer.Option(help="Until it has ended.")] = True,
    as_json: Json = False,
) -> None:
    """Ask a worker for a model of the Hub. Ctrl-C leaves it running. Exit status 1 unless it succeeds."""
    client = client_of(context)
    answer = client.post("/models/downloads", {"base_model": model})
    if wait:
        path = f"/models/downloads/{answer['id']}"
        answer = wait_for_end(client, path, answer, _describe)
    found = DownloadView.model_validate(answer)
    if as_json:
        print_json(answer)
    elif wait:
        size = size_text(found.total_bytes) if found.total_bytes else ""
        typer.echo(f"{found.base_model}  {found.state}  {size}".rstrip())
    else:
        typer.echo(found.id)
        note("Asked for. `tunesmith models downloads` shows how far it is.", "dim")
    if wait or found.error:
        check_success(found.state, found.error, noun="download", code="download_ended")


@cli.command()
def downloads(context: typer.Context, as_json: Json = False) -> None:
    """Downloads of the last week, the newest first."""
    found = client_of(context).list("/models/downloads")
    if as_json:
        return print_json({"data": found})
    rows = [
        (
            one.id,
            one.base_model,
            state_text(one.state),
            _progress_text(one),
            one.error.message if one.error else "",
        )
        for one in map(DownloadView.model_validate, found)
    ]
    show_table(("ID", "BASE MODEL", "STATE", "PROGRESS", "ERROR"), rows, empty="None in the last week.")


@cli.command()
def cancel(
    context: typer.Context,
    download_id: Annotated[
        str, typer.Argument(metavar="DOWNLOAD", help="Id, from `tunesmith models downloads`.")
    ],
    as_json: Json = False,
) -> None:
    """End a download. What has arrived stays, and the next one goes on with it."""
    request_change(context, f"/models/downloads/{segment(download_id)}", "cancel", as_json=as_json)


@cli.command("rm")
def remove(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(metavar="OWNER/NAME...", autocompletion=completions.models)],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Delete downloaded models from the disk. Adapters on them are served after another download."""
    delete_each(client_of(context), "/models", "base model", names, yes=yes, as_json=as_json)


def _describe(answer: Any) -> str:
    found = DownloadView.model_validate(answer)
    return f"Downloading {found.base_model}: {_progress_text(found) or 'starting'}"


def _progress_text(found: DownloadView) -> str:
    return f"{size_text(found.done_bytes)} of {size_text(found.total_bytes)}" if found.total_bytes else ""


def _describe_needs(model: BaseModelView) -> str:
    needs = model.needed_by
    counts: Sequence[tuple[int, str]] = (
        (len(needs.jobs), "job"),
        (len(needs.exports), "export"),
        (len(needs.imports), "import"),
        (needs.adapters, "adapter"),
    )
    return ", ".join(f"{count} {noun}{'s' if count > 1 else ''}" for count, noun in counts if count)


def _count_text(count: int | None) -> str:
    """A count in its unit: `7.2B`."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count and count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count) if count else ""
