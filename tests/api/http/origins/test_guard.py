import httpx
import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from app.api.http.origins.guard import is_loopback
from app.core.keys import records as keys
from app.core.settings import Settings
from app.core.storage.database import Database
from app.main import create_app

UPLOAD = {"file": ("rows.jsonl", b'{"text": "a row"}\n')}
OWN = {"host": "localhost:8000", "origin": "http://localhost:8000"}


def upload(client: TestClient, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer: httpx.Response = client.post("/datasets", files=UPLOAD, headers=named)
    return answer


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:3000", "host": "localhost:8000"},
        {"origin": "http://[::1", "host": "localhost"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site", "origin": "http://localhost:3000"},
        {**OWN, "sec_fetch_site": "cross-site"},
    ],
)
def test_a_page_of_another_origin_changes_nothing(client: TestClient, headers: dict[str, str]) -> None:
    answer = upload(client, **headers)
    assert answer.status_code == 403
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("permission_error", "origin_refused")
    assert "TUNESMITH_ALLOWED_ORIGINS" in error["hint"]
    assert client.get("/datasets").json()["data"] == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        OWN,
        {**OWN, "sec_fetch_site": "same-origin"},
        {"sec_fetch_site": "none"},
        {"host": "localhost", "origin": "http://localhost:80"},
        # A proxy that ends TLS and keeps the host.
        {"host": "localhost", "origin": "https://localhost"},
    ],
)
def test_the_own_page_and_other_clients_may_change_things(
    client: TestClient, headers: dict[str, str]
) -> None:
    assert upload(client, **headers).status_code == 201


@pytest.mark.parametrize("path", ["/jobs/job_x/cancel", "/v1/chat/completions", "/generate", "/jobs"])
def test_every_route_that_changes_something_is_guarded(client: TestClient, path: str) -> None:
    answer = client.post(path, json={}, headers={"origin": "https://evil.example"})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "origin_refused"


def test_a_page_of_another_origin_deletes_nothing(client: TestClient) -> None:
    dataset = upload(client).json()["id"]
    answer = client.delete(f"/datasets/{dataset}", headers={"origin": "https://evil.example"})
    assert answer.status_code == 403
    assert client.get(f"/datasets/{dataset}").status_code == 200


def test_reading_needs_no_origin(client: TestClient) -> None:
    assert client.get("/jobs", headers={"origin": "https://evil.example"}).status_code == 200


def test_no_answer_lets_another_origin_read_it(client: TestClient) -> None:
    answer = client.options("/jobs", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in answer.headers


def test_origins_of_the_settings_may_change_things(settings: Settings) -> None:
    settings.allowed_origins = ["https://box.example"]
    with TestClient(create_app(settings)) as client:
        headers = {"origin": "https://box.example", "sec_fetch_site": "cross-site"}
        assert upload(client, **headers).status_code == 201
        assert upload(client, origin="https://box.example.evil").status_code == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "[::1", ""])
def test_without_a_key_a_foreign_name_for_this_machine_is_refused(client: TestClient, host: str) -> None:
    answer = client.get("/jobs", headers={"host": host})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "host_refused"
    assert "TUNESMITH_ALLOWED_HOSTS" in answer.json()["error"]["hint"]


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "127.1.2.3:9", "[::1]:8000", "LOCALHOST"])
def test_names_of_this_machine_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/jobs", headers={"host": host}).status_code == 200


def test_hosts_of_the_settings_are_answered(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    monkeypatch.setenv("TUNESMITH_ALLOWED_HOSTS", "box.lan, API")
    with TestClient(create_app(Settings(data_dir=settings.data_dir))) as client:
        statuses = [client.get("/jobs", headers={"host": host}).status_code for host in ("box.lan:80", "api")]
    assert statuses == [200, 200]


def test_with_a_key_any_name_may_be_used(settings: Settings) -> None:
    settings.api_key = SecretStr("open sesame")
    headers = {"host": "box.example", "authorization": "Bearer open sesame"}
    with TestClient(create_app(settings)) as client:
        assert client.get("/jobs", headers=headers).status_code == 200


def test_with_a_made_key_any_name_may_be_used(client: TestClient, database: Database) -> None:
    with database.transaction() as session:
        _, secret = keys.create(session, "laptop")
    headers = {"host": "box.example", "authorization": f"Bearer {secret}"}
    assert client.get("/jobs", headers=headers).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "localhost.evil.example", "box"])
def test_other_hosts_are_no_loopback(host: str) -> None:
    assert not is_loopback(host)
