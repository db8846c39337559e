"""Following a job against the real API, which is stopped and started again."""

import json
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from starlette.types import Receive, Scope, Send

from app.cli.connection.client import Client
from app.cli.connection.profiles import Connection
from app.cli.failures import CommandFailed
from app.cli.jobs.event_source import Interrupted, follow
from app.cli.jobs.views import EventView
from app.core.jobs import events, records as job_records
from app.core.jobs.events import Log
from app.core.settings import Settings
from app.core.storage.database import Database
from app.main import create_app
from tests.factories import make_job
from tests.fakes import ServerThread

STATES = [(1, "queued"), (2, "succeeded")]


class RestartingApi:
    """The API, which goes away and comes back at the same address."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._server: ServerThread | None = None
        self.url = ""
        self.start()

    def start(self) -> None:
        port = urlsplit(self.url).port or 0
        app = create_app(self._settings)
        self._server = ServerThread(app, port=port, timeout_graceful_shutdown=1)
        self.url = self._server.url

    def stop(self) -> None:
        if self._server:
            self._server.stop()
        self._server = None


@pytest.fixture
def restarting(settings: Settings) -> Iterator[RestartingApi]:
    api = RestartingApi(settings)
    yield api
    api.stop()


@pytest.fixture
def job_id(database: Database) -> str:
    with database.transaction() as session:
        return make_job(session).id


def test_a_follower_outlives_the_api_without_a_gap_or_a_double(
    restarting: RestartingApi, database: Database, job_id: str
) -> None:
    def come_back(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) < 3:
            return
        with database.transaction() as session:
            events.append(session, job_id, [Log(message="while nobody looked")])
            job_records.request_cancel(session, job_id)
        restarting.start()

    waits: list[float] = []
    with Client(Connection(restarting.url)) as client:
        following = follow(client, job_id, sleep=come_back)
        first = next(following)
        assert isinstance(first, EventView)
        restarting.stop()
        rest = list(following)
    assert waits == [0.25, 0.5, 1.0]
    assert [event.seq for event in rest if isinstance(event, EventView)] == [2, 3]
    assert sum(isinstance(event, Interrupted) for event in rest) == 3


def test_a_follower_gives_up_after_ten_minutes(restarting: RestartingApi, job_id: str) -> None:
    waits: list[float] = []
    restarting.stop()
    with Client(Connection(restarting.url)) as client, pytest.raises(CommandFailed, match="No API answers"):
        list(follow(client, job_id, sleep=waits.append))
    assert 600 <= sum(waits) < 610


def test_a_keep_alive_is_no_event() -> None:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        event = {"at": "2026-11-25T00:00:00Z", "level": "info", "type": "state"}
        first, last = ({**event, "seq": seq, "data": {"state": state}} for seq, state in STATES)
        text = f"id: 1\ndata: {json.dumps(first)}\n\n: ping\n\nid: 2\ndata: {json.dumps(last)}\n\n"
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": text.encode()})

    server = ServerThread(answer, lifespan="off")
    with Client(Connection(server.url)) as client:
        found = list(follow(client, "job_0000000000000000", sleep=pytest.fail))
    server.stop()
    assert [event.seq for event in found if isinstance(event, EventView)] == [1, 2]


def test_an_unknown_job_is_an_error_at_once(restarting: RestartingApi) -> None:
    with Client(Connection(restarting.url)) as client, pytest.raises(CommandFailed, match="There is no job"):
        list(follow(client, "job_0000000000000000", sleep=pytest.fail))


def test_events_that_were_seen_are_not_given_again(
    restarting: RestartingApi, database: Database, job_id: str
) -> None:
    with database.transaction() as session:
        job_records.request_cancel(session, job_id)
    with Client(Connection(restarting.url)) as client:
        assert list(follow(client, job_id, after=2)) == []
