"""The pages of jobs in a real browser, over an API without a worker."""

import json
import re

import pytest
from playwright.sync_api import Page, Route, expect

from app.core.jobs import events, records as job_records
from app.core.jobs.events import Evaluation, Metrics
from app.core.storage.database import Database
from tests.cli.test_words import CALL, messages
from tests.core.evaluations.evaluations import make_evaluation
from tests.core.exports.test_queue import submit as make_export
from tests.dashboard.browser import FAILED_REQUEST, Console, NewPage, expect_preflight, serious_faults
from tests.factories import make_adapter, make_job
from tests.fakes import ServerThread


@pytest.fixture(scope="module")
def words() -> list[str]:
    return messages()


def make_ended(database: Database, name: str, **fields: object) -> str:
    """A cancelled job with a curve of four steps."""
    with database.transaction() as session:
        job_id = make_job(session, name=name, **fields).id
        points = [
            Metrics(
                step=step,
                total_steps=4,
                epoch=step / 4,
                loss=4 - step,
                memory_used_bytes=step * 10**9,
                gpu_utilization_percent=90 + step,
            )
            for step in range(1, 5)
        ]
        events.append(session, job_id, points)
        events.append(session, job_id, [Evaluation(step=4, epoch=1, loss=0.5, token_accuracy=0.75)])
        job_records.get(session, job_id).step = 4
        job_records.request_cancel(session, job_id)
    return job_id


def wait_until_drawn(page: Page) -> None:
    """Wait for what comes after the rest of an ended job's page and moves its buttons: a click would miss."""
    expect(page.get_by_role("status").filter(has_text="No worker is alive")).to_be_visible()
    expect(page.get_by_role("img", name="GPU use")).to_be_visible()


def test_nothing_of_a_job_is_below_charts_that_are_to_come(
    server: ServerThread, database: Database, page: Page
) -> None:
    job_id = make_ended(database, "finished")
    held: list[Route] = []
    page.route("**/events", lambda route: held.append(route))
    with page.expect_request("**/events"):
        page.goto(f"{server.url}/#/job/{job_id}")
    spec = page.get_by_role("heading", name="Job spec")
    expect(page.get_by_text("Loading…")).to_be_visible()
    expect(spec).to_have_count(0)
    for route in held:
        route.continue_()
    expect(spec).to_be_visible()
    assert page.get_by_role("img", name="GPU use").is_visible()


def test_jobs_are_found_counted_chosen_and_deleted(
    server: ServerThread, database: Database, page: Page, console: Console
) -> None:
    console.allowed = [FAILED_REQUEST]
    first = make_ended(database, "first-try")
    make_ended(database, "second-try")
    with database.transaction() as session:
        make_adapter(session, job_id=first)
        make_job(session, name="waiting")
    page.goto(f"{server.url}/#/jobs")
    expect(page.get_by_role("button", name="Cancelled 2")).to_be_visible()
    expect(page.get_by_text("next in line")).to_be_visible()
    expect(page.get_by_role("status").filter(has_text="No worker is alive")).to_be_visible()
    page.get_by_label("Search jobs").fill("TRY")
    expect(page.locator(".job")).to_have_count(2)
    page.get_by_label("Choose all shown").check()
    page.get_by_role("button", name="Delete 2").click()
    page.get_by_role("button", name="Delete for good").click()
    expect(page.get_by_text("1 job deleted.")).to_be_visible()
    expect(page.get_by_text("1 job not: ")).to_contain_text("“Delete” of adapter ad_0000000000000000")
    expect(page.locator(".job")).to_have_count(1)
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_label("Search jobs").fill("")
    page.get_by_label("Choose waiting").check()
    page.get_by_role("button", name="Cancel 1").click()
    page.get_by_role("button", name="Cancel them").click()
    expect(page.get_by_text("1 job cancelled.")).to_be_visible()
    assert serious_faults(page) == []


def test_a_job_is_at_the_address_of_the_list_too(
    server: ServerThread, database: Database, page: Page
) -> None:
    job_id = make_ended(database, "mine")
    page.goto(f"{server.url}/#/jobs/{job_id}")
    expect(page.get_by_role("heading", name="mine", level=1)).to_be_visible()


def test_a_job_older_than_the_newest_hundred_is_compared_and_smoothed(
    server: ServerThread, database: Database, page: Page, console: Console
) -> None:
    console.allowed = [FAILED_REQUEST]  # the page may ask once more for the job that it deletes
    old = make_ended(database, "the-old-one")
    with database.transaction() as session:
        for _ in range(110):
            make_job(session)
    job_id = make_ended(database, "the-new-one")
    page.goto(f"{server.url}/#/job/{job_id}")
    wait_until_drawn(page)
    page.get_by_role("button", name="Compare with…").click()
    page.get_by_label("Search jobs to compare with").fill("old")
    page.get_by_role("checkbox", name="the-old-one").check()
    page.get_by_role("button", name="Done").click()
    curve = page.get_by_role("img", name="Loss by optimizer step")
    expect(curve).to_have_attribute("aria-label", re.compile(f"the-old-one \\({old[-4:]}\\): 4 points"))
    page.get_by_role("button", name="Edit", exact=True).click()
    page.get_by_label("Notes and tags").fill("why: the first try")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("dd", has_text="the first try")).to_be_visible()
    page.get_by_label("Smoothing").fill("0.5")
    expect(curve).to_have_attribute("aria-label", re.compile("training, as logged: 4 points.*to 0 at step 4"))
    expect(curve).to_have_attribute("aria-label", re.compile(r"training: 4 points, from 3 to 0\.733 at"))
    accuracy = page.get_by_role("img", name="Token accuracy, evaluation")
    expect(accuracy).to_have_attribute("aria-label", re.compile("75% at step 4"))
    memory = page.get_by_role("img", name="Memory in use")
    expect(memory).to_have_attribute("aria-label", re.compile("as logged: 4 points, from 1.0 GB to 4.0 GB"))
    use = page.get_by_role("img", name="GPU use")
    expect(use).to_have_attribute("aria-label", re.compile("as logged: 4 points, from 91% to 94%"))
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete it for good").click()
    expect(page.locator("h1")).to_have_text("Jobs")


def test_prompts_are_written_a_line_each(
    server: ServerThread, database: Database, page: Page, console: Console
) -> None:
    console.allowed = [FAILED_REQUEST]  # nothing can be looked at without a worker
    prompts = ["One, two?", "Three\nand \\n four"]
    job_id = make_ended(database, "first", training={"sample_prompts": prompts})
    page.goto(f"{server.url}/#/new?from={job_id}")
    page.get_by_text("Advanced training settings").click()
    field = page.get_by_label("Sample prompts")
    expect(field).to_have_value("One, two?\nThree\\nand \\\\n four")
    tokens = page.get_by_label("Max new tokens of a sample")
    sent = {"sample_prompts": prompts, "sample_max_new_tokens": 32}
    expect_preflight(page, lambda: tokens.fill("32"), lambda spec: spec["training"] == sent)
    expect_preflight(
        page, lambda: field.fill("none"), lambda spec: spec["training"]["sample_prompts"] == "none"
    )


def test_a_job_with_metadata_is_cloned(
    server: ServerThread, database: Database, page: Page, console: Console
) -> None:
    console.allowed = [FAILED_REQUEST]  # nothing can be looked at without a worker
    job_id = make_ended(database, "first", metadata={"team": "support", "ticket": "a: b"})
    page.goto(f"{server.url}/#/new?from={job_id}")
    page.get_by_text("Chat template and metadata").click()
    expect(page.get_by_label("Metadata")).to_have_value("team: support\nticket: a: b")
    metadata = page.get_by_label("Metadata")
    sold = {"team": "sales"}
    expect_preflight(page, lambda: metadata.fill("team: sales"), lambda spec: spec["metadata"] == sold)
    page.get_by_label("Name", exact=True).fill("my bot")
    expect(page.locator("#spec-name-wrong")).to_contain_text("no spaces. For example my-bot.")
    assert "null" not in page.locator("main").inner_text()


def test_what_failed_while_the_api_was_away_is_tried_again(
    server: ServerThread, database: Database, page: Page, console: Console
) -> None:
    console.allowed = [FAILED_REQUEST, "ERR_FAILED"]
    job_id = make_ended(database, "first")
    page.goto(f"{server.url}/#/jobs")
    expect(page.get_by_text("first")).to_be_visible()
    page.route("**/jobs/preflight", lambda route: route.abort())
    page.route("**/preview?*", lambda route: route.abort())
    page.goto(f"{server.url}/#/new?from={job_id}")
    expect(page.get_by_text("The API does not answer.")).to_have_count(2)
    error = {"type": "x", "code": "no_engine", "message": "Here it is again.", "param": None, "hint": None}
    for path in ("**/jobs/preflight", "**/preview?*"):
        page.unroute(path)
        page.route(path, lambda route: route.fulfill(status=503, json={"error": error}))
    expect(page.get_by_text("Here it is again.")).to_have_count(2)


def test_a_page_that_can_not_be_loaded_does_not_show_another_under_its_name(
    server: ServerThread, page: Page, console: Console
) -> None:
    console.allowed = [FAILED_REQUEST, "ERR_FAILED"]
    page.route("**/js/datasets.js", lambda route: route.abort())
    page.goto(f"{server.url}/#/jobs")
    expect(page.locator("h1")).to_have_text("Jobs")
    page.route("**/health", lambda route: route.abort())
    page.get_by_role("link", name="Datasets").click()
    expect(page.get_by_role("alert")).to_contain_text("This page can't be loaded")
    expect(page.locator("h1")).to_have_count(0)
    page.unroute("**/js/datasets.js")
    page.unroute("**/health")
    expect(page.locator("h1")).to_have_text("Datasets")


def test_no_message_of_the_api_names_a_call_of_http(
    server: ServerThread, page: Page, words: list[str]
) -> None:
    page.goto(server.url)
    script = "async (all) => all.map((await import('/dashboard/js/words.js')).inWords)"
    said = page.evaluate(script, words)
    assert [text for text in said if CALL.search(text) or "on_problem=" in text or "on_unused=" in text] == []
    assert page.evaluate(script, ["POST /jobs/job_1/retry goes on."]) == ["“Retry” of job job_1 goes on."]


def test_an_axis_has_no_label_twice(server: ServerThread, page: Page) -> None:
    page.goto(server.url)
    script = """async () => {
        const { labels } = await import('/dashboard/js/curves.js');
        const { bytes, count, figure } = await import('/dashboard/js/format.js');
        return [
            labels([1.26e9, 1.28e9, 1.3e9], bytes),
            labels([1000.1, 1000.2], count),
            labels([1e-5, 2e-5], figure),
        ];
    }"""
    assert page.evaluate(script) == [
        ["1.26 GB", "1.28 GB", "1.30 GB"],
        ["1,000.1", "1,000.2"],
        ["1.00e-5", "2.00e-5"],
    ]


@pytest.mark.parametrize("width", [390, 768])
def test_long_names_fit(server: ServerThread, database: Database, new_page: NewPage, width: int) -> None:
    name = "a-name-of-sixty-four-characters-as-long-as-a-job-or-file-may-get"
    job_id = make_ended(database, name)
    with database.transaction() as session:
        make_adapter(session, name=name, job_id=job_id)
    page = new_page(viewport={"width": width, "height": 844})
    for route in ("jobs", f"job/{job_id}", "adapters"):
        page.goto(f"{server.url}/#/{route}")
        expect(page.get_by_text(name).first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), route
        assert json.dumps(serious_faults(page)) == "[]"


def test_what_a_job_waits_for_is_on_its_page(
    server: ServerThread, database: Database, page: Page, console: Console
) -> None:
    console.allowed = [FAILED_REQUEST]
    with database.transaction() as session:
        job = make_job(session, name="large", base_model="owner/model")
        job.gpus = 2
    page.goto(f"{server.url}/#/job/{job.id}")
    expect(page.get_by_text("It waits for a worker with 2 GPUs.")).to_be_visible()


def test_what_waits_gets_another_priority_on_its_page(
    server: ServerThread, database: Database, page: Page, console: Console
) -> None:
    console.allowed = [FAILED_REQUEST]  # the adapter has no card
    with database.transaction() as session:
        make_job(session, name="first")
        job_id = make_job(session, name="second").id
        make_evaluation(session)
        evaluation_id = make_evaluation(session).id
        make_export(session)
        export_id = make_export(session).id
    page.goto(f"{server.url}/#/job/{job_id}")
    expect(page.get_by_text("number 2 in line")).to_be_visible()
    page.get_by_label("Priority").select_option("3")
    expect(page.get_by_text("next in line, priority 3")).to_be_visible()
    assert serious_faults(page) == []

    page.goto(f"{server.url}/#/evaluation/{evaluation_id}")
    expect(page.get_by_text("number 2 in line")).to_be_visible()
    page.get_by_label("Priority").select_option("-2")
    expect(page.get_by_text("number 2 in line, priority -2")).to_be_visible()

    page.goto(f"{server.url}/#/adapter/ad_0000000000000000")
    own = page.locator(".export", has=page.locator(f"#priority-{export_id}"))
    own.get_by_label("Priority").select_option("10")
    expect(own.get_by_text("next in line, priority 10")).to_be_visible()
    assert serious_faults(page) == []
