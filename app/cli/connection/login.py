"""`tunesmith login`: save the address and the key of an API in a profile."""

import typer

from app.cli.connection.client import Client
from app.cli.connection.invocation import Json, invocation_of
from app.cli.connection.profiles import DEFAULT_PROFILE, Connection, find_connection, write_profile
from app.cli.failures import CommandFailed, ExitCode
from app.cli.output import note, print_json


def log_in(context: typer.Context, as_json: Json = False) -> None:
    """Keep an API's address and key, so that no command has to be told.

    Asks for what --url and --api-key leave out, and keeps nothing that the API does not accept.
    """
    invocation = invocation_of(context)
    url = invocation.url or typer.prompt(
        "Address of the API", default=find_connection(None, "", None).url, err=True
    )
    # A profile that does not exist yet is about to be made.
    connection = Connection(find_connection(url, "", None).url, invocation.api_key)
    if connection.api_key is None and not _is_accepted(connection):
        key = typer.prompt("Key (not shown)", hide_input=True, err=True)
        connection = Connection(connection.url, key.strip())
    _check(connection)
    name = invocation.profile or DEFAULT_PROFILE
    path = write_profile(name, connection)
    if as_json:
        return print_json({"profile": name, "url": connection.url, "path": str(path)})
    note(f"Profile {name} speaks to {connection.url}. Kept in {path}, for you alone to read.", "green")


def _is_accepted(connection: Connection) -> bool:
    try:
        _check(connection)
    except CommandFailed as failure:
        if failure.exit_code is ExitCode.UNAUTHORIZED:
            return False
        raise
    return True


def _check(connection: Connection) -> None:
    with Client(connection) as client:
        client.get("/jobs", {"limit": 1})
