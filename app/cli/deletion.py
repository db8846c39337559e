"""Deletes named things after a confirmation."""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from app.cli.connection.client import Client, segment
from app.cli.failures import CommandFailed, ExitCode, UsageProblem
from app.cli.output import note, print_json

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def delete_each(
    client: Client, path: str, kind: str, names: Sequence[str], *, yes: bool, as_json: bool
) -> None:
    """Ask for confirmation, then delete each. Raises UsageProblem where standard input is no terminal."""
    if not yes:
        _confirm(kind, names)
    for name in names:
        client.delete(f"{path}/{segment(name)}")
        note(f"Deleted {kind} {name}.")
    if as_json:
        print_json({"deleted": list(names)})


def _confirm(kind: str, names: Sequence[str]) -> None:
    if not sys.stdin.isatty():
        raise UsageProblem(
            f"Nobody is here to ask whether to delete this {kind}.", hint="--yes deletes without."
        )
    if not typer.confirm(f"Delete {kind} {', '.join(names)} for good?", err=True):
        raise CommandFailed("Nothing was deleted.", exit_code=ExitCode.ERROR, code="not_confirmed")
