"""`tunesmith keys` over HTTP: create, list, show, change, revoke; and `tunesmith usage`.

Where the command line knows of an API, by --url, TUNESMITH_URL or a profile, it asks that one, with a key
that has the scope admin. Else `tunesmith keys` works on this machine's database, which needs no key.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from app.cli import local
from app.cli.connection.client import segment
from app.cli.connection.invocation import Json, client_of, invocation_of
from app.cli.connection.profiles import read_profiles
from app.cli.failures import UsageProblem
from app.cli.keys.views import KeyView, UsageView, end_text, limits_text
from app.cli.output import note, print_json, show_fields, show_table

cli = typer.Typer(help="API keys: make, list, show, change, revoke.", no_args_is_help=True)
KeyId = Annotated[str, typer.Argument(metavar="KEY", help="Id, from `tunesmith keys list`.")]


class KeyScope(StrEnum):
    """What a key may do."""

    READ = "read"
    INFER = "infer"
    TRAIN = "train"
    ADMIN = "admin"


ScopeOption = Annotated[
    list[KeyScope] | None,
    typer.Option("--scope", help="What it may do; may be given again. Of a new key by default: admin."),
]
RequestsPerMinute = Annotated[int | None, typer.Option(min=1, help="Most requests a minute.")]
QueuedJobs = Annotated[int | None, typer.Option(min=0, help="Most jobs that wait.")]
TokensPerDay = Annotated[int | None, typer.Option(min=1, help="Most tokens that models read and make a day.")]


def keys(context: typer.Context) -> None:
    """API keys: create NAME, list, revoke ID; of another machine with --url also show, change, self."""
    invocation = invocation_of(context)
    if not (invocation.url or invocation.profile or read_profiles()):
        return local.pass_on("keys", context)
    cli(args=context.args, prog_name="tunesmith keys", standalone_mode=False, obj=invocation)


@cli.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    scope: ScopeOption = None,
    requests_per_minute: RequestsPerMinute = None,
    queued_jobs: QueuedJobs = None,
    tokens_per_day: TokensPerDay = None,
    expires_in_days: Annotated[float | None, typer.Option(help="After how many days it ends.")] = None,
    as_json: Json = False,
) -> None:
    """Make a key. It is shown once and stored as a hash."""
    limits = _limits(requests_per_minute, queued_jobs, tokens_per_day)
    body: dict[str, Any] = {"name": name, "limits": limits}
    if scope:
        body["scopes"] = list(scope)
    if expires_in_days is not None:
        body["expires_in_days"] = expires_in_days
    answer = client_of(context).post("/keys", body)
    if as_json:
        return print_json(answer)
    note(f"Made {answer['id']}. Keep it: it is not shown again.")
    typer.echo(answer["key"])


@cli.command("list")
def list_keys(context: typer.Context, as_json: Json = False) -> None:
    """Every key that was made."""
    answer = client_of(context).get("/keys")
    if as_json:
        return print_json(answer)
    rows = [
        (one.id or "", one.name or "", " ".join(one.scopes), limits_text(one.limits), end_text(one))
        for one in map(KeyView.model_validate, answer["data"])
    ]
    show_table(("ID", "NAME", "MAY", "LIMITS", "ENDS"), rows, empty="No key was made yet.")


@cli.command()
def show(context: typer.Context, key: KeyId, as_json: Json = False) -> None:
    """What a key may do and take."""
    _show(client_of(context).get(f"/keys/{segment(key)}"), as_json=as_json)


@cli.command("self")
def show_self(context: typer.Context, as_json: Json = False) -> None:
    """What the key of this command line may do and take."""
    _show(client_of(context).get("/keys/self"), as_json=as_json)


@cli.command()
def change(
    context: typer.Context,
    key: KeyId,
    name: Annotated[str | None, typer.Option(help="What the key is for.")] = None,
    scope: ScopeOption = None,
    requests_per_minute: RequestsPerMinute = None,
    queued_jobs: QueuedJobs = None,
    tokens_per_day: TokensPerDay = None,
    no_limits: Annotated[bool, typer.Option("--no-limits", help="Take its limits away.")] = False,
    as_json: Json = False,
) -> None:
    """Change a key: its scopes, or its limits. It holds within a second."""
    client = client_of(context)
    path = f"/keys/{segment(key)}"
    body: dict[str, Any] = {"name": name} if name else {}
    if scope:
        body["scopes"] = list(scope)
    given = {
        field: value
        for field, value in _limits(requests_per_minute, queued_jobs, tokens_per_day).items()
        if value is not None
    }
    if no_limits or given:
        # The API sets all limits at once: those that are not named stay.
        body["limits"] = given if no_limits else client.get(path)["limits"] | given
    if not body:
        raise UsageProblem(
            "There is nothing to change.", hint="`tunesmith keys change --help` lists options."
        )
    _show(client.patch(path, body), as_json=as_json)


@cli.command()
def revoke(context: typer.Context, key: KeyId, as_json: Json = False) -> None:
    """Make a key worthless, within a second."""
    client_of(context).delete(f"/keys/{segment(key)}")
    if as_json:
        return print_json({"revoked": key})
    note(f"{key} is revoked.")


def show_usage(
    context: typer.Context,
    key: Annotated[str | None, typer.Option(help="Only this key, by its id.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this adapter or base model.")] = None,
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="First day (UTC); default: 30 days.")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Last day (UTC); default: today.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Requests, tokens, hours of training and exports by day, key and model; without admin of the own key."""
    params = {
        "key": key,
        "model": model,
        "since": f"{since:%Y-%m-%d}" if since else None,
        "until": f"{until:%Y-%m-%d}" if until else None,
    }
    answer = client_of(context).get("/usage", params)
    if as_json:
        return print_json(answer)
    rows = [
        (
            str(one.day),
            one.key_name or "",
            one.model,
            f"{one.requests:,}",
            f"{one.prompt_tokens:,}",
            f"{one.completion_tokens:,}",
            f"{one.training_tokens:,}",
            f"{one.training_seconds / 3600:.2f}",
            f"{one.export_seconds / 3600:.2f}",
        )
        for one in map(UsageView.model_validate, answer["data"])
    ]
    head = ("DAY", "KEY", "MODEL", "REQUESTS", "READ", "MADE", "TRAINED", "HOURS", "EXPORTS")
    show_table(head, rows, empty="Nothing was used in these days.")


def _limits(
    requests_per_minute: int | None, queued_jobs: int | None, tokens_per_day: int | None
) -> dict[str, int | None]:
    return {
        "requests_per_minute": requests_per_minute,
        "queued_jobs": queued_jobs,
        "tokens_per_day": tokens_per_day,
    }


def _show(answer: Any, *, as_json: bool) -> None:
    if as_json:
        return print_json(answer)
    found = KeyView.model_validate(answer)
    show_fields(
        [
            ("id", found.id),
            ("name", found.name),
            ("may", ", ".join(found.scopes)),
            ("limits", limits_text(found.limits) or "none"),
            ("ends", end_text(found) if found.created_at else None),
        ]
    )
