"""The dashboard over 1,000 jobs: what it asks of the API, and that all of them can be reached and changed."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, Route, expect
from sqlalchemy import insert

from app.core.jobs import records as job_records
from app.core.jobs.events import Metrics
from app.core.settings import Settings
from app.core.specs.states import JobState
from app.core.storage.database import Database, migrate
from app.core.storage.tables import AdapterRow, EventRow, JobRow
from app.main import create_app
from tests.factories import make_spec
from tests.fakes import ServerThread

JOBS, WITH_ADAPTER, WAITING = 1000, 300, 300
STEPS = 5


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerThread]:
    folder: Path = tmp_path_factory.mktemp("thousand")
    settings = Settings(data_dir=folder, models_dir=folder / "models", max_queued_jobs=10_000)
    migrate(settings.database_url)
    fill(Database(settings.database_url))
    server = ServerThread(create_app(settings))
    yield server
    server.stop()


def fill(database: Database) -> None:
    """The newest wait, older ones are cancelled, and the oldest have made adapters."""
    spec = make_spec()
    with database.transaction() as session:
        jobs = [
            job_records.submit(
                session, spec.model_copy(update={"name": f"run-{number:04}"}), max_queued=JOBS, flush=False
            )
            for number in range(JOBS)
        ]
        for job in jobs:
            job.last_event_seq = STEPS - 1
        for job in jobs[:-WAITING]:
            job.state, job.step, job.finished_at = JobState.CANCELLED, STEPS, job.created_at
        session.flush()
        session.execute(insert(EventRow), [make_point(job, step) for job in jobs for step in range(2, STEPS)])
        session.add_all(make_adapter_row(number, job) for number, job in enumerate(jobs[:WITH_ADAPTER]))


def make_point(job: JobRow, step: int) -> dict[str, object]:
    point = Metrics(step=step, total_steps=STEPS, epoch=1, loss=1 / step)
    at = {"job_id": job.id, "seq": step, "at": job.created_at, "level": "info", "type": "metrics"}
    return {**at, "data": point.model_dump(mode="json", exclude={"type"})}


def make_adapter_row(number: int, job: JobRow) -> AdapterRow:
    return AdapterRow(
        id=f"ad_{number:016}",
        name=f"adapter-{number}",
        base_model=job.base_model,
        quantization=job.spec["quantization"],
        job_id=job.id,
        size_bytes=1,
        artifact=f"adapters/ad_{number:016}",
        created_at=job.created_at,
    )


@pytest.fixture
def asked(page: Page, server: ServerThread) -> list[str]:
    """The paths that the page has asked of the API."""
    paths: list[str] = []
    page.on("request", lambda request: paths.append(urlsplit(request.url).path))
    return paths


def test_all_jobs_are_reached_in_few_clicks_and_requests(
    server: ServerThread, page: Page, asked: list[str]
) -> None:
    page.goto(f"{server.url}/#/jobs")
    expect(page.locator(".job")).to_have_count(25)
    for shown in (50, 100, 200, 400, 800, JOBS):
        page.get_by_role("button", name="Show older jobs").click()
        expect(page.locator(".job")).to_have_count(shown)
    expect(page.get_by_role("button", name="Show older jobs")).to_have_count(0)
    expect(page.get_by_role("img", name="Loss from 0.5 to 0.25")).to_have_count(JOBS - WAITING)
    counts = Counter(asked)
    assert counts["/jobs/losses"] <= 10
    assert not [path for path in counts if path.endswith("/metrics")]


def test_all_that_match_are_chosen_and_changed_together(server: ServerThread, page: Page) -> None:
    page.goto(f"{server.url}/#/jobs")
    expect(page.get_by_role("button", name=f"All {JOBS:,}")).to_be_visible()
    page.get_by_label("Search jobs").fill("run-099")
    expect(page.locator(".job")).to_have_count(10)
    page.get_by_label("Choose all shown").check()
    page.get_by_role("button", name="Cancel 10").click()
    page.get_by_role("button", name="Cancel them").click()
    expect(page.get_by_text("10 jobs cancelled.")).to_be_visible()
    # Until it is closed, nothing can be typed behind it.
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_label("Search jobs").fill("")
    page.get_by_role("button", name="Cancelled 710").click()
    expect(page.locator(".job")).to_have_count(25)
    page.get_by_label("Choose all shown").check()
    page.get_by_role("button", name="Choose all 710").click()
    expect(page.get_by_role("button", name="Delete 710")).to_be_visible()
    # What is not looked for any more is not chosen any more.
    page.get_by_label("Search jobs").fill("run-099")
    expect(page.locator(".job")).to_have_count(10)
    expect(page.get_by_label("Choose all shown")).not_to_be_checked()


def test_jobs_of_the_search_before_can_not_be_chosen(server: ServerThread, page: Page) -> None:
    page.goto(f"{server.url}/#/jobs")
    page.get_by_label("Choose all shown").check()
    held: list[Route] = []
    page.route("**/jobs?state=queued*", lambda route: held.append(route))
    with page.expect_request("**/jobs?state=queued*"):
        page.get_by_role("button", name=re.compile("^Queued")).click()
    for name in ("Choose all shown", f"Choose run-{JOBS - 1:04}"):
        expect(page.get_by_label(name)).to_be_disabled()
        expect(page.get_by_label(name)).not_to_be_checked()
    for route in held:
        route.continue_()
    page.unroute("**/jobs?state=queued*")
    page.get_by_label("Choose all shown").check()
    expect(page.get_by_text("25 jobs chosen")).to_be_visible()


def test_adapters_are_listed_without_a_request_for_each(
    server: ServerThread, page: Page, asked: list[str]
) -> None:
    page.goto(f"{server.url}/#/adapters")
    expect(page.locator("tbody tr")).to_have_count(WITH_ADAPTER)
    expect(page.get_by_role("link", name="run-0299")).to_be_visible()
    assert not [path for path in asked if path.startswith("/jobs/")]
