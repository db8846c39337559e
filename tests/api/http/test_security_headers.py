import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from app.core.settings import Settings
from app.main import create_app

PAGES = ["/", "/dashboard/style.css", "/dashboard/js/app.js", "/dashboard/vendor/uplot.js", "/dashboard/nope"]


@pytest.mark.parametrize("path", PAGES)
def test_the_dashboard_runs_nothing_but_its_own_files(client: TestClient, path: str) -> None:
    policy = client.get(path).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "style-src 'self';" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("path", ["/", "/docs", "/jobs", "/nope", "/openapi.json"])
def test_no_response_may_be_framed_or_sniffed(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]


def test_a_response_that_is_no_page_may_run_no_script(client: TestClient) -> None:
    assert "script-src" not in client.get("/jobs").headers["content-security-policy"]


def test_a_refusal_has_the_headers_too(client: TestClient) -> None:
    refused = client.post("/jobs", headers={"origin": "https://evil.example"})
    assert refused.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("path", "status"), [("/", 200), ("/dashboard/js/app.js", 200), ("/dashboard/", 404)]
)
def test_the_files_need_no_key(settings: Settings, path: str, status: int) -> None:
    settings.api_key = SecretStr("open sesame")
    with TestClient(create_app(settings)) as client:
        assert client.get(path).status_code == status
        assert client.get("/jobs").status_code == 401


@pytest.mark.parametrize(
    "path", ["/dashboard/../main.py", "/dashboard/%2e%2e/pages.py", "/dashboard/..%2fpages.py"]
)
def test_nothing_but_the_files_is_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_the_page_is_checked_again_after_an_upgrade(client: TestClient) -> None:
    answer = client.get("/dashboard/js/app.js")
    assert answer.headers["cache-control"] == "no-cache"
    again = client.get("/dashboard/js/app.js", headers={"if-none-match": answer.headers["etag"]})
    assert again.status_code == 304
