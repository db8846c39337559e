"""Deleting things that somebody named, once they have said that they mean it."""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from app.cli.client import Client, segment
from app.cli.failures import CommandFailed, ExitCode, UsageProblem
from app.cli.output import note, print_json

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def delete_each(
    client: Client, path: str, kind: str, names: Sequence[str], *, yes: bool, as_json: bool
) -> None:
    """Ask, then delete one after the other. Raises UsageProblem where nobody can be asked."""
    if not yes:
        _ask(kind, names)
    for name in names:
        client.delete(f"{path}/{segment(name)}")
        note(f"Deleted {kind} {name}.")
    if as_json:
        print_json({"deleted": list(names)})


def _ask(kind: str, names: Sequence[str]) -> None:
    if not sys.stdin.isatty():
        raise UsageProblem(
            f"Nobody is here to ask whether to delete this {kind}.", hint="--yes deletes without."
        )
    if not typer.confirm(f"Delete {kind} {', '.join(names)} for good?", err=True):
        raise CommandFailed("Nothing was deleted.", exit_code=ExitCode.ERROR, code="not_confirmed")
