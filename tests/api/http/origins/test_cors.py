"""Pages of allowed origins call the API from a browser: a real one, and by the headers that it would send."""

from collections.abc import Iterator

import httpx
import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from starlette.responses import HTMLResponse

from app.core.settings import Settings
from app.core.storage.database import Database
from app.main import create_app
from tests.dashboard.browser import launch
from tests.factories import make_adapter
from tests.fakes import FakeEngine, ServerThread

PAGE = "https://box.example"
ASK = {"origin": PAGE, "access-control-request-method": "POST"}
# What the JavaScript of a page does: a stream with a key, then an error, whose headers it reads too.
SCRIPT = """async ([url, key]) => {
    const ask = (model, key) => fetch(url + "/v1/chat/completions", {
        method: "POST",
        headers: {
            "authorization": "Bearer " + key, "content-type": "application/json", "x-stainless-lang": "js",
        },
        body: JSON.stringify({model, stream: true, messages: [{role: "user", content: "Hi"}]}),
    });
    const stream = await (await ask("helper", key)).text();
    const missing = await ask("nobody", key), refused = await ask("helper", "wrong");
    return {
        stream, missing: missing.status, refused: refused.status, id: missing.headers.get("x-request-id"),
    };
}"""


@pytest.fixture
def allowed(settings: Settings) -> Iterator[TestClient]:
    settings.allowed_origins = [PAGE]
    settings.api_key = SecretStr("secret")
    with TestClient(create_app(settings)) as client:
        yield client


@pytest.fixture
def page() -> Iterator[ServerThread]:
    """A page of another origin."""

    server = ServerThread(HTMLResponse("<title>A page</title>"), lifespan="off")
    yield server
    server.stop()


def test_a_preflight_of_an_allowed_origin_is_granted_without_a_key(allowed: TestClient) -> None:
    answer = allowed.options(
        "/v1/chat/completions",
        headers=ASK | {"access-control-request-headers": "authorization, content-type, x-stainless-os"},
    )
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "authorization" in answer.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in answer.headers


def test_a_preflight_of_another_origin_is_refused(allowed: TestClient) -> None:
    answer = allowed.options("/jobs", headers=ASK | {"origin": "https://evil.example"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin_refused")
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("path", "key", "status"), [("/jobs", "secret", 200), ("/jobs", "wrong", 401), ("/none", "secret", 404)]
)
def test_every_response_may_be_read_by_the_allowed_page_alone(
    allowed: TestClient, path: str, key: str, status: int
) -> None:
    headers = {"authorization": f"Bearer {key}", "origin": PAGE}
    answer = allowed.get(path, headers=headers)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, PAGE)
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
    other = allowed.get(path, headers=headers | {"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    assert "Origin" in other.headers["vary"]


def test_a_page_in_a_browser_streams_an_answer_and_reads_errors(
    settings: Settings, database: Database, engine: FakeEngine, page: ServerThread
) -> None:
    engine.register(database)
    with database.transaction() as session:
        make_adapter(session)
    settings.allowed_origins = [page.url]
    settings.api_key = SecretStr("secret")
    server = ServerThread(create_app(settings))
    try:
        with launch() as browser:
            tab = browser.new_page()
            tab.goto(page.url)
            found = tab.evaluate(SCRIPT, [server.url, "secret"])
    finally:
        server.stop()
    assert found["stream"].endswith("data: [DONE]\n\n")
    assert (found["missing"], found["refused"]) == (404, 401)
    assert found["id"].startswith("req_")


def test_a_page_in_a_browser_whose_origin_is_not_named_gets_nothing(
    live: httpx.Client, page: ServerThread
) -> None:
    with launch() as browser:
        tab = browser.new_page()
        tab.goto(page.url)
        with pytest.raises(Exception, match="Failed to fetch"):
            tab.evaluate(SCRIPT, [str(live.base_url).rstrip("/"), "secret"])
