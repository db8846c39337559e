"""Base models in a real browser: an engine's routes over a real cache, real estimates, and a fake Hub."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from playwright.sync_api import Page, expect
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.core.base_models.messages import FitRequest
from app.core.base_models.queue import DownloadLease, download_queue
from app.core.settings import Settings, TrainingPath
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from app.core.work.failures import WorkFailure
from app.main import create_app
from tests.api.base_models.conftest import CacheEngine, hub
from tests.dashboard.browser import FAILED_REQUEST, Console, serious_faults
from tests.factories import make_adapter, make_dataset
from tests.fakes import ServerThread
from tests.servers.hub import FakeHub
from tests.servers.models import add_model
from tests.worker.preflight.conftest import GPU
from tests.worker.preflight.test_fit import SEVEN_BILLION
from worker.preflight.environment import PreflightEnvironment
from worker.preflight.fit import estimate_fit
from worker.processes.http_replies import as_json

__all__ = ["hub"]
SEVENTY_BILLION = {**SEVEN_BILLION, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80}


@pytest.fixture
def box(
    database: Database, settings: Settings, tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> Iterator[CacheEngine]:
    """A worker with a GPU of 24 GB."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    files = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + files)
    device = GPU.model_copy(update={"memory_bytes": 24 * 10**9})
    environment = PreflightEnvironment(
        models_folder=settings.models_folder,
        artifacts_url=settings.artifacts_url,
        cache_folder=tmp_path / "cache",
        device=device,
        free_bytes=device.memory_bytes,
        is_busy=False,
        path=TrainingPath.AUTO,
    )

    async def fit(request: Request) -> Response:
        return as_json(estimate_fit(FitRequest.model_validate_json(await request.body()), environment))

    box = CacheEngine(database, tmp_path / "hub", [Route("/fit", fit, methods=["POST"])])
    box.beat()
    add_model(hub, "owner/seven-7b", config=SEVEN_BILLION)
    add_model(hub, "owner/seventy-70b", config=SEVENTY_BILLION, about={"downloads": 9000}, is_gated=False)
    yield box
    box.stop()


@pytest.fixture
def server(settings: Settings, box: CacheEngine) -> Iterator[ServerThread]:
    server = ServerThread(create_app(settings))
    yield server
    server.stop()


def claim(database: Database) -> DownloadLease:
    with database.transaction() as session:
        lease = download_queue.claim(session, lease_seconds=30, max_attempts=3)
    assert lease is not None
    return lease


def assert_usable(page: Page) -> None:
    assert serious_faults(page) == []
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.set_viewport_size({"width": 1280, "height": 900})


def test_a_model_is_found_measured_downloaded_and_deleted(
    server: ServerThread, box: CacheEngine, database: Database, page: Page
) -> None:
    page.goto(f"{server.url}/#/models")
    expect(page.get_by_text("No base model is here yet")).to_be_visible()
    page.get_by_label("Name", exact=True).fill("seven")
    large = page.get_by_role("listitem").filter(has_text="owner/seventy-70b")
    expect(large).to_contain_text("7.0B parameters · 14.0 GB · apache-2.0")
    expect(large).to_contain_text("Does not fit: needs about")
    expect(large).to_contain_text("of 24.0 GB")
    expect(page.get_by_role("listitem").filter(has_text="owner/seven-7b")).to_contain_text("Fits your GPU")
    page.get_by_role("button", name="Download owner/seven-7b").click()
    expect(page.get_by_text("Waits for a worker.")).to_be_visible()
    lease = claim(database)
    with database.transaction() as session:
        download_queue.record(session, lease, done_bytes=3_500_000_000, total_bytes=14_000_000_000)
    expect(page.get_by_text("3.5 GB of 14.0 GB")).to_be_visible()
    assert_usable(page)
    with database.transaction() as session:
        download_queue.finish(session, lease, total_bytes=14_000_000_000)
        make_adapter(session, base_model="owner/seven-7b")
    box.add("owner/seven-7b")
    row = page.get_by_role("row").filter(has_text="owner/seven-7b")
    expect(row).to_contain_text("1 adapter")
    expect(page.get_by_role("listitem").filter(has_text="owner/seven-7b")).to_contain_text("here")
    expect(page.get_by_role("heading", name="Downloads")).to_have_count(0)
    assert_usable(page)
    page.get_by_role("button", name="Delete owner/seven-7b").click()
    expect(page.get_by_role("dialog")).to_contain_text("1 adapter needs it: It is downloaded again")
    page.get_by_role("button", name="Delete it from the disk").click()
    expect(page.get_by_text("No base model is here yet")).to_be_visible()
    assert list(box.cache.iterdir()) == []


def test_a_download_is_cancelled_and_one_that_failed_says_why(
    server: ServerThread, database: Database, page: Page
) -> None:
    page.goto(f"{server.url}/#/models")
    page.get_by_label("Name", exact=True).fill("seven-7b")
    page.get_by_role("button", name="Download owner/seven-7b").click()
    page.get_by_role("button", name="Cancel the download of owner/seven-7b").click()
    expect(page.get_by_role("heading", name="Downloads")).to_have_count(0)
    page.get_by_role("button", name="Download owner/seven-7b").click()
    expect(page.get_by_text("Waits for a worker.")).to_be_visible()
    lease = claim(database)
    with database.transaction() as session:
        download_queue.fail(session, lease, WorkFailure("disk_full", "There is no room.", "Delete some."))
    expect(page.get_by_text("There is no room.")).to_be_visible()
    page.get_by_role("button", name="Try owner/seven-7b again").click()
    expect(page.get_by_text("Waits for a worker.")).to_be_visible()


def test_a_hub_that_is_away_is_said_and_no_error(server: ServerThread, hub: FakeHub, page: Page) -> None:
    hub.broken_status = 502
    page.goto(f"{server.url}/#/models")
    page.get_by_label("Name", exact=True).fill("seven")
    expect(page.get_by_text("The Hub does not work now (HTTP 502).")).to_be_visible()
    assert serious_faults(page) == []


def test_the_form_of_a_job_offers_what_is_here_and_on_the_hub(
    server: ServerThread,
    box: CacheEngine,
    database: Database,
    settings: Settings,
    tmp_path: Path,
    page: Page,
    console: Console,
) -> None:
    console.allowed = [FAILED_REQUEST]  # this engine makes no preflight
    box.add("owner/llama")
    box.add("owner/qwen")
    with database.transaction() as session:
        dataset = make_dataset(session, ArtifactStore(settings.artifacts_url), tmp_path).id
    page.goto(f"{server.url}/#/new?dataset={dataset}")
    field = page.get_by_label("Base model", exact=True)
    field.click()
    expect(page.get_by_role("listbox").get_by_role("option")).to_have_count(2)
    field.fill("SEVEN")
    options = page.get_by_role("group", name="On the Hub").get_by_role("option")
    expect(options).to_have_count(2)
    expect(options.nth(1)).to_contain_text("Fits your GPU")
    expect(page.get_by_role("group", name="Here")).to_have_count(0)
    assert_usable(page)
    field.press("ArrowDown")
    field.press("ArrowDown")
    field.press("Enter")
    expect(field).to_have_value("owner/seven-7b")
    expect(page.get_by_role("listbox")).to_have_count(0)
    field.fill("qw")
    page.get_by_role("option", name="owner/qwen").click()
    expect(field).to_have_value("owner/qwen")
    field.press("ArrowDown")
    field.press("Escape")
    expect(page.get_by_role("listbox")).to_have_count(0)
