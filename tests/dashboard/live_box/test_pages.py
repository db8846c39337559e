"""Jobs, adapters, answers and all pages in a real browser against the real API and worker."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.dashboard.browser import FAILED_REQUEST, Console, NewPage, serious_faults
from tests.dashboard.live_box.stack import FITS, HTML, ROWS, Stack
from tests.factories import jsonl
from tests.tiny_model import NAME
from tests.waiting import wait_for

# A shared machine may be slow to start a worker.
pytestmark = pytest.mark.timeout(600)
PAGES = [
    "jobs",
    "job",
    "new",
    "chat",
    "playground",
    "adapters",
    "adapter",
    "datasets",
    "dataset",
    "models",
    "evaluations",
    "new-evaluation",
    "status",
]


@pytest.fixture(scope="module", autouse=True)
def first_job(stack: Stack) -> str:
    """The job `first`, which has ended before the first test and has made the adapter of its name."""
    job = stack.submit("first", 12, validation_split=0.1, eval_steps=4)
    stack.box.wait_for_state(job, "succeeded", "failed")
    return job


@pytest.fixture
def endless(stack: Stack) -> Iterator[str]:
    """A job that runs for as long as the test wants."""
    job = stack.submit("endless", 100_000)
    stack.box.wait_for_step(job, 2)
    yield job
    stack.box.client.post(f"/jobs/{job}/cancel")
    stack.box.wait_for_state(job, "cancelled", "failed")


def drop(page: Page, name: str, rows: bytes) -> None:
    """Drop a file on the page, as the browser does."""
    script = (
        "([name, text]) => { const held = new DataTransfer(); held.items.add(new File([text], name));"
        " return held; }"
    )
    held = page.evaluate_handle(script, [name, rows.decode()])
    page.dispatch_event(".drop", "drop", {"dataTransfer": held})


def log_steps(page: Page) -> list[int]:
    return [
        int(seq) for seq in page.locator(".log [data-seq]").evaluate_all("all => all.map(e => e.dataset.seq)")
    ]


def test_a_person_uploads_looks_submits_watches_and_compares(
    stack: Stack, page: Page, console: Console
) -> None:
    console.allowed = ["status of 422"]  # for the epochs that are no number
    stack.open(page, "new")
    page.get_by_role("button", name="Add a dataset").click()
    drop(page, "mine.jsonl", jsonl(ROWS))
    expect(page.get_by_text("mine.jsonl: 40 rows.")).to_be_visible()
    # The rows, with what is learned marked; and the answer of preflight.
    expect(page.locator("mark", has_text="0 is said").first).to_be_visible()
    expect(page.get_by_role("img", name="Memory:")).to_be_visible()
    expect(page.locator("dt", has_text="Steps")).to_be_visible()

    page.get_by_label("Name", exact=True).fill("mine")
    page.get_by_label("Epochs", exact=True).fill("many")
    expect(page.locator("#spec-training-num_train_epochs-wrong")).to_contain_text("num_train_epochs")
    page.get_by_label("Epochs", exact=True).fill("12")
    page.get_by_label("Rank", exact=True).fill("4")
    page.get_by_text("Advanced training settings").click()
    page.get_by_label("Log every (steps)").fill("1")
    expect(page.locator("dd", has_text="120").first).to_be_visible()
    page.get_by_role("button", name="Start the job").click()

    expect(page.locator("h1")).to_have_text("mine")
    curve = page.get_by_role("img", name="Loss by optimizer step")
    expect(curve).to_have_attribute("aria-label", re.compile(r"training: (?!120 )\d+ points"))
    expect(curve).to_have_attribute("aria-label", re.compile("training: 120 points"))
    expect(page.locator(".state.succeeded")).to_be_visible()
    assert (stack.box.client.get("/jobs").json()["data"][0]["spec"]["lora"]["r"]) == 4

    page.get_by_role("link", name="Try it").click()
    page.get_by_label("Message", exact=True).fill("Say 3")
    page.get_by_label("Max new tokens").fill("8")
    page.get_by_label("Temperature").fill("0")
    page.get_by_role("button", name="Ask all").click()
    for place in (1, 2):
        column = page.get_by_label(f"Column {place}")
        expect(column.get_by_text("tokens,")).to_be_visible()
    assert page.get_by_label("Model 1").input_value() == f"base:{NAME}"
    assert page.get_by_label("Model 2").input_value().startswith("adapter:ad_")
    shown = page.get_by_label("Answer 1").inner_text()
    body = {"base_model": NAME, "messages": [{"role": "user", "content": "Say 3"}]}
    asked = stack.box.client.post("/generate", json=body | {"max_new_tokens": 8, "temperature": 0}).json()
    assert shown.split() == asked["text"].split()


@pytest.mark.parametrize("way", ["curl", "Python"])
def test_a_copied_request_runs_as_it_is(stack: Stack, new_page: NewPage, way: str) -> None:
    page = new_page(permissions=["clipboard-read", "clipboard-write"])
    stack.open(page, "playground")
    page.get_by_label("Message", exact=True).fill('It\'s "quoted" $HOME\n`and` so on')
    page.get_by_label("Max new tokens").fill("4")
    page.get_by_label("Top k").fill("5")
    page.get_by_label("Seed").fill("1")
    page.get_by_role("button", name=f"Copy as {way}").last.click()
    expect(page.get_by_text("Copied.")).to_be_visible()
    text = page.evaluate("navigator.clipboard.readText()")
    command = ["bash", "-c", text] if way == "curl" else [sys.executable, "-c", text]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert ran.returncode == 0, ran.stderr
    if way == "curl":
        done = json.loads(ran.stdout.strip().splitlines()[-1].removeprefix("data: "))
        assert done["usage"]["completion_tokens"] <= 4
        assert "and" in text


def test_a_curve_goes_on_over_a_restart_of_the_api_without_a_gap_or_a_double(
    stack: Stack, page: Page, console: Console, endless: str
) -> None:
    console.allowed = [FAILED_REQUEST, "ERR_"]
    stack.open(page, f"job/{endless}")
    wait_for(lambda: len(log_steps(page)) > 5, "the first lines")
    stack.api.kill()
    stack.api.wait()
    expect(page.get_by_text("The connection is gone")).to_be_visible()
    before = log_steps(page)[-1]
    stack.api = stack.box.start_api()
    expect(page.get_by_text("The connection is gone")).to_be_hidden(timeout=20_000)
    wait_for(lambda: log_steps(page)[-1] > before + 5, "lines of after the restart")
    seen = log_steps(page)
    # The page shows the last 500 lines.
    assert seen == list(range(seen[0], seen[0] + len(seen)))


def test_a_job_is_paused_resumed_and_cancelled(stack: Stack, page: Page, endless: str) -> None:
    stack.open(page, f"job/{endless}")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator(".state.paused")).to_be_visible()
    page.get_by_role("button", name="Resume").click()
    expect(page.locator(".state.running")).to_be_visible()
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.get_by_role("dialog")).to_contain_text("keeps its last checkpoint")
    page.get_by_role("button", name="Cancel the job").click()
    expect(page.locator(".state.cancelled")).to_be_visible()
    page.get_by_role("button", name="Retry").click()
    expect(page.locator(".state.running")).to_be_visible()


def test_a_job_is_compared_with_another_and_cloned(stack: Stack, page: Page) -> None:
    other = stack.submit("other", 3, learning_rate=5e-4)
    stack.box.wait_for_state(other, "succeeded", "failed")
    stack.open(page, f"job/{other}")
    page.get_by_role("button", name="Compare with…").click()
    page.get_by_role("checkbox", name="first").check()
    page.get_by_role("button", name="Done").click()
    curve = page.get_by_role("img", name="Loss by optimizer step")
    expect(curve).to_have_attribute("aria-label", re.compile("first .*: 12 points.*evaluation: 3 points"))
    page.get_by_role("link", name="Clone and edit").click()
    expect(page.get_by_label("Learning rate", exact=True)).to_have_value("0.0005")
    expect(page.get_by_label("Rank", exact=True)).to_have_value("4")


def test_nothing_that_somebody_wrote_is_executed(stack: Stack, page: Page, first_job: str) -> None:
    for route in ("datasets", f"new?dataset={stack.dataset}", "adapters", f"job/{first_job}", "jobs"):
        stack.open(page, route)
        page.reload()
        expect(page.locator("h1")).to_be_visible()
    stack.open(page, "datasets")
    expect(page.get_by_text(HTML).first).to_be_visible()
    page.get_by_role("link", name=f"Rows of {HTML}").click()
    for _ in range(8):
        page.get_by_role("button", name="Next rows").click()
    expect(page.locator(".turn", has_text="<script>").first).to_be_visible()
    page.get_by_role("button", name="As tokens").click()
    expect(page.locator(".tokens").first).to_be_visible()
    for _ in range(13):
        page.get_by_role("button", name="Next rows").click()
        expect(page.locator(".tokens").first).to_be_visible()
    expect(page.locator(".tokens", has_text="<script>").first).to_be_visible()
    answer = f"event: delta\ndata: {json.dumps({'text': HTML})}\n\n"
    page.route("**/generate", lambda route: route.fulfill(body=answer, content_type="text/event-stream"))
    stack.open(page, "playground")
    page.get_by_label("Message", exact=True).fill(HTML)
    page.get_by_role("button", name="Ask all").click()
    expect(page.get_by_label("Answer 1")).to_have_text(HTML)
    assert page.locator("main img, main script").count() == 0
    assert "owned" not in page.title()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_a_serious_fault_or_overflows(
    stack: Stack, new_page: NewPage, first_job: str, scheme: str
) -> None:
    routes = {
        "job": f"job/{first_job}",
        "adapter": "adapter/first",
        "dataset": f"dataset/{stack.dataset}",
        "new": f"new?dataset={stack.dataset}",
    }
    page = new_page(color_scheme=scheme, viewport={"width": 390, "height": 844}, reduced_motion="reduce")
    faults = {}
    for name in PAGES:
        stack.open(page, routes.get(name, name))
        expect(page.get_by_text("Loading…")).to_have_count(0)
        faults[name] = serious_faults(page)
        for width in (390, 768):
            page.set_viewport_size({"width": width, "height": 844})
            # Charts are drawn anew shortly after the page has got another width. Playwright's own waiting
            # evaluates text in the page, which its content security policy forbids.
            wait_for(lambda: page.evaluate(FITS), f"{name} to fit {width} px", timeout_seconds=20)
    assert {name: found for name, found in faults.items() if found} == {}


def test_the_keyboard_alone_is_enough(stack: Stack, page: Page) -> None:
    stack.open(page, "jobs")
    expect(page.locator("h1")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="New job")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("New job")
    expect(page.locator("h1")).to_be_focused()
    stack.open(page, "adapters")
    page.get_by_role("button", name="Delete first").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Keep it")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert stack.box.client.get("/adapters/first").status_code == 200


def test_an_adapter_is_downloaded(stack: Stack, page: Page) -> None:
    stack.open(page, "adapters")
    row = page.get_by_role("row", name="first")
    with page.expect_download() as saved:
        row.get_by_role("button", name="Download").click()
    assert saved.value.suggested_filename == "first.zip"


def test_the_box_is_shown(stack: Stack, page: Page) -> None:
    stack.open(page, "status")
    expect(page.get_by_text("Ready: jobs run and models answer.")).to_be_visible()
    expect(page.get_by_role("img", name="Memory: ")).to_be_visible()
    expect(page.get_by_role("img", name="Folder of data").first).to_be_visible()


def test_the_colours_are_chosen_and_kept(stack: Stack, page: Page) -> None:
    stack.open(page, "jobs")
    page.get_by_role("button", name="System colours").click()
    page.get_by_role("button", name="Light").click()
    page.reload()
    expect(page.get_by_role("button", name="Dark")).to_be_visible()
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"
