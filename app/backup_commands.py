"""`python -m app backup` and `restore`: everything to one tar and back, on the machine of the API."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from app.core.backup import write_backup
from app.core.errors import TunesmithError
from app.core.restore import restore_backup
from app.core.settings import Settings

_STREAM = Path("-")
_Tar = Annotated[Path, typer.Argument(help="The tar; `-` for the standard stream.")]


def backup(path: _Tar) -> None:
    """Write rows, datasets, adapters and checkpoints to a tar, also while jobs run. Base models stay out."""
    if path != _STREAM and path.exists():
        _refuse(f"{path} exists already.")
    partial = path.with_name(path.name + ".partial")
    with nullcontext(sys.stdout.buffer) if path == _STREAM else partial.open("wb") as target:
        summary = write_backup(Settings(), target)
    if path != _STREAM:
        partial.rename(path)
    for artifact in summary.lost:
        typer.echo(f"The artifact store has lost {artifact}: the backup goes without it.", err=True)
    typer.echo(
        f"{summary.datasets} datasets, {summary.adapters} adapters, {summary.jobs} jobs: "
        f"{summary.files} files, {summary.bytes / 1e6:,.1f} MB.",
        err=True,
    )


def restore(path: _Tar) -> None:
    """Bring a backup into an empty data folder and database. Start the service afterwards."""
    try:
        with _open(path) as source:
            restore_backup(Settings(), source)
    except (TunesmithError, FileNotFoundError) as error:
        _refuse(f"{error} {getattr(error, 'hint', None) or ''}")
    typer.echo("Restored. Jobs that were running are taken up again when a worker starts.", err=True)


def _open(path: Path) -> nullcontext[BinaryIO] | BinaryIO:
    return nullcontext(sys.stdin.buffer) if path == _STREAM else path.open("rb")


def _refuse(message: str) -> None:
    typer.echo(message.strip(), err=True)
    raise typer.Exit(1)
