"""`tunesmith storage`: what grows for ever, with sizes, and its deletion."""

import sys
from typing import Annotated, Literal

import typer
from pydantic import BaseModel

from app.cli.connection.invocation import Json, client_of
from app.cli.deletion import Yes
from app.cli.failures import CommandFailed, UsageProblem
from app.cli.output import note, print_json, show_table, size_text

cli = typer.Typer(help="What grows for ever: list, rm.", no_args_is_help=True)
Kind = Literal["checkpoints", "tensorboard", "logs", "events", "exports", "evaluations", "base_models"]


class StoredKindView(BaseModel):
    """What is stored of one kind."""

    kind: str
    count: int
    size_bytes: int | None = None
    deletable_count: int
    deletable_bytes: int | None = None
    keep_days: float


@cli.command("list")
def list_storage(context: typer.Context, as_json: Json = False) -> None:
    """Checkpoints, TensorBoard files, logs, events, exports, evaluations, base models, and their sizes."""
    answer = client_of(context).get("/storage")
    if as_json:
        return print_json(answer)
    rows = [
        (
            one.kind,
            f"{one.count:,}",
            _size(one.size_bytes),
            f"{one.deletable_count:,}",
            _size(one.deletable_bytes),
            f"after {one.keep_days:g} days" if one.keep_days else "never",
        )
        for one in map(StoredKindView.model_validate, answer["data"])
    ]
    show_table(("KIND", "COUNT", "SIZE", "ENDED", "THEIR SIZE", "AGES OUT"), rows, empty="Nothing is stored.")


@cli.command("rm")
def remove(
    context: typer.Context,
    kind: Annotated[Kind, typer.Argument(help="As `tunesmith storage list` names it.")],
    older_than: Annotated[
        float, typer.Option(min=0, metavar="DAYS", help="Only what ended, or was last used, longer ago.")
    ] = 0,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Delete one kind, of all work that has ended; of base models what nothing needs now."""
    client = client_of(context)
    if not yes:
        _confirm(kind, older_than)
    answer = client.delete_with_answer(f"/storage/{kind}", {"older_than_days": older_than})
    if as_json:
        return print_json(answer)
    note(f"Deleted {kind}: {answer['deleted']:,}, {size_text(answer['size_bytes'])}.")


def _confirm(kind: str, older_than: float) -> None:
    if not sys.stdin.isatty():
        raise UsageProblem("Nobody is here to ask whether to delete them.", hint="--yes deletes without.")
    if kind == "base_models":
        unused = f" not used for {older_than:g} days" if older_than else ""
        question = f"Delete all downloaded base models{unused} that nothing needs now?"
        if not typer.confirm(question, err=True):
            raise CommandFailed("Nothing was deleted.", code="not_confirmed")
        return
    owners = kind if kind in ("exports", "evaluations") else f"{kind} of all jobs"
    when = f" that ended more than {older_than:g} days ago" if older_than else " that have ended"
    if not typer.confirm(f"Delete the {owners}{when} for good?", err=True):
        raise CommandFailed("Nothing was deleted.", code="not_confirmed")


def _size(size: int | None) -> str:
    return "" if size is None else size_text(size)
