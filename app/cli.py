"""`tunesmith`: the command-line client. It speaks HTTP only; what needs the database runs `python -m app`."""

import importlib.util
import signal
import subprocess
import sys
from typing import Annotated, Any

import typer

from app.stack import Stack, StackError

_HELP = """
Tunesmith answers on {url} (docs: {url}/docs). Next:

  curl -F file=@examples/tunesmith-help.jsonl {url}/datasets
  curl {url}/models
  curl {url}/jobs -H 'Content-Type: application/json' \\
       -d '{{"base_model": "SmolLM2-135M-Instruct", "dataset": "<id of the dataset>"}}'
  curl -N '{url}/jobs/<id of the job>/logs?follow=true'

Ctrl-C stops it.
"""

# For commands that `python -m app` carries out: it knows their arguments.
_PASSED_ON: Any = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
}

cli = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@cli.callback()
def tunesmith() -> None:
    """Fine-tune language models over REST, and serve every adapter from one GPU box."""


@cli.command()
def up(
    host: Annotated[str, typer.Option(envvar="TUNESMITH_HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="TUNESMITH_PORT", help="Port to listen on.")] = 8000,
    ready_seconds: Annotated[float, typer.Option(help="How long the worker may take to start.")] = 180,
) -> None:
    """Run the API and a worker until Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both end the same way
    stack = Stack(host=host, port=port)
    try:
        with stack:
            stack.start()
            stack.wait_until_ready(ready_seconds)
            typer.echo(_HELP.format(url=stack.url))
            stack.wait()
    except KeyboardInterrupt:
        typer.echo("Stopped.")
    except StackError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


@cli.command(**_PASSED_ON)
def keys(context: typer.Context) -> None:
    """API keys, on the machine of the API: create NAME, list, revoke ID."""
    _pass_on("keys", context)


@cli.command(**_PASSED_ON)
def backup(context: typer.Context) -> None:
    """Everything but base models into a tar, on the machine of the API: FILE, or - for stdout."""
    _pass_on("backup", context)


@cli.command(**_PASSED_ON)
def restore(context: typer.Context) -> None:
    """A backup into an empty data folder, on the machine of the API: FILE, or - for stdin."""
    _pass_on("restore", context)


@cli.command()
def doctor() -> None:
    """What a worker sees of this machine: GPU, packages, disk, Hub token, database, models."""
    if importlib.util.find_spec("worker") is None or importlib.util.find_spec("torch") is None:
        typer.echo(
            "The worker is not installed here, so there is nothing to examine. Ask where it runs: "
            "`docker compose exec worker tunesmith doctor`, or install `tunesmith[worker]`.",
            err=True,
        )
        raise typer.Exit(1)
    command = [sys.executable, "-m", "worker", "--check"]
    raise typer.Exit(subprocess.run(command, check=False).returncode)


def _pass_on(command: str, context: typer.Context) -> None:
    process = subprocess.run([sys.executable, "-m", "app", command, *context.args], check=False)
    raise typer.Exit(process.returncode)


def main() -> None:
    """The `tunesmith` console script."""
    cli()


if __name__ == "__main__":
    main()
