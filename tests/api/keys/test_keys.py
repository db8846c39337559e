"""Keys over HTTP: made, shown without their secret, changed, revoked, expired."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from app.api.http.access import auth
from app.core.keys import records
from app.core.storage import tables
from app.core.storage.database import Database


@pytest.fixture(autouse=True)
def without_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "CACHE_SECONDS", 0)


@pytest.fixture
def admin(client: TestClient) -> dict[str, str]:
    """The headers of the first key."""
    made = client.post("/keys", json={"name": "me"})
    assert made.status_code == 201
    return bearer(made.json())


def bearer(made: Any) -> dict[str, str]:
    return {"authorization": f"Bearer {made['key']}"}


def make(client: TestClient, admin: dict[str, str], **fields: object) -> Any:
    made = client.post("/keys", json={"name": "app", "scopes": ["infer"], **fields}, headers=admin)
    assert made.status_code == 201, made.text
    return made.json()


def test_a_key_is_shown_once_and_stored_as_a_hash(
    client: TestClient, admin: dict[str, str], database: Database
) -> None:
    made = make(client, admin, limits={"requests_per_minute": 60}, expires_in_days=30)
    shown = client.get(f"/keys/{made['id']}", headers=admin).json()
    assert shown == {name: value for name, value in made.items() if name != "key"}
    assert shown["limits"] == {"requests_per_minute": 60, "queued_jobs": None, "tokens_per_day": None}
    assert made["key"] not in client.get("/keys", headers=admin).text
    with database.snapshot() as session:
        rows = session.scalars(select(tables.ApiKeyRow)).all()
        assert made["key"] not in str([vars(row) for row in rows])


def test_a_key_says_of_itself_what_it_may_do(client: TestClient, admin: dict[str, str]) -> None:
    made = make(client, admin, scopes=["train"], limits={"queued_jobs": 3})
    found = client.get("/keys/self", headers=bearer(made)).json()
    assert (found["id"], found["scopes"], found["limits"]["queued_jobs"]) == (
        made["id"],
        ["read", "train"],
        3,
    )


def test_the_first_key_may_make_others(client: TestClient) -> None:
    refused = client.post("/keys", json={"name": "app", "scopes": ["infer"]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "first_key_not_admin")


def test_only_an_admin_makes_keys(client: TestClient, admin: dict[str, str]) -> None:
    made = make(client, admin, scopes=["train", "infer"])
    assert client.post("/keys", json={"name": "more"}, headers=bearer(made)).status_code == 403
    assert client.get("/keys", headers=bearer(made)).status_code == 403


def test_a_change_holds_at_once(client: TestClient, admin: dict[str, str]) -> None:
    made = make(client, admin)
    assert client.get("/jobs", headers=bearer(made)).status_code == 403
    changed = client.patch(f"/keys/{made['id']}", json={"scopes": ["read"], "name": "viewer"}, headers=admin)
    assert (changed.json()["scopes"], changed.json()["name"]) == (["read"], "viewer")
    assert client.get("/jobs", headers=bearer(made)).status_code == 200
    client.patch(f"/keys/{made['id']}", json={"limits": {"requests_per_minute": 1}}, headers=admin)
    statuses = [client.get("/jobs", headers=bearer(made)).status_code for _ in range(2)]
    assert statuses[0] == 200 or statuses == [429, 429]  # a minute may have begun between them


def test_a_revoked_key_is_refused_and_stays_in_the_list(client: TestClient, admin: dict[str, str]) -> None:
    made = make(client, admin, scopes=["read"])
    assert client.delete(f"/keys/{made['id']}", headers=admin).status_code == 204
    assert client.get("/jobs", headers=bearer(made)).status_code == 401
    assert client.get(f"/keys/{made['id']}", headers=admin).json()["revoked_at"]


def test_an_expired_key_is_refused_by_its_name_and_does_not_open_the_api(
    client: TestClient, database: Database
) -> None:
    with database.transaction() as session:
        _, secret = records.create(session, "old", expires_at=datetime.now(UTC) - timedelta(seconds=1))
    refused = client.get("/jobs", headers={"authorization": f"Bearer {secret}"})
    assert refused.status_code == 401
    assert refused.json()["error"]["message"].startswith("The key 'old' expired at 20")
    assert client.get("/jobs").status_code == 401


@pytest.mark.parametrize(
    "body",
    [
        {"name": ""},
        {"name": "x", "scopes": []},
        {"name": "x", "scopes": ["write"]},
        {"name": "x", "limits": {"requests_per_minute": 0}},
        {"name": "x", "expires_at": "2020-01-01T00:00:00Z"},
        {"name": "x", "expires_at": "2099-01-01T00:00:00"},
        {"name": "x", "expires_at": "2099-01-01T00:00:00Z", "expires_in_days": 3},
    ],
)
def test_what_is_no_key_is_refused(client: TestClient, body: object) -> None:
    assert client.post("/keys", json=body).status_code == 422
