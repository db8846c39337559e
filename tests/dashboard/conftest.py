"""One browser a module, a page whose console must stay empty, and an API without a worker."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from app.core.settings import Settings
from app.main import create_app
from tests.dashboard.browser import Console, NewPage, launch, pages
from tests.fakes import ServerThread


@pytest.fixture
def server(settings: Settings) -> Iterator[ServerThread]:
    server = ServerThread(create_app(settings))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launch() as browser:
        yield browser


@pytest.fixture
def console() -> Iterator[Console]:
    console = Console()
    yield console
    assert console.unexpected() == []


@pytest.fixture
def new_page(browser: Browser, console: Console) -> Iterator[NewPage]:
    with pages(browser, console) as new_page:
        yield new_page


@pytest.fixture
def page(new_page: NewPage) -> Page:
    return new_page()
