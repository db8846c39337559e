"""The loop that sends deliveries: after a crash, with a second API, and with names that resolve elsewhere."""

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from app.api.webhooks.deliverer import Deliverer
from app.api.webhooks.sender import Sender
from app.core.jobs import records as job_records
from app.core.settings import Settings
from app.core.storage import tables
from app.core.storage.database import Database
from app.core.webhooks import deliveries
from app.core.webhooks.deliveries import DeliveryOutcome
from app.main import create_app
from tests.factories import make_job, make_webhook
from tests.servers.webhook_receiver import Answer, WebhookReceiver

HEADERS = {"webhook-id": "whd_1"}


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    receiver = WebhookReceiver()
    yield receiver
    receiver.stop()


@pytest.fixture
def open_settings(settings: Settings) -> Settings:
    settings.webhook_allow_private = True
    return settings


def end_job(database: Database, url: str) -> str:
    """End a job and commit its webhook's delivery, without an API that sends it."""
    with database.transaction() as session:
        make_webhook(session, url=url)
        job_id = make_job(session).id
        job_records.request_cancel(session, job_id)
    return job_id


def find(database: Database) -> tables.WebhookDeliveryRow:
    with database.snapshot() as session:
        return session.scalars(select(tables.WebhookDeliveryRow)).one()


def post(url: str, *, allow_private: bool = True, seconds: float = 15) -> DeliveryOutcome:
    sender = Sender(allow_private=allow_private, attempt_seconds=seconds)
    return asyncio.run(sender.post(url, HEADERS, "{}"))


def test_what_ended_while_no_api_was_alive_is_delivered_when_it_starts(
    open_settings: Settings, database: Database, receiver: WebhookReceiver
) -> None:
    job_id = end_job(database, receiver.url)
    with TestClient(create_app(open_settings)):
        assert job_id in receiver.take().body


def test_what_a_worker_ends_is_delivered_by_a_running_api(
    open_settings: Settings, database: Database, receiver: WebhookReceiver
) -> None:
    with TestClient(create_app(open_settings)):
        # Through another pool of connections, as from another process: nothing wakes the deliverer.
        job_id = end_job(database, receiver.url)
        assert job_id in receiver.take().body


def test_an_attempt_that_the_api_did_not_survive_is_made_again_under_the_same_id(
    open_settings: Settings, database: Database, receiver: WebhookReceiver
) -> None:
    end_job(database, receiver.url)
    receiver.answers = [Answer(stalls=True)]
    killed = Deliverer(database, open_settings)

    async def die_while_waiting_for_the_answer() -> str:
        with database.transaction() as session:
            (claim,) = deliveries.claim(session, limit=1, each=1)
        attempt = asyncio.create_task(killed.attempt(claim))
        got = await asyncio.to_thread(receiver.take)
        attempt.cancel()
        await asyncio.gather(attempt, return_exceptions=True)
        await killed.close()
        return got.headers["webhook-id"]

    first = asyncio.run(die_while_waiting_for_the_answer())
    assert find(database).state == "pending"
    with database.transaction() as session:  # the lease runs out
        session.execute(
            tables.WebhookDeliveryRow.__table__.update().values(next_attempt_at=find(database).created_at)
        )
    with TestClient(create_app(open_settings)):
        assert receiver.take().headers["webhook-id"] == first


def test_two_apis_send_each_delivery_once(
    open_settings: Settings, database: Database, receiver: WebhookReceiver
) -> None:
    with database.transaction() as session:
        make_webhook(session, url=receiver.url)
        for _ in range(20):
            job_records.request_cancel(session, make_job(session).id)
    with TestClient(create_app(open_settings)), TestClient(create_app(open_settings)):
        ids = [receiver.take().headers["webhook-id"] for _ in range(20)]
    assert len(set(ids)) == 20
    assert receiver.received.empty()


def test_a_slow_receiver_holds_up_no_other(
    open_settings: Settings, database: Database, receiver: WebhookReceiver
) -> None:
    receiver.answers = [Answer(stalls=True)] * 4
    with database.transaction() as session:
        make_webhook(session, url=f"{receiver.url}/slow")
        for _ in range(20):
            job_records.request_cancel(session, make_job(session).id)
    with TestClient(create_app(open_settings)):
        for _ in range(4):
            assert receiver.take().path == "/slow"
        with database.transaction() as session:
            make_webhook(session, url=f"{receiver.url}/quick")
            job_records.request_cancel(session, make_job(session).id)
        assert receiver.take().path == "/quick"


def test_a_name_that_turns_private_is_refused_when_it_is_connected_to(
    receiver: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["1.1.1.1", "127.0.0.1"])

    def rebind(_host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    monkeypatch.setattr("app.core.net.socket.getaddrinfo", rebind)
    from_registration = "http://rebinding.example:" + receiver.url.rsplit(":", 1)[1]
    socket.getaddrinfo("rebinding.example", 80)  # public when it was registered
    outcome = post(from_registration, allow_private=False)
    assert outcome.status is None
    assert "TUNESMITH_WEBHOOK_ALLOW_PRIVATE" in (outcome.error or "")
    assert receiver.received.empty()


def test_the_connection_goes_to_the_address_that_was_checked(
    receiver: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    port = receiver.url.rsplit(":", 1)[1]
    monkeypatch.setattr("app.core.net.resolve_allowed_addresses", lambda *_, **__: ["127.0.0.1"])
    monkeypatch.setattr("socket.getaddrinfo", answer)
    assert post(f"http://name.example:{port}/").status == 204
    assert receiver.take().headers["host"] == f"name.example:{port}"
    assert "name.example" not in asked


def test_the_next_address_is_tried_where_one_does_not_answer(
    receiver: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.core.net.resolve_allowed_addresses", lambda *_, **__: ["127.0.0.2", "127.0.0.1"])
    assert post(receiver.url).status == 204


def test_a_receiver_that_says_nothing_is_given_up_on(receiver: WebhookReceiver) -> None:
    receiver.answers = [Answer(stalls=True)]
    assert post(receiver.url, seconds=0.2) == DeliveryOutcome(None, "No answer within 0.2 seconds.")


def test_a_response_that_is_not_http_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        async def answer_nonsense() -> DeliveryOutcome:
            server = await asyncio.start_server(nonsense, sock=listener.dup())
            async with server:
                url = f"http://127.0.0.1:{listener.getsockname()[1]}"
                return await Sender(allow_private=True).post(url, HEADERS, "{}")

        async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 mail.example ESMTP\r\n")
            writer.close()

        outcome = asyncio.run(answer_nonsense())
    assert outcome.status is None
    assert (outcome.error or "").startswith("No answer: ")
