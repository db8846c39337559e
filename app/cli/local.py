"""Commands of the machine itself: the stack, and what `python -m app` and `python -m worker` carry out."""

import importlib.util
import signal
import subprocess
import sys
from typing import Annotated, Any

import typer

from app.stack import DEFAULT_HOST, DEFAULT_PORT, Stack, StackError

_HELP = """
Open the dashboard: {url}
It has a first run with example data. The API is described at {url}/docs. In another terminal:

  export TUNESMITH_URL={url}
  tunesmith models
  tunesmith jobs submit examples/fast.yaml --follow
  tunesmith chat fast

Ctrl-C stops it.
"""

_NO_WORKER = """
Only the API runs: the worker is not installed here, so jobs wait and nothing is generated. Install it with
`pip install 'tunesmith[worker]'`, or start one elsewhere on the same database and files.
"""

# For commands that are passed on to `python -m app`, which parses their arguments.
PASSED_ON: Any = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
}


def up(
    host: Annotated[str, typer.Option(envvar="TUNESMITH_HOST", help="Address to listen on.")] = DEFAULT_HOST,
    port: Annotated[int, typer.Option(envvar="TUNESMITH_PORT", help="Port to listen on.")] = DEFAULT_PORT,
    ready_seconds: Annotated[float, typer.Option(help="How long the worker may take to start.")] = 180,
) -> None:
    """Run the API and a worker until Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM ends it as Ctrl-C does
    stack = Stack(host=host, port=port)
    has_worker = _worker_is_installed()
    try:
        with stack:
            stack.start(with_worker=has_worker)
            if has_worker:
                stack.wait_until_ready(ready_seconds)
            else:
                typer.echo(_NO_WORKER)
            typer.echo(_HELP.format(url=stack.url))
            stack.wait()
    except KeyboardInterrupt:
        typer.echo("Stopped.")
    except StackError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


def backup(context: typer.Context) -> None:
    """Everything but base models into a tar, on the machine of the API: FILE, or - for stdout."""
    pass_on("backup", context)


def restore(context: typer.Context) -> None:
    """A backup into an empty data folder, on the machine of the API: FILE, or - for stdin."""
    pass_on("restore", context)


def doctor() -> None:
    """What a worker sees of this machine: GPU, packages, disk, Hub token, database, models."""
    if not _worker_is_installed():
        typer.echo(
            "The worker is not installed here, so there is nothing to examine. Ask where it runs: "
            "`docker compose exec worker tunesmith doctor`, or install `tunesmith[worker]`.",
            err=True,
        )
        raise typer.Exit(1)
    command = [sys.executable, "-m", "worker", "--check"]
    raise typer.Exit(subprocess.run(command, check=False).returncode)


def _worker_is_installed() -> bool:
    return all(importlib.util.find_spec(name) for name in ("worker", "torch"))


def pass_on(command: str, context: typer.Context) -> None:
    """Run `python -m app` with this command and its arguments, and exit as it does."""
    process = subprocess.run([sys.executable, "-m", "app", command, *context.args], check=False)
    raise typer.Exit(process.returncode)
