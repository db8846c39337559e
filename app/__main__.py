"""`python -m app`: run the API; administer its keys; back up, restore; check its migrations.

Works on the database directly.
"""

import asyncio
import json
import logging
import signal
import socket
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, cast

import typer
import uvicorn
from alembic import command
from alembic.util import CommandError
from fastapi import FastAPI
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from app import backup_commands
from app.api.deps import Services
from app.api.http.connections import ConnectionLimits, Connections
from app.api.http.limited_protocol import LimitedProtocol
from app.api.http.origins.guard import is_loopback
from app.core import garbage
from app.core.errors import TunesmithError
from app.core.errors.storage import DatabaseTooNew
from app.core.keys import records as keys
from app.core.keys.records import KeyLimits
from app.core.keys.scopes import Scope
from app.core.settings import Settings
from app.core.storage.database import Database, alembic_config, migrate
from app.core.storage.outages import describe, is_unavailable
from app.core.storage.tables import ApiKeyRow
from app.main import create_app

_SHUTDOWN_GRACE_SECONDS = 10
# Longer than most clients and proxies keep an idle connection (httpx 5 s, nginx 60 s): a request that is sent
# while the server closes its connection is lost, and httpx does not send it again.
_KEEP_ALIVE_SECONDS = 75
_REFUSED = 2
_DATABASE_WAIT_SECONDS = 60.0
_DATABASE_RETRY_SECONDS = 2.0
# A thread that queries the database waits for as long each time that the event loop has the interpreter: by
# default 5 ms.
_SWITCH_SECONDS = 0.001

AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON, and nothing else.")]

cli = typer.Typer(
    help=__doc__,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
keys_cli = typer.Typer(help="API keys: make, list, revoke.", no_args_is_help=True)
cli.add_typer(keys_cli, name="keys")
cli.command()(backup_commands.backup)
cli.command()(backup_commands.restore)


class Server(uvicorn.Server):
    """Ends followed event streams when a signal arrives: they would keep the process alive for ever."""

    def __init__(self, app: FastAPI, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._services: Services = app.state.services
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal comes; exits with status 0 then."""
        for number in (signal.SIGINT, signal.SIGTERM):
            # uvicorn raises the signal once more when it has shut down.
            signal.signal(number, lambda *_: sys.exit(0))
        super().run(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Remember the event loop of the streams."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        garbage.exclude_what_is_loaded()
        self._collector = self._loop.create_task(garbage.collect_by_the_clock())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close all connections and end the application."""
        await super().shutdown(sockets)
        garbage.include_what_was_loaded()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End the event streams; called on SIGTERM and SIGINT."""
        if self._loop:
            self._loop.call_soon_threadsafe(self._services.streams.close)
        super().handle_exit(sig, frame)


@cli.callback(invoke_without_command=True)
def serve(context: typer.Context) -> None:
    """Run the API: migrate the database, then answer HTTP."""
    if context.invoked_subcommand is not None:
        return
    logging.basicConfig(level=logging.INFO, format="%(levelname)-8s %(name)s: %(message)s")
    settings = _settings()
    _migrate(settings.database_url, wait_seconds=_DATABASE_WAIT_SECONDS)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # each check of the schema would log two lines
    _refuse_unsafe_host(settings)
    sys.setswitchinterval(_SWITCH_SECONDS)
    app = create_app(settings)
    Server(app, server_config(app, settings)).run()


def server_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How the API's server listens; raises this process's limit of open files where it is too low."""
    limits = ConnectionLimits.from_settings(settings)
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        server_header=False,
        http=cast("type[asyncio.Protocol]", partial(LimitedProtocol, connections=Connections(limits))),
        ws="none",
        backlog=limits.backlog,
        # Lines for health checks and followers would hide all others; GET /metrics counts requests by route.
        access_log=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_SHUTDOWN_GRACE_SECONDS,
    )


@keys_cli.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    scope: Annotated[
        list[Scope] | None,
        typer.Option(help="What it may do: read, infer, train or admin; default: admin. May be given again."),
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Most requests a minute.")] = None,
    queued_jobs: Annotated[int | None, typer.Option(min=0, help="Most jobs that wait.")] = None,
    tokens_per_day: Annotated[
        int | None, typer.Option(min=1, help="Most tokens that models read and make a day.")
    ] = None,
    expires_in_days: Annotated[float | None, typer.Option(help="After how many days it ends.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is shown once and stored as a hash; from the first key on, every request needs one."""
    days = expires_in_days
    database = _migrated_database()
    with database.transaction() as session:
        is_first = not keys.any_exist(session)
        key, secret = keys.create(
            session,
            name[:64],
            scopes=scope or [Scope.ADMIN],
            limits=KeyLimits(requests_per_minute, queued_jobs, tokens_per_day),
            expires_at=datetime.now(UTC) + timedelta(days=days) if days else None,
        )
    if as_json:
        return typer.echo(json.dumps({**_key_json(key), "key": secret}))
    typer.echo(f"{key.id}  {key.name}", err=True)
    typer.echo("Keep it: it is not shown again. Send it as `Authorization: Bearer <key>`.", err=True)
    if is_first:
        typer.echo(
            "From now on the API refuses every request without a key, those of this command line too: "
            "`tunesmith login` saves the key for it, and the dashboard asks for it.",
            err=True,
        )
    typer.echo(secret)


@keys_cli.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """Every key that was made, and whether it is in force."""
    with _migrated_database().snapshot() as session:
        found = keys.find_all(session)
    if as_json:
        return typer.echo(json.dumps({"data": [_key_json(key) for key in found]}))
    for key in found:
        typer.echo(
            f"{key.id}  {key.created_at:%Y-%m-%d %H:%M}  {_describe_state(key):<24}  {key.name}  "
            f"({', '.join(key.scopes)})"
        )
    if not found:
        typer.echo("No key was made yet: `tunesmith keys create NAME` makes one.", err=True)


@keys_cli.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="The key's id, from `keys list`.")], as_json: AsJson = False
) -> None:
    """Make a key worthless, within a second."""
    try:
        with _migrated_database().transaction() as session:
            keys.revoke(session, key_id)
    except TunesmithError as error:
        typer.echo(f"{error.message} {error.hint or ''}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{key_id} is revoked.", err=True)
    if as_json:
        typer.echo(json.dumps({"revoked": key_id}))


@cli.command("check-migrations")
def check_migrations() -> None:
    """Migrate a fresh database and compare it with the tables: exit status 1 where they differ."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'check.db'}"
        migrate(url)
        database = Database(url)
        try:
            with database.engine.begin() as connection:
                command.check(alembic_config(connection))
        except CommandError as error:
            typer.echo(f"{error}\nWrite a migration: `alembic revision --autogenerate`.", err=True)
            raise typer.Exit(1) from None
        finally:
            database.close()


def _refuse_unsafe_host(settings: Settings) -> None:
    """Exit with status 2 if other machines could reach an API without a key."""
    if is_loopback(settings.published_host) or settings.api_key:
        return
    with Database(settings.database_url).snapshot() as session:
        if keys.any_exist(session):
            return
    typer.echo(
        f"TUNESMITH_HOST is {settings.published_host}, so other machines can reach this API, "
        "and it has no key.\n"
        "Set TUNESMITH_API_KEY, or make a key with `tunesmith keys create NAME`, "
        "or set TUNESMITH_HOST=127.0.0.1.",
        err=True,
    )
    raise typer.Exit(_REFUSED)


def _describe_state(key: ApiKeyRow) -> str:
    if key.revoked_at:
        return f"revoked {key.revoked_at:%Y-%m-%d %H:%M}"
    if keys.has_expired(key, datetime.now(UTC)):
        return f"expired {key.expires_at:%Y-%m-%d %H:%M}"
    return f"until {key.expires_at:%Y-%m-%d %H:%M}" if key.expires_at else "in force"


def _key_json(key: ApiKeyRow) -> dict[str, object]:
    revoked_at = key.revoked_at.isoformat() if key.revoked_at else None
    return {
        "id": key.id,
        "name": key.name,
        "created_at": key.created_at.isoformat(),
        "revoked_at": revoked_at,
        "expires_at": key.expires_at.isoformat() if key.expires_at else None,
        "scopes": key.scopes,
        "limits": asdict(keys.limits_of(key)),
    }


def _migrated_database() -> Database:
    url = _settings().database_url
    _migrate(url)
    return Database(url)


def _migrate(url: str, *, wait_seconds: float = 0.0) -> None:
    """Bring the database to this version; waits for one that does not answer.

    Exits with status 1 where it does not in time, or is of a newer version.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            return migrate(url)
        except DatabaseTooNew as error:
            typer.echo(f"{error.message} {error.hint}", err=True)
            raise typer.Exit(1) from None
        except SQLAlchemyError as error:
            if not is_unavailable(error):
                raise
            typer.echo(f"The database does not answer: {describe(error)}", err=True)
            if time.monotonic() >= deadline:
                raise typer.Exit(1) from None
        time.sleep(_DATABASE_RETRY_SECONDS)


def _settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        for problem in error.errors():
            name = "TUNESMITH_" + "_".join(map(str, problem["loc"])).upper()
            typer.echo(f"{name}: {problem['msg']}", err=True)
    except OSError as error:
        typer.echo(f"TUNESMITH_API_KEY_FILE can't be read: {error}", err=True)
    raise typer.Exit(_REFUSED)


if __name__ == "__main__":
    cli(prog_name="python -m app")
