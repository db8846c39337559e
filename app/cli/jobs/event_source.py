"""Follows the events of a job, without a gap or a duplicate, also while the API restarts."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
from httpx_sse import EventSource, SSEError

from app.cli.connection.client import Client
from app.cli.failures import CommandFailed, ExitCode
from app.cli.jobs.views import EventView
from app.cli.views import ENDED

_FIRST_WAIT_SECONDS = 0.25
_MAX_WAIT_SECONDS = 4.0
_PATIENCE_SECONDS = 600.0


@dataclass(frozen=True)
class Interrupted:
    """The stream broke off; the next request follows after `wait_seconds`."""

    reason: str
    wait_seconds: float


def follow(
    client: Client, job_id: str, *, after: int = 0, sleep: Callable[[float], None] = time.sleep
) -> Iterator[EventView | Interrupted]:
    """Events after a seq, until the job has ended.

    Raises CommandFailed: at once where the API refuses, and after ten minutes without a response.
    """
    silent_seconds = 0.0
    wait_seconds = _FIRST_WAIT_SECONDS
    has_ended = False
    while True:
        try:
            for event in _stream(client, job_id, after):
                after = event.seq
                silent_seconds, wait_seconds = 0.0, _FIRST_WAIT_SECONDS
                has_ended = event.type == "state" and event.data["state"] in ENDED
                yield event
            failure = CommandFailed("The API closed the stream.")
            if has_ended or _is_over(client, job_id, after):
                return
        except httpx.TransportError as error:
            failure = client.unreachable(error)
        except CommandFailed as error:
            # 503 comes from a proxy while the API restarts; a retry would not change any other status.
            if error.exit_code not in (ExitCode.BUSY, ExitCode.UNREACHABLE):
                raise
            failure = error
        if silent_seconds >= _PATIENCE_SECONDS:
            raise failure
        yield Interrupted(failure.message, wait_seconds)
        sleep(wait_seconds)
        silent_seconds += wait_seconds
        wait_seconds = min(2 * wait_seconds, _MAX_WAIT_SECONDS)


def _stream(client: Client, job_id: str, after: int) -> Iterator[EventView]:
    headers = {"accept": "text/event-stream"} | ({"last-event-id": str(after)} if after else {})
    with client.stream("GET", f"/jobs/{job_id}/events", headers=headers) as response:
        if response.status_code == httpx.codes.NO_CONTENT:
            return
        try:
            for message in EventSource(response).iter_sse():
                if message.data:  # httpx-sse makes an empty message of a keep-alive comment
                    yield EventView.model_validate_json(message.data)
        except SSEError as error:
            raise CommandFailed(f"{client.url} sends no events: {error}", code="not_tunesmith") from None


def _is_over(client: Client, job_id: str, after: int) -> bool:
    """Whether the job has ended and has no event after this seq."""
    job = client.get(f"/jobs/{job_id}")
    left = client.get(f"/jobs/{job_id}/events", {"after": after, "limit": 1})["data"]
    return job["state"] in ENDED and not left
