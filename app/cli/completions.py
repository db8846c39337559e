"""Shell completion of names and ids, from the API; nothing is offered where no API responds."""

import typer

from app.cli.connection.client import Client
from app.cli.connection.profiles import find_connection
from app.cli.failures import CommandFailed

_SECONDS = 1.0
_MAX_OFFERED = 100


def jobs(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Ids and names of jobs."""
    return _offer(context, incomplete, "/jobs", "state")


def datasets(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Ids and names of datasets."""
    return _offer(context, incomplete, "/datasets", "format")


def adapters(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Ids and names of adapters."""
    return _offer(context, incomplete, "/adapters", "base_model")


def models(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Names of base models."""
    return _offer(context, incomplete, "/models", "state")


def aliases(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Names of aliases."""
    return _offer(context, incomplete, "/aliases", "version")


def targets(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Ids and names of adapters, names of aliases and of base models."""
    return adapters(context, incomplete) + aliases(context, incomplete) + models(context, incomplete)


def _offer(context: typer.Context, incomplete: str, path: str, about: str) -> list[tuple[str, str]]:
    given = context.find_root().params
    try:
        connection = find_connection(given.get("url"), given.get("api_key"), given.get("profile"))
        with Client(connection, timeout=_SECONDS) as client:
            found = client.list(path, limit=_MAX_OFFERED)
    except CommandFailed:
        return []
    # Names are easier to recognise, so ids are offered only once the user has typed something.
    names: dict[str, str] = {one["name"]: str(one.get(about) or "") for one in reversed(found)}
    ids = {one["id"]: one["name"] for one in found if "id" in one and incomplete}
    return [(name, text) for name, text in (names | ids).items() if name.startswith(incomplete)]
