"""`tunesmith`: the command line. It speaks HTTP only; what needs the database runs `python -m app`."""

from app.cli.commands import cli, main

__all__ = ["cli", "main"]
