"""Uploads with problems, fields that are not used, and comparisons, against the real API and worker."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.dashboard.browser import FAILED_REQUEST, Console, serious_faults
from tests.dashboard.live_box.stack import FITS, HTML, ROWS, Stack
from tests.factories import jsonl
from tests.waiting import wait_for

# A shared machine may be slow to start a worker.
pytestmark = pytest.mark.timeout(600)


def upload(page: Page, name: str, rows: bytes) -> None:
    chooser = page.locator("input[type=file]")
    chooser.set_input_files({"name": name, "mimeType": "application/jsonl", "buffer": rows})


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
    assert serious_faults(page) == []
    page.set_viewport_size({"width": 390, "height": 844})
    wait_for(lambda: page.evaluate(FITS), "the page to fit 390 px")


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


def test_the_tokens_of_both_answers_of_a_comparison_are_shown(stack: Stack, page: Page) -> None:
    row = {"prompt": "Say 1", "chosen": " 1 is said", "rejected": " no"}
    answer = stack.box.client.post("/datasets", files={"file": ("pairs.jsonl", jsonl([row]))})
    stack.open(page, f"dataset/{stack.box.get_good(answer)['id']}")
    page.get_by_role("button", name="As tokens").click()
    chosen = page.get_by_label("Tokens of the chosen answer of line 1")
    expect(chosen.locator("mark")).to_contain_text("1 is said", timeout=120_000)
    expect(page.get_by_label("Tokens of the rejected answer of line 1")).to_contain_text("no")
    expect(page.get_by_label("Tokens of line 1", exact=True).locator("mark")).to_have_count(0)
    expect(page.get_by_role("heading", name="Chosen answer")).to_contain_text("tokens")
    assert serious_faults(page) == []
