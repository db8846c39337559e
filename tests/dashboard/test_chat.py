"""The chat in a real browser, over an API with a scripted engine."""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from playwright.sync_api import Page, expect

from app.core.engine.messages import BaseModelRef, ReasoningDelta, TokenDelta, ToolCallDelta
from app.core.engine.state import EngineState, LoadingBase
from app.core.settings import Settings
from app.core.specs.job import QuantizationSpec
from app.core.storage.database import Database
from app.main import create_app
from tests.dashboard.browser import serious_faults
from tests.factories import make_adapter
from tests.fakes import FINISHED, Act, FakeEngine, ServerThread


@pytest.fixture
def engine(database: Database) -> Iterator[FakeEngine]:
    engine = FakeEngine()
    with database.transaction() as session:
        make_adapter(session)
    engine.register(database)
    yield engine
    engine.stop()


@pytest.fixture
def server(settings: Settings, engine: FakeEngine) -> Iterator[ServerThread]:
    server = ServerThread(create_app(settings))
    yield server
    server.stop()


def say(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def turns_of(engine: FakeEngine, number: int) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in engine.requests[number].messages or []]


def test_turns_are_asked_edited_regenerated_and_stay_in_the_browser(
    server: ServerThread, engine: FakeEngine, page: Page
) -> None:
    engine.scripts = [
        [ReasoningDelta(text="Hm."), TokenDelta(text="**Bold** and\n\n```sh\nls\n```"), FINISHED],
        [TokenDelta(text="second"), FINISHED],
        [TokenDelta(text="again"), FINISHED],
        [TokenDelta(text="edited"), FINISHED],
    ]
    page.goto(f"{server.url}/#/chat")
    page.get_by_text("System prompt and sampling").click()
    page.get_by_label("System prompt").fill("Be short.")
    say(page, "First?")
    reply = page.get_by_label("Answer of model 1")
    expect(reply.locator("strong")).to_have_text("Bold")
    expect(reply.locator("pre code")).to_have_text("ls")
    expect(reply.get_by_text("Thoughts")).to_be_visible()
    say(page, "Second?")
    expect(reply.last).to_contain_text("second")
    assert [role for role, _ in turns_of(engine, 1)] == ["system", "user", "assistant", "user"]
    reply.last.get_by_role("button", name="Regenerate").click()
    expect(reply.last).to_contain_text("again")
    page.get_by_role("button", name="Edit").first.click()
    page.get_by_label("Edit the message").fill("Other?")
    page.get_by_role("button", name="Ask again").click()
    expect(reply).to_have_count(1)
    expect(reply).to_contain_text("edited")
    assert turns_of(engine, 3) == [("system", "Be short."), ("user", "Other?")]
    page.reload()
    expect(reply).to_contain_text("edited")
    assert serious_faults(page) == []
    page.get_by_role("button", name="Delete the chat Other?").click()
    expect(reply).to_have_count(0)


def test_several_models_answer_next_to_each_other_and_can_be_stopped(
    server: ServerThread, engine: FakeEngine, page: Page
) -> None:
    call = ToolCallDelta(index=0, id="call_1", name="weather", arguments='{"city": "Bern"}')
    engine.scripts = [[call, FINISHED], [TokenDelta(text="Once upon"), Act.HOLD]]
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{server.url}/#/chat")
    page.get_by_role("button", name="Add a model").click()
    page.get_by_label("Model 2", exact=True).select_option("adapter:ad_0000000000000000")
    say(page, "What is the weather?")
    expect(page.get_by_text("Once upon")).to_be_visible()
    expect(page.get_by_text("weather", exact=True)).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopped.")).to_be_visible()
    assert engine.lost_its_client.wait(20)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_an_answer_says_that_its_base_model_is_loaded(
    server: ServerThread, engine: FakeEngine, database: Database, page: Page
) -> None:
    base = BaseModelRef(name="owner/model", quantization=QuantizationSpec())
    loading = LoadingBase(base_model=base, since=datetime.now(UTC))
    engine.register(database, EngineState(loading=loading))
    engine.scripts = [[Act.HOLD]]
    page.goto(f"{server.url}/#/chat")
    say(page, "Hello?")
    expect(page.get_by_text("Loading the base model…")).to_be_visible()
