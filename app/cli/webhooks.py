"""`tunesmith webhooks`: list, add, test, deliveries, rm."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

import typer
from pydantic import BaseModel

from app.cli.connection.client import segment
from app.cli.connection.invocation import Json, client_of
from app.cli.deletion import Yes, delete_each
from app.cli.failures import CommandFailed
from app.cli.output import age_text, note, print_json, show_table

cli = typer.Typer(help="Addresses that are told when a job ends.", no_args_is_help=True)
Webhook = Annotated[str, typer.Argument(metavar="WEBHOOK", help="Id, from `tunesmith webhooks list`.")]
_PREFIX = "fine_tuning.job."


class WebhookView(BaseModel):
    """A webhook."""

    id: str
    name: str
    url: str
    event_types: list[str]
    enabled: bool


class DeliveryView(BaseModel):
    """One event for one webhook, and what came of sending it."""

    id: str
    event_type: str
    job: str | None = None
    state: str
    response_status: int | None = None
    error: str | None = None
    created_at: datetime


class HookEvent(StrEnum):
    """How a job ends, as a webhook is told."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@cli.command("list")
def list_webhooks(context: typer.Context, as_json: Json = False) -> None:
    """Webhooks, the newest first."""
    found = client_of(context).list("/webhooks")
    if as_json:
        return print_json({"data": found})
    rows = [
        (
            one.id,
            one.name,
            ", ".join(event.removeprefix(_PREFIX) for event in one.event_types),
            "on" if one.enabled else "off",
            one.url,
        )
        for one in map(WebhookView.model_validate, found)
    ]
    show_table(
        ("ID", "NAME", "EVENTS", "STATE", "URL"),
        rows,
        empty="There is no webhook yet: `tunesmith webhooks add URL` registers one.",
    )


@cli.command()
def add(
    context: typer.Context,
    url: Annotated[str, typer.Argument(help="Where events are posted.")],
    event: Annotated[
        list[HookEvent] | None,
        typer.Option("--on", help="Which ends of jobs; may be given again; default: all."),
    ] = None,
    name: Annotated[str, typer.Option(help="For people.")] = "",
    as_json: Json = False,
) -> None:
    """Register a webhook. Its secret, which signs every delivery, is shown once."""
    body: dict[str, object] = {"url": url, "name": name}
    if event:
        body["event_types"] = [_PREFIX + one for one in event]
    answer = client_of(context).create("/webhooks", body)
    if as_json:
        return print_json(answer)
    note(f"Registered {answer['id']}. Keep its secret: it is not shown again.")
    typer.echo(answer["secret"])


@cli.command("test")
def send_test(context: typer.Context, webhook: Webhook, as_json: Json = False) -> None:
    """Send an event of a job that does not exist, now. Exit status 1 unless the receiver took it."""
    answer = client_of(context).post(f"/webhooks/{segment(webhook)}/test")
    found = DeliveryView.model_validate(answer)
    if as_json:
        print_json(answer)
    if found.state != "delivered":
        raise CommandFailed(f"It was not delivered: {_result(found)}.", code="not_delivered")
    if not as_json:
        typer.echo(f"{found.id}  {_result(found)}")


@cli.command()
def deliveries(
    context: typer.Context,
    webhook: Webhook,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 20,
    as_json: Json = False,
) -> None:
    """What was sent and answered in the last 30 days, the newest first."""
    found = client_of(context).list(f"/webhooks/{segment(webhook)}/deliveries", limit=limit)
    if as_json:
        return print_json({"data": found})
    rows = [
        (
            one.id,
            one.event_type.removeprefix(_PREFIX),
            _result(one),
            one.job or "a test",
            age_text(one.created_at),
        )
        for one in map(DeliveryView.model_validate, found)
    ]
    show_table(("ID", "EVENT", "RESULT", "JOB", "MADE"), rows, empty="Nothing was sent yet.")


@cli.command("rm")
def remove(
    context: typer.Context,
    webhooks: Annotated[list[str], typer.Argument(metavar="WEBHOOK...")],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Delete webhooks and their log; what was still to be sent is not."""
    delete_each(client_of(context), "/webhooks", "webhook", webhooks, yes=yes, as_json=as_json)


def _result(found: DeliveryView) -> str:
    status = f"status {found.response_status}" if found.response_status else found.error or ""
    return f"{found.state.replace('_', ' ')}, {status}" if status else found.state
