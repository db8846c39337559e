"""What one call of `tunesmith` was given for all its commands: the API, and whether to answer in JSON."""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import typer

from app.cli.client import Client
from app.cli.profiles import Connection, find_connection


@dataclass
class Invocation:
    """The options before the command. The profile file is read when a command needs the API."""

    url: str | None = None
    api_key: str | None = None
    profile: str | None = None
    as_json: bool = False

    @cached_property
    def connection(self) -> Connection:
        """Which API. Raises UsageProblem."""
        return find_connection(self.url, self.api_key, self.profile)

    @cached_property
    def client(self) -> Client:
        """A client for it."""
        return Client(self.connection)

    def close(self) -> None:
        """Close the client, if there was one."""
        if "client" in self.__dict__:
            self.client.close()


def client_of(context: typer.Context) -> Client:
    """The client of this call."""
    return invocation_of(context).client


def invocation_of(context: typer.Context) -> Invocation:
    """What this call was given."""
    found = context.find_root().obj
    assert isinstance(found, Invocation)
    return found


def _set_json(context: typer.Context, value: bool) -> bool:
    invocation = context.find_root().obj
    if isinstance(invocation, Invocation):  # not while a shell completes
        invocation.as_json = invocation.as_json or value
        return invocation.as_json
    return value


Json = Annotated[bool, typer.Option("--json", callback=_set_json, help="Answer in JSON, and nothing else.")]
