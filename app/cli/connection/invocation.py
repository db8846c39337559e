"""The global options of one call of `tunesmith`: which API, and whether the output is JSON."""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import typer

from app.cli.connection.client import Client
from app.cli.connection.profiles import Connection, find_connection


@dataclass
class Invocation:
    """The options before the command. The profile file is read when a command needs the API."""

    url: str | None = None
    api_key: str | None = None
    profile: str | None = None
    as_json: bool = False

    @cached_property
    def connection(self) -> Connection:
        """The address and the key of the API. Raises UsageProblem."""
        return find_connection(self.url, self.api_key, self.profile)

    @cached_property
    def client(self) -> Client:
        """A client of that API."""
        return Client(self.connection)

    def close(self) -> None:
        """Close the client, if it was used."""
        if "client" in self.__dict__:
            self.client.close()


def client_of(context: typer.Context) -> Client:
    """The client of this call."""
    return invocation_of(context).client


def invocation_of(context: typer.Context) -> Invocation:
    """The global options of this call."""
    found = context.find_root().obj
    assert isinstance(found, Invocation)
    return found


def _set_json(context: typer.Context, value: bool) -> bool:
    invocation = context.find_root().obj
    if isinstance(invocation, Invocation):  # None during shell completion
        invocation.as_json = invocation.as_json or value
        return invocation.as_json
    return value


Json = Annotated[bool, typer.Option("--json", callback=_set_json, help="Answer in JSON, and nothing else.")]
