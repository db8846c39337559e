"""The dashboard of an API that wants a key, in a real browser. No worker is needed for it."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from pydantic import SecretStr
from starlette.responses import HTMLResponse

from app.core.keys import usage
from app.core.keys.usage import Amounts, UsageKey
from app.core.settings import Settings
from app.core.storage.database import Database
from app.main import create_app
from tests.dashboard.browser import FAILED_REQUEST, Console, NewPage, serious_faults
from tests.factories import make_job
from tests.fakes import ServerThread

KEY = "open sesame"


@pytest.fixture
def url(settings: Settings, database: Database) -> Iterator[str]:
    with database.transaction() as session:
        make_job(session, name="locked-away")
    settings.api_key = SecretStr(KEY)
    server = ServerThread(create_app(settings))
    yield server.url
    server.stop()


@pytest.fixture
def page(new_page: NewPage, console: Console) -> Page:
    # The browser logs every 401.
    console.allowed = [FAILED_REQUEST]
    return new_page()


def give(page: Page, key: str) -> None:
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Use this key").click()


def test_the_key_is_asked_for_once_and_stored_in_this_browser_alone(url: str, page: Page) -> None:
    page.goto(url)
    expect(page.get_by_role("dialog")).to_contain_text("This API needs a key")
    assert serious_faults(page) == []
    give(page, "wrong")
    expect(page.get_by_role("dialog")).to_contain_text("This key is not in force.")
    give(page, KEY)
    expect(page.get_by_text("locked-away")).to_be_visible()
    page.reload()
    expect(page.get_by_text("locked-away")).to_be_visible()
    assert page.context.cookies() == []
    page.get_by_role("button", name="Forget the key").click()
    expect(page.get_by_role("dialog")).to_contain_text("This API needs a key")


def test_a_closed_key_dialog_opens_again_only_on_request(url: str, page: Page) -> None:
    page.goto(url)
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("alert")).to_contain_text("A key is needed")
    page.get_by_role("link", name="Datasets").click()
    expect(page.locator("h1")).to_have_text("Datasets")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_role("button", name="Give the key").click()
    expect(page.get_by_role("dialog")).to_be_visible()


def test_live_events_and_downloads_carry_the_key(url: str, page: Page) -> None:
    page.goto(url)
    give(page, KEY)
    page.get_by_text("locked-away").click()
    expect(page.get_by_role("log")).to_contain_text("queued")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download").click()
    assert "queued" in Path(saved.value.path()).read_text()


def test_a_page_of_another_origin_changes_nothing(
    settings: Settings, new_page: NewPage, console: Console
) -> None:
    api, other = ServerThread(create_app(settings)), ServerThread(HTMLResponse("<h1>Another page</h1>"))
    page = new_page()
    page.goto(other.url)
    send = """async ([url, mode]) => {
        const form = new FormData();
        form.set("file", new File(['{"text": "a row"}'], "rows.jsonl"));
        await fetch(`${url}/datasets`, { method: "POST", body: form, mode }).catch(() => null);
    }"""
    console.allowed = [FAILED_REQUEST]
    page.evaluate(send, [api.url, "no-cors"])
    listed = page.request.get(f"{api.url}/datasets").json()
    # The same from the own page is stored.
    page.goto(api.url)
    page.evaluate(send, [api.url, "same-origin"])
    stored = page.request.get(f"{api.url}/datasets").json()
    api.stop()
    other.stop()
    assert (len(listed["data"]), len(stored["data"])) == (0, 1)


def test_a_key_is_made_and_revoked_on_the_status_page(
    settings: Settings, database: Database, page: Page
) -> None:
    server = ServerThread(create_app(settings))
    today = datetime.now(UTC).date()
    with database.transaction() as session:
        usage.add(session, {UsageKey("", today, "helper"): Amounts(requests=3, prompt_tokens=1500)})
    page.goto(f"{server.url}/#/status")
    expect(page.get_by_role("table", name="Usage by key and model")).to_contain_text("1,500")
    page.get_by_role("button", name="New key").click()
    page.get_by_label("Name").fill("me")
    page.get_by_label("Requests a minute").fill("6000")
    assert serious_faults(page) == []
    page.get_by_role("button", name="Make the key").click()
    # From now on these pages need it; it is shown once, and stored in this browser.
    expect(page.get_by_role("status").filter(has_text="tsk_")).to_be_visible()
    expect(page.get_by_text("6,000 requests a minute")).to_be_visible()
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.reload()
    page.get_by_role("button", name="Revoke me").click()
    page.get_by_role("button", name="Revoke it for good").click()
    expect(page.get_by_text("No key: whoever reaches this API")).to_be_visible()
    server.stop()
