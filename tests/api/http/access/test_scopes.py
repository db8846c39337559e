"""What a key may do: every route has a scope, and a key without it is refused before the body is read."""

import re

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from app.api.http.access.scopes import ROUTES, find_route, find_scopes
from app.core.keys import records as keys
from app.core.keys.scopes import Scope
from app.core.settings import Settings
from app.core.storage.database import Database
from app.main import create_app

OPEN = {("GET", "/health"), ("GET", "/ready")}


def documented(client: TestClient) -> set[tuple[str, str]]:
    paths = client.get("/openapi.json").json()["paths"]
    return {(method.upper(), path) for path, methods in paths.items() for method in methods}


@pytest.fixture
def secrets(database: Database) -> dict[str, str]:
    """A key for each scope, by its name; one with admin comes first."""
    with database.transaction() as session:
        return {
            scope: keys.create(session, f"my-{scope}", scopes=[scope])[1]
            for scope in (Scope.ADMIN, Scope.READ, Scope.INFER, Scope.TRAIN)
        }


def status(client: TestClient, key: str, method: str, path: str) -> int:
    return client.request(method, path, headers={"authorization": f"Bearer {key}"}).status_code


def test_every_route_has_a_scope_and_no_scope_is_without_a_route(client: TestClient) -> None:
    listed = {(method, path.replace(":path", "")) for method, path in ROUTES}
    assert listed == documented(client) - OPEN


def test_no_listed_route_hides_another(client: TestClient) -> None:
    for method, path in ROUTES:
        assert find_route(method, re.sub(r"\{\w+(:path)?\}", "x", path)) == path


def test_a_route_that_is_not_listed_needs_admin() -> None:
    assert find_scopes("POST", "/something/new") == (Scope.ADMIN,)
    assert find_scopes("PUT", "/jobs") == (Scope.ADMIN,)


@pytest.mark.parametrize("scope", [Scope.READ, Scope.INFER, Scope.TRAIN, Scope.ADMIN])
def test_a_key_does_what_its_scope_says_and_nothing_else(
    client: TestClient, secrets: dict[str, str], scope: Scope
) -> None:
    may = {Scope.TRAIN: {Scope.READ, Scope.TRAIN}, Scope.ADMIN: set(Scope)}.get(scope, {scope})
    refused = set()
    for method, path in ROUTES:
        if method == "GET" and path.endswith(("/events", "/logs")):
            continue  # streams that wait
        asked = re.sub(r"\{\w+(:path)?\}", "x", path)
        if status(client, secrets[scope], method, asked) == 403:
            refused.add((method, path))
    expected = {route for route, needed in ROUTES.items() if may.isdisjoint(needed)}
    assert refused == {one for one in expected if not one[1].endswith(("/events", "/logs"))}


def test_the_refusal_names_the_key_and_the_scope(client: TestClient, secrets: dict[str, str]) -> None:
    headers = {"authorization": f"Bearer {secrets[Scope.INFER]}"}
    native = client.post("/jobs", headers=headers)
    assert (native.status_code, native.json()["error"]["code"]) == (403, "scope_missing")
    assert native.json()["error"]["message"] == "The key 'my-infer' has infer; POST /jobs needs train."
    openai = client.post("/v1/fine_tuning/jobs", headers=headers).json()["error"]
    assert (openai["type"], openai["code"], openai["param"]) == ("permission_error", "scope_missing", None)


def test_the_key_of_the_settings_may_do_everything(settings: Settings, secrets: dict[str, str]) -> None:
    settings.api_key = SecretStr("own")
    with TestClient(create_app(settings)) as client:
        assert status(client, "own", "GET", "/keys") == 200
        assert status(client, secrets[Scope.READ], "GET", "/keys") == 403
