"""Search on the Hub, and downloads, through the API."""

import pytest
from fastapi.testclient import TestClient

from app.core.base_models.queue import download_queue
from app.core.settings import Settings
from app.core.storage.database import Database
from app.core.work.failures import WorkFailure
from tests.api.base_models.conftest import CacheEngine
from tests.servers.hub import FakeHub
from tests.servers.models import add_model


def test_a_search_says_what_is_here(client: TestClient, box: CacheEngine, hub: FakeHub) -> None:
    add_model(hub, "owner/one")
    add_model(hub, "owner/two")
    box.add("owner/one")
    found = client.get("/models/search?query=owner").json()
    assert found["state"] == "ok"
    assert {model["name"]: model["downloaded"] for model in found["data"]} == {
        "owner/one": True,
        "owner/two": False,
    }
    assert client.get("/models/search?query=owner&limit=1").json()["data"][1:] == []


def test_a_search_finds_only_what_is_allowed(
    client: TestClient, box: CacheEngine, hub: FakeHub, settings: Settings
) -> None:
    for name in ("owner/one", "owner/two"):
        add_model(hub, name)
    settings.allowed_models = ["owner/two"]
    assert [one["name"] for one in client.get("/models/search").json()["data"]] == ["owner/two"]


def test_a_hub_that_can_not_be_asked_is_no_error(client: TestClient, box: CacheEngine, hub: FakeHub) -> None:
    hub.broken_status = 502
    found = client.get("/models/search?query=a")
    assert (found.status_code, found.json()["state"], found.json()["data"]) == (200, "unreachable", [])
    box.stop()
    assert client.get("/models/search?query=a").json()["state"] == "no_engine"


def test_no_engine_is_a_state_of_the_search(client: TestClient) -> None:
    assert client.get("/models/search").json()["state"] == "no_engine"
    assert client.get("/models/fit?base_model=owner/model").status_code == 503


def test_a_download_is_queued_once_followed_and_ends(client: TestClient, database: Database) -> None:
    first, second = (client.post("/models/downloads", json={"base_model": "owner/model"}) for _ in range(2))
    assert (first.status_code, first.json()) == (202, second.json())
    with database.transaction() as session:
        lease = download_queue.claim(session, lease_seconds=30, max_attempts=3)
        assert lease is not None
        download_queue.record(session, lease, done_bytes=5_000_000_000, total_bytes=14_000_000_000)
    found = client.get(f"/models/downloads/{first.json()['id']}").json()
    assert (found["state"], found["done_bytes"], found["total_bytes"]) == ("running", 5 * 10**9, 14 * 10**9)
    assert client.get("/models").json()["data"] == []
    with database.transaction() as session:
        download_queue.fail(session, lease, WorkFailure("model_gated", "It is gated.", "Accept its terms."))
    (found,) = client.get("/models/downloads").json()["data"]
    assert (found["state"], found["error"]["hint"]) == ("failed", "Accept its terms.")


def test_a_download_is_cancelled_once(client: TestClient) -> None:
    made = client.post("/models/downloads", json={"base_model": "owner/model"}).json()
    path = f"/models/downloads/{made['id']}/cancel"
    assert client.post(path).json()["state"] == "cancelled"
    assert client.post(path).status_code == 409
    assert client.post("/models/downloads/dl_0/cancel").status_code == 404


@pytest.mark.parametrize("name", ["mine", "../etc", "owner/other"])
def test_only_allowed_models_of_the_hub_are_downloaded(
    client: TestClient, settings: Settings, name: str
) -> None:
    settings.allowed_models = ["owner/model"]
    assert client.post("/models/downloads", json={"base_model": name}).status_code == 422
