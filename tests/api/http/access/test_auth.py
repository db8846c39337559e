from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from app.api.http.access import auth
from app.api.http.access.auth import AuthMiddleware
from app.api.http.access.limits import RequestLimits
from app.api.http.access.usage_meter import UsageMeter
from app.core.keys import records as keys
from app.core.settings import Settings
from app.core.storage.database import Database
from app.main import create_app


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def locked(settings: Settings) -> Iterator[TestClient]:
    settings.api_key = SecretStr("open sesame")
    with TestClient(create_app(settings)) as client:
        yield client


def test_without_any_key_every_request_is_accepted(client: TestClient) -> None:
    assert client.get("/jobs").status_code == 200


@pytest.mark.parametrize("headers", [{}, bearer("wrong"), bearer(""), {"authorization": "Basic b3Blbg=="}])
def test_a_missing_or_wrong_key_is_refused(locked: TestClient, headers: dict[str, str]) -> None:
    answer = locked.get("/jobs", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "unauthorized"
    assert "x-request-id" in answer.headers


def test_the_key_of_the_settings_is_accepted(locked: TestClient) -> None:
    assert locked.get("/jobs", headers=bearer("open sesame")).status_code == 200


@pytest.mark.parametrize("path", ["/nope", "/metrics", "/redoc", "/health/x"])
def test_other_paths_reveal_nothing_without_a_key(locked: TestClient, path: str) -> None:
    assert locked.get(path).status_code == 401


@pytest.mark.parametrize(
    ("path", "status"), [("/health", 200), ("/ready", 503), ("/docs", 200), ("/openapi.json", 200)]
)
def test_health_and_docs_need_no_key(locked: TestClient, path: str, status: int) -> None:
    assert locked.get(path).status_code == status


def test_a_created_key_is_accepted_until_it_is_revoked(
    client: TestClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "CACHE_SECONDS", 0)
    with database.transaction() as session:
        _, other = keys.create(session, "other")
        key, secret = keys.create(session, "laptop")
    assert client.get("/jobs").status_code == 401
    assert client.get("/jobs", headers=bearer(secret)).status_code == 200
    with database.transaction() as session:
        keys.revoke(session, key.id)
    assert client.get("/jobs", headers=bearer(secret)).status_code == 401
    assert client.get("/jobs", headers=bearer(other)).status_code == 200


def test_a_revoked_key_is_accepted_for_a_second_at_most(settings: Settings, database: Database) -> None:
    with database.transaction() as session:
        key, secret = keys.create(session, "laptop")
    now = 0.0

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("in")(scope, receive, send)

    limits = RequestLimits(database, UsageMeter(database))
    client = TestClient(AuthMiddleware(answer, settings, database, limits, clock=lambda: now))
    assert client.get("/jobs", headers=bearer(secret)).status_code == 200
    with database.transaction() as session:
        keys.revoke(session, key.id)
        keys.create(session, "other")
    now = 0.9
    assert client.get("/jobs", headers=bearer(secret)).status_code == 200
    now = 1.1
    assert client.get("/jobs", headers=bearer(secret)).status_code == 401


def test_the_scheme_stands_in_the_openapi_document(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    assert document["paths"]["/jobs"]["post"]["security"] == [{"HTTPBearer": []}]
    assert "security" not in document["paths"]["/health"]["get"]
