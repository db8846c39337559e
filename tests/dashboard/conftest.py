"""One browser a module, and a page whose console must stay empty."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from tests.dashboard.browser import Console, NewPage, launch, pages


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
