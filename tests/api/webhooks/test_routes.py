"""Webhooks over HTTP: register, change, delete, test, the log; and that the secret is shown once."""

import logging
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient

from app.core.settings import Settings
from app.core.storage.database import Database
from app.core.webhooks import deliveries, subscriptions
from app.main import create_app
from tests.factories import make_job
from tests.servers.webhook_receiver import Answer, WebhookReceiver


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    receiver = WebhookReceiver()
    yield receiver
    receiver.stop()


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    settings.webhook_allow_private = True
    with TestClient(create_app(settings)) as client:
        yield client


def register(client: TestClient, url: str, **fields: Any) -> dict[str, Any]:
    answer = client.post("/webhooks", json={"url": url, **fields})
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def cancel_job(client: TestClient, database: Database) -> str:
    with database.transaction() as session:
        job_id = make_job(session).id
    assert client.post(f"/jobs/{job_id}/cancel").status_code == 202
    return job_id


def log(client: TestClient, webhook: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get(f"/webhooks/{webhook['id']}/deliveries").json()["data"]
    return found


def test_a_secret_is_shown_only_by_the_response_that_creates_it(client: TestClient) -> None:
    answer = client.post("/webhooks", json={"url": "http://127.0.0.1:1/", "name": "chat"})
    webhook = answer.json()
    secret = webhook.pop("secret")
    assert secret.startswith("whsec_")
    assert webhook["event_types"] == list(subscriptions.EventType)
    assert client.get(answer.headers["location"]).json() == webhook
    assert client.get("/webhooks").json() == {"data": [webhook], "next": None}
    assert secret not in client.patch(f"/webhooks/{webhook['id']}", json={"name": "x"}).text


def test_the_end_of_a_job_arrives_signed_for_the_openai_client(
    client: TestClient, database: Database, receiver: WebhookReceiver
) -> None:
    webhook = register(client, f"{receiver.url}/hooks?from=tunesmith")
    job_id = cancel_job(client, database)
    got = receiver.take()
    openai_client = openai.OpenAI(api_key="none", webhook_secret=webhook["secret"])
    event = openai_client.webhooks.unwrap(got.body, got.headers)
    assert event.type == "fine_tuning.job.cancelled"
    assert event.data.id == job_id
    assert event.id.startswith("evt_")
    assert got.path == "/hooks"
    assert got.headers["content-type"] == "application/json"
    with pytest.raises(openai.InvalidWebhookSignatureError):
        openai_client.webhooks.unwrap(got.body + " ", got.headers)


def test_an_idempotency_key_repeats_the_response_with_its_secret(client: TestClient) -> None:
    body = {"url": "http://127.0.0.1:1/"}
    first, second = (client.post("/webhooks", json=body, headers={"idempotency-key": "k"}) for _ in "12")
    assert first.json() == second.json()
    assert len(client.get("/webhooks").json()["data"]) == 1


def test_a_test_shows_the_receivers_response_at_once(client: TestClient, receiver: WebhookReceiver) -> None:
    webhook = register(client, receiver.url)
    receiver.answers = [Answer(204), Answer(500)]
    path = f"/webhooks/{webhook['id']}/test"
    good, bad = (
        client.post(path).json(),
        client.post(path, json={"event_type": "fine_tuning.job.failed"}).json(),
    )
    assert (good["state"], good["response_status"], good["error"]) == ("delivered", 204, None)
    assert (bad["state"], bad["response_status"], bad["error"]) == ("given_up", 500, "It answered 500.")
    assert (bad["attempts"], bad["next_attempt_at"], bad["job"]) == (1, None, None)
    assert '"type":"fine_tuning.job.failed"' in bad["body"]


def test_a_redirect_is_not_followed(client: TestClient, receiver: WebhookReceiver) -> None:
    webhook = register(client, receiver.url)
    receiver.answers = [Answer(307, {"location": f"{receiver.url}/elsewhere"})]
    delivery = client.post(f"/webhooks/{webhook['id']}/test").json()
    assert delivery["error"] == "It answered 307: redirects are not followed."
    receiver.take()
    assert receiver.received.empty()


def test_an_endless_response_is_cut_off(client: TestClient, receiver: WebhookReceiver) -> None:
    webhook = register(client, receiver.url)
    receiver.answers = [Answer(200, body_bytes=1 << 34)]
    assert client.post(f"/webhooks/{webhook['id']}/test").json()["state"] == "delivered"


def test_a_receiver_that_is_not_there_is_named_in_the_log(client: TestClient) -> None:
    webhook = register(client, "http://127.0.0.1:1/")
    delivery = client.post(f"/webhooks/{webhook['id']}/test").json()
    assert delivery["error"].startswith("No connection: ")
    assert log(client, webhook) == [delivery]
    assert client.get(f"/webhooks/{webhook['id']}/deliveries/{delivery['id']}").json() == delivery


def test_a_delivery_is_sent_again_under_the_same_id(
    client: TestClient, database: Database, receiver: WebhookReceiver
) -> None:
    webhook = register(client, receiver.url)
    cancel_job(client, database)
    first = receiver.take()
    path = f"/webhooks/{webhook['id']}/deliveries/{first.headers['webhook-id']}/redeliver"
    assert client.post(path).json()["state"] == "pending"
    again = receiver.take()
    assert again.headers["webhook-id"] == first.headers["webhook-id"]
    assert again.body == first.body


@pytest.mark.parametrize(
    ("url", "said"),
    [("http://localhost:1/", "loopback"), ("http://169.254.169.254/", "link-local"), ("x", "http or https")],
)
@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_a_target_inside_is_refused_unless_a_setting_allows_it(
    client: TestClient, settings: Settings, method: str, url: str, said: str
) -> None:
    path = "/webhooks" if method == "POST" else f"/webhooks/{register(client, 'http://127.0.0.1:1/')['id']}"
    settings.webhook_allow_private = False
    answer = client.request(method, path, json={"url": url})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (422, "webhook_target_refused", "url")
    assert said in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "url"),
        ({"url": "https://example.org", "event_types": ["job.done"]}, "event_types.0"),
        ({"url": "https://example.org", "event_types": []}, "event_types"),
        ({"url": "https://example.org", "secret": "mine"}, "secret"),
    ],
)
def test_a_malformed_webhook_names_its_field(client: TestClient, body: dict[str, Any], param: str) -> None:
    answer = client.post("/webhooks", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)


def test_a_webhook_is_changed_and_deleted(client: TestClient) -> None:
    path = f"/webhooks/{register(client, 'http://127.0.0.1:1/')['id']}"
    changed = client.patch(path, json={"enabled": False, "event_types": ["fine_tuning.job.failed"]}).json()
    assert (changed["enabled"], changed["event_types"]) == (False, ["fine_tuning.job.failed"])
    assert client.delete(path).status_code == 204
    for answer in (
        client.get(path),
        client.patch(path, json={}),
        client.delete(path),
        client.post(f"{path}/test"),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "webhook_not_found")


def test_the_webhook_of_the_settings_is_signed_with_their_secret(
    settings: Settings, database: Database, receiver: WebhookReceiver
) -> None:
    own = Settings(
        data_dir=settings.data_dir,
        allowed_hosts=settings.allowed_hosts,
        webhook_url=receiver.url,
        webhook_secret="whsec_c2VjcmV0",
        webhook_allow_private=True,
    )
    with database.transaction() as session:
        job_id = make_job(session).id
        subscriptions.follow_settings(session, own)
    with TestClient(create_app(own)) as client:
        client.post(f"/jobs/{job_id}/cancel")
        got = receiver.take()
        openai.OpenAI(api_key="none").webhooks.verify_signature(
            got.body, got.headers, secret="whsec_c2VjcmV0"
        )
        (webhook,) = client.get("/webhooks").json()["data"]
        assert webhook["from_settings"]
        answer = client.delete(f"/webhooks/{webhook['id']}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "webhook_fixed")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"webhook_url": "https://example.org"}, "TUNESMITH_WEBHOOK_SECRET"),
        ({"webhook_url": "ftp://example.org", "webhook_secret": "s"}, "http or https"),
        ({"webhook_url": "https://example.org", "webhook_secret": "whsec_!"}, "base64"),
    ],
)
def test_a_webhook_in_the_settings_must_make_sense(fields: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Settings(**fields)  # type: ignore[arg-type]


def test_no_secret_reaches_the_logs(
    client: TestClient, database: Database, receiver: WebhookReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    receiver.answers = [Answer(500)]
    webhook = register(client, f"{receiver.url}/?token=hidden")
    cancel_job(client, database)
    receiver.take()
    client.post(f"/webhooks/{webhook['id']}/test")
    ours = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("app"))
    assert webhook["secret"] not in caplog.text
    assert webhook["id"] in ours
    assert "hidden" not in ours


def test_deliveries_come_in_pages(client: TestClient, database: Database) -> None:
    webhook = register(client, "http://127.0.0.1:1/")
    client.patch(f"/webhooks/{webhook['id']}", json={"enabled": False})
    with database.transaction() as session:
        for _ in range(3):
            deliveries.start_test(session, webhook["id"], subscriptions.EventType.FAILED)
    path = f"/webhooks/{webhook['id']}/deliveries"
    first = client.get(path, params={"limit": 2}).json()
    rest = client.get(path, params={"limit": 2, "after": first["next"]}).json()
    assert [len(first["data"]), len(rest["data"]), rest["next"]] == [2, 1, None]
