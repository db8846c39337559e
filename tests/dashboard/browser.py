"""A real browser for the tests: the system's Chromium, and pages whose console is recorded."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

AXE = Path(__file__).with_name("vendor") / "axe.min.js"
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# What the browser itself says of an answer that is an error, or of none.
FAILED_REQUEST = "Failed to load resource"
# The first preview and the first answer wait until a process has loaded the model.
expect.set_options(timeout=180_000)


def find_chromium() -> str:
    """The path of Chromium; the test fails without one."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.fail(
            "The dashboard is tested in a real browser, and there is no Chromium here. Install it: "
            "`apt-get install -y chromium` on Debian."
        )
    return found


@contextmanager
def launch() -> Iterator[Browser]:
    """Chromium, until the block ends."""
    path = find_chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_FLAGS)
        yield browser
        browser.close()


def expect_preflight(
    page: Page, change: Callable[[], object], is_wanted: Callable[[dict[str, Any]], bool]
) -> None:
    """Change the form, and wait until it asks for the preflight of a wanted spec.

    What it asked for before the change may be sent after it.
    """

    def asks(request: Request) -> bool:
        return request.url.endswith("/jobs/preflight") and is_wanted(json.loads(request.post_data or ""))

    with page.expect_request(asks, timeout=180_000):
        change()


class Console:
    """The messages of a page's console; `allowed` are those that a test expects."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.allowed: list[str] = []

    def listen(self, page: Page) -> None:
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.messages.append(f"uncaught: {error}"))

    def unexpected(self) -> list[str]:
        return [said for said in self.messages if not any(known in said for known in self.allowed)]

    def _hear(self, message: ConsoleMessage) -> None:
        self.messages.append(f"{message.type}: {message.text} ({message.location.get('url', '')})")


NewPage = Callable[..., Page]


@contextmanager
def pages(browser: Browser, console: Console) -> Iterator[NewPage]:
    """Makes pages, each in a fresh profile, and closes them all at the end."""
    contexts = []

    def new_page(**options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        context.set_default_timeout(180_000)
        page = context.new_page()
        console.listen(page)
        return page

    yield new_page
    for context in contexts:
        context.close()


def serious_faults(page: Page) -> list[str]:
    """Axe's serious and critical findings; axe bypasses the page's own content security policy."""
    session = page.context.new_cdp_session(page)
    session.send("Runtime.evaluate", {"expression": AXE.read_text()})
    run = "axe.run(document, {resultTypes: ['violations']}).then(({violations}) => violations)"
    answer = session.send(
        "Runtime.evaluate", {"expression": run, "awaitPromise": True, "returnByValue": True}
    )
    assert "exceptionDetails" not in answer, answer
    return [
        f"{fault['id']}: {fault['help']}: {node['html'][:200]} {node['failureSummary']}"
        for fault in answer["result"]["value"]
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]
