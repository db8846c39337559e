"""The dashboard in a real browser against the real API and worker, on a tiny model."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.dashboard.browser import FAILED_REQUEST, Console, NewPage, serious_faults
from tests.end_to_end.box import Box, Process
from tests.factories import jsonl
from tests.tiny_model import NAME, make_tiny_model
from tests.waiting import wait_for

ROWS = [
    {"messages": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": f"{n} is said"}]}
    for n in range(40)
]
# It would run in any place that took text for markup.
HTML = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
# A shared machine may be slow to start a worker.
pytestmark = pytest.mark.timeout(600)
FITS = "document.documentElement.scrollWidth <= innerWidth"
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
    "status",
]


class Stack:
    """The box, the API that may be killed, and what was made before the tests."""

    def __init__(self, folder: Path) -> None:
        make_tiny_model(folder / "models")
        self.box = Box(folder, folder / "models", cancel_grace_seconds="10")
        self.api: Process = self.box.start_api()
        self.box.start_worker()
        self.url = f"http://127.0.0.1:{self.box.port}"
        files = {"file": ("rows.jsonl", jsonl([*ROWS, _row(HTML)]))}
        answer = self.box.client.post("/datasets", files=files, data={"name": HTML})
        self.dataset = self.box.get_good(answer)["id"]
        self.job = self.submit("first", 12, validation_split=0.1, eval_steps=4)
        self.box.wait_for_state(self.job, "succeeded", "failed")

    def submit(self, name: str, steps: int, **training: Any) -> str:
        settings = {
            "max_steps": steps,
            "logging_steps": 1,
            "save_steps": 5,
            "learning_rate": 1e-3,
            **training,
        }
        lora = {"r": 4, "target_modules": "all-linear"}
        return self.box.submit(base_model=NAME, dataset=self.dataset, name=name, lora=lora, training=settings)

    def open(self, page: Page, route: str) -> None:
        page.goto(f"{self.url}/#/{route}")
        expect(page.locator("h1")).to_be_visible()

    def route(self, page: str) -> str:
        return {
            "job": f"job/{self.job}",
            "adapter": "adapter/first",
            "dataset": f"dataset/{self.dataset}",
            "new": f"new?dataset={self.dataset}",
        }.get(page, page)


def _row(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("box"))
    yield stack
    stack.box.close()


@pytest.fixture
def endless(stack: Stack) -> Iterator[str]:
    """A job that runs for as long as the test wants."""
    job = stack.submit("endless", 100_000)
    stack.box.wait_for_step(job, 2)
    yield job
    stack.box.client.post(f"/jobs/{job}/cancel")
    stack.box.wait_for_state(job, "cancelled", "failed")


def upload(page: Page, name: str, rows: bytes) -> None:
    chooser = page.locator("input[type=file]")
    chooser.set_input_files({"name": name, "mimeType": "application/jsonl", "buffer": rows})


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
    assert seen == list(range(1, len(seen) + 1))


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


def test_a_file_s_problems_are_listed_by_line_and_the_rest_can_be_taken(
    stack: Stack, page: Page, console: Console
) -> None:
    console.allowed = [FAILED_REQUEST]
    stack.open(page, "datasets")
    upload(page, "bad.jsonl", jsonl([ROWS[0]]) + b'{"messages": []}\n{"mess\n' + jsonl([{HTML: 1}]))
    table = page.get_by_role("table", name="What is wrong in bad.jsonl")
    expect(table.locator("tbody td:first-child")).to_have_text(["2", "3", "4"])
    page.get_by_role("button", name="Upload the other rows").click()
    expect(page.get_by_text("bad.jsonl: 1 row, 3 left out.")).to_be_visible()
    page.get_by_role("button", name="Delete bad.jsonl").first.click()
    expect(page.get_by_role("dialog")).to_contain_text("can't be brought back")
    page.get_by_role("button", name="Delete it for good").click()
    expect(page.get_by_text("bad.jsonl is deleted.")).to_be_visible()


def test_a_file_with_fields_that_would_not_be_used_can_be_taken_without_them(
    stack: Stack, page: Page, console: Console
) -> None:
    console.allowed = [FAILED_REQUEST]
    stack.open(page, "datasets")
    tools = [{**row, "id": 1, "images": [{"name": HTML}]} for row in ROWS[:3]]
    upload(page, "tools.jsonl", jsonl([*tools, {"messages": []}]))
    page.get_by_role("button", name="Upload the other rows").click()
    table = page.get_by_role("table", name="Fields of tools.jsonl that would not be used")
    expect(table.locator("tbody td")).to_have_text(["images", "3", "1, 2, 3"])
    page.get_by_role("button", name="Upload without these fields").click()
    expect(page.get_by_text("tools.jsonl: 3 rows, 1 left out.")).to_be_visible()
    row = page.get_by_role("row").filter(has_text="tools.jsonl")
    row.get_by_text("2 fields not used (changes what is learned)").click()
    expect(row.get_by_text("images: 3 rows, changes what is learned")).to_be_visible()


def test_a_hub_dataset_with_fields_that_would_not_be_used_is_fetched_without_them(
    stack: Stack, page: Page
) -> None:
    failed = stack.box.client.get(f"/datasets/{stack.dataset}").json() | {
        "state": "failed",
        "hub": {"hub_dataset": "me/rows", "config": None, "split": "test", "revision": None, "commit": "c1"},
        "error": {"code": "fields_unused", "message": "No.", "hint": "Train without: on_unused=ignore."},
    }
    page.route(
        re.compile(r"/datasets(\?|$)"), lambda route: route.fulfill(json={"data": [failed], "next": None})
    )
    stack.open(page, "datasets")
    with page.expect_request(lambda request: request.method == "POST") as sent:
        page.get_by_role("button", name="Fetch it without these fields").click()
    assert sent.value.post_data_json == {
        "hub_dataset": "me/rows",
        "config": None,
        "split": "test",
        "revision": None,
        "name": HTML,
        "on_unused": "ignore",
    }


def test_nothing_that_somebody_wrote_is_executed(stack: Stack, page: Page) -> None:
    for route in ("datasets", f"new?dataset={stack.dataset}", "adapters", f"job/{stack.job}", "jobs"):
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
def test_no_page_has_a_serious_fault_or_overflows(stack: Stack, new_page: NewPage, scheme: str) -> None:
    page = new_page(color_scheme=scheme, viewport={"width": 390, "height": 844}, reduced_motion="reduce")
    faults = {}
    for name in PAGES:
        stack.open(page, stack.route(name))
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
