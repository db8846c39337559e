"""`python -m app backup` and `restore`: everything to one tar and back, on the machine of the API."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, BinaryIO, NoReturn

import typer
from sqlalchemy.exc import SQLAlchemyError

from app.core.errors import TunesmithError
from app.core.settings import Settings
from app.core.storage.backups.backup import write_backup
from app.core.storage.backups.restore import restore_backup

_STREAM = Path("-")
_Tar = Annotated[Path, typer.Argument(help="The tar; `-` for the standard stream.")]


def backup(path: _Tar) -> None:
    """Write rows, datasets, adapters and checkpoints to a tar, also while jobs run. Base models stay out."""
    if path != _STREAM and path.exists():
        _refuse(f"{path} exists already.")
    partial = path.with_name(path.name + ".partial")
    try:
        with nullcontext(sys.stdout.buffer) if path == _STREAM else partial.open("wb") as target:
            summary = write_backup(Settings(), target)
    except TunesmithError as error:
        partial.unlink(missing_ok=True)
        _refuse(f"There is no backup. {error} {error.hint or ''}")
    except (SQLAlchemyError, OSError) as error:
        partial.unlink(missing_ok=True)
        _refuse(f"There is no backup. {_reason(error)}")
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
            is_checked = restore_backup(Settings(), source)
    except TunesmithError as error:
        _refuse(f"{error} {error.hint or ''}")
    except (SQLAlchemyError, OSError) as error:
        _refuse(f"Nothing was restored. {_reason(error)}")
    if not is_checked:
        typer.echo("The backup is of an earlier version: it has no checksums to compare with.", err=True)
    typer.echo("Restored. Jobs that were running are taken up again when a worker starts.", err=True)


def _open(path: Path) -> nullcontext[BinaryIO] | BinaryIO:
    return nullcontext(sys.stdin.buffer) if path == _STREAM else path.open("rb")


def _reason(error: Exception) -> str:
    """The first line of what a driver or the system says."""
    return str(getattr(error, "orig", error)).strip().splitlines()[0]


def _refuse(message: str) -> NoReturn:
    typer.echo(message.strip(), err=True)
    raise typer.Exit(1)
