"""What commands do with work that a worker runs: change its state or priority, wait for its end, say how it
ended."""

import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from app.cli.connection.client import Client
from app.cli.connection.invocation import client_of
from app.cli.failures import CommandFailed, ExitCode
from app.cli.output import error_console, print_json
from app.cli.views import ENDED, FailureView

_POLL_SECONDS = 1.0

NewPriority = Annotated[
    int, typer.Argument(metavar="PRIORITY", min=-10, max=10, help="From -10 to 10; higher is taken first.")
]
PriorityOption = Annotated[
    int | None,
    # The server checks the range: in the help it would widen a column and cut the names of other options.
    typer.Option(metavar="N", help="From -10 to 10; higher is taken first. Above 0 needs admin."),
]
# So that `-3` is a priority and no option.
TAKES_NEGATIVES = {"ignore_unknown_options": True}


def request_change(context: typer.Context, path: str, change: str, *, as_json: bool) -> None:
    """Ask for a change of the work at `path`, such as `cancel`, and write its state."""
    answer = client_of(context).post(f"{path}/{change}")
    if as_json:
        return print_json(answer)
    typer.echo(f"{answer['id']}  {answer['state']}")


def change_priority(context: typer.Context, path: str, priority: int, *, as_json: bool) -> None:
    """Ask for another priority of the waiting work at `path`, and write its place in the queue."""
    answer = client_of(context).patch(path, {"priority": priority})
    if as_json:
        return print_json(answer)
    place = answer.get("queue_position")
    where = f"at place {place}" if place else str(answer["state"])
    typer.echo(f"{answer['id']}  priority {priority}, {where}")


def place_text(queue_position: int | None, spec: Mapping[str, Any]) -> str | None:
    """The place of waiting work in its queue, with a priority that is not 0; None: it does not wait."""
    if queue_position is None:
        return None
    priority = spec.get("priority") or 0
    return f"at place {queue_position}" + (f", priority {priority}" if priority else "")


def wait_for_end(
    client: Client, path: str, answer: Any, describe: Callable[[Any], str], *, patience_seconds: float = 0.0
) -> Any:
    """Poll the work at `path` until it has ended, also while the API is away for `patience_seconds`.

    `describe` says how far running work is. Returns the last answer.
    """
    silent_seconds = 0.0
    with error_console().status("Waiting for a worker") as status:
        while answer["state"] not in ENDED:
            if answer["state"] == "running":
                status.update(describe(answer))
            time.sleep(_POLL_SECONDS)
            try:
                answer = client.get(path)
                silent_seconds = 0.0
            except CommandFailed as error:
                is_away = error.exit_code in (ExitCode.BUSY, ExitCode.UNREACHABLE)
                if not is_away or silent_seconds >= patience_seconds:
                    raise
                silent_seconds += _POLL_SECONDS
    return answer


def check_success(state: str, error: FailureView | None, *, noun: str, code: str) -> None:
    """Raise CommandFailed for work that has ended otherwise than as succeeded."""
    if error:
        raise CommandFailed(error.message, code=error.code, hint=error.hint)
    if state != "succeeded":
        raise CommandFailed(f"The {noun} is {state}.", code=code)
