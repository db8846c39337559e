from collections.abc import Iterator

import pytest

from app.core.settings import Settings
from tests.cli.conftest import Run, json_of
from tests.servers.webhook_receiver import WebhookReceiver


@pytest.fixture
def settings(settings: Settings) -> Settings:
    settings.webhook_allow_private = True
    return settings


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    receiver = WebhookReceiver()
    yield receiver
    receiver.stop()


def test_a_webhook_is_added_tried_and_deleted(run: Run, receiver: WebhookReceiver) -> None:
    added = run("webhooks", "add", receiver.url, "--on", "failed", "--name", "chat")
    assert added.stdout.startswith("whsec_")
    (listed,) = json_of(run("webhooks", "list", "--json"))["data"]
    assert listed["event_types"] == ["fine_tuning.job.failed"]
    assert "delivered, status 2" in run("webhooks", "test", listed["id"]).stdout
    assert "a test" in run("webhooks", "deliveries", listed["id"]).stdout
    assert run("webhooks", "rm", listed["id"], "--yes").exit_code == 0
    assert json_of(run("webhooks", "list", "--json"))["data"] == []


def test_a_test_that_nobody_takes_has_an_exit_status(run: Run) -> None:
    run("webhooks", "add", "http://127.0.0.1:1/")
    (listed,) = json_of(run("webhooks", "list", "--json"))["data"]
    tried = run("webhooks", "test", listed["id"])
    assert (tried.exit_code, "It was not delivered" in tried.stderr) == (1, True)
