"""Uploads whose columns are mapped, and pages of datasets, in a real browser over an API without a worker."""

import gzip
import json
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.core.datasets.uploads import parquet
from tests.dashboard.browser import FAILED_REQUEST, Console, NewPage, serious_faults
from tests.factories import jsonl
from tests.fakes import ServerThread

HTML = "<img src=x onerror=\"document.title='owned'\">"
CSV = f'id,question,answer,topic\n1,"Who, {HTML.replace(chr(34), chr(39))}?",Me,a\n2,Why?,So,b\n'.encode()
PARQUET = parquet("SELECT 'Who?' AS frage, 'Me' AS loesung, DATE '2024-01-02' AS tag")
PREFERENCES = jsonl([{"prompt": "Who?", "chosen": "Me", "rejected": "Nobody"}] * 2)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string", "description": "A town."}},
            "required": ["place"],
        },
    },
}
CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "weather", "arguments": {"place": "Oslo"}},
}
TOOL_ROW = {
    "messages": [
        {"role": "user", "content": f"Rain in Oslo? {HTML}"},
        {"role": "assistant", "content": "", "reasoning_content": "I must look.", "tool_calls": [CALL]},
        {"role": "tool", "content": '{"rain": true}', "tool_call_id": "c1"},
        {"role": "assistant", "content": "<think>So it is.</think>It rains."},
    ],
    "tools": [WEATHER],
}


@pytest.fixture
def datasets(server: ServerThread, page: Page, console: Console) -> Page:
    console.allowed = [FAILED_REQUEST]
    page.goto(f"{server.url}/#/datasets")
    return page


def choose(page: Page, name: str, rows: bytes) -> None:
    chooser = page.locator("input[type=file]")
    chooser.set_input_files({"name": name, "mimeType": "application/octet-stream", "buffer": rows})


def stored(server: ServerThread) -> tuple[dict[str, Any], list[Any]]:
    """The newest dataset and its rows."""
    with httpx.Client(base_url=server.url) as client:
        dataset = client.get("/datasets").json()["data"][0]
        rows = client.get(f"/datasets/{dataset['id']}/rows").json()["data"]
    return dataset, [one["row"] for one in rows]


def add(server: ServerThread, rows: bytes, name: str = "rows.jsonl") -> str:
    with httpx.Client(base_url=server.url) as client:
        answer = client.post("/datasets", files={"file": (name, rows)}).json()
    return str(answer["id"])


def test_columns_with_other_names_are_guessed_and_uploaded_with_one_click(
    server: ServerThread, datasets: Page
) -> None:
    choose(datasets, "faq.csv", CSV)
    dialog = datasets.get_by_role("dialog", name="What are the columns of faq.csv?")
    expect(dialog.get_by_label("What question is")).to_have_value("instruction")
    expect(dialog.get_by_label("What answer is")).to_have_value("output")
    expect(dialog.get_by_label("What topic is")).to_have_value("")
    first = dialog.get_by_role("table", name="The first rows").locator("tbody tr").first
    expect(first.locator("td")).to_have_text(["1", f"Who, {HTML.replace(chr(34), chr(39))}?", "Me", "a"])
    read = dialog.get_by_label("The first row as it is read")
    expect(read.locator(".turn.user")).to_contain_text("Who, <img")
    expect(read.locator(".turn.assistant")).to_contain_text("Me")
    expect(dialog.get_by_label("Not used", exact=True)).to_contain_text("topic: 2 of the first 2 rows")
    assert serious_faults(datasets) == []
    dialog.get_by_role("button", name="Upload").click()
    expect(datasets.get_by_text("faq.csv: 2 rows.")).to_be_visible()
    expect(dialog).to_have_count(0)
    dataset, rows = stored(server)
    assert (dataset["format"], rows[1]["messages"][1]["content"]) == ("instruction", "So")
    assert "owned" not in datasets.title()


@pytest.mark.parametrize(
    ("name", "content"), [("rows.parquet", PARQUET), ("rows.parquet.gz", gzip.compress(PARQUET))]
)
def test_columns_are_chosen_by_hand_and_the_reading_follows(
    server: ServerThread, datasets: Page, name: str, content: bytes
) -> None:
    choose(datasets, name, content)
    dialog = datasets.get_by_role("dialog")
    dialog.get_by_role("button", name="Prompt and completion").click()
    expect(dialog.get_by_text("Choose the column that is the prompt, and")).to_be_visible()
    expect(dialog.get_by_role("button", name="Upload")).to_be_disabled()
    dialog.get_by_label("What frage is").select_option(label="Prompt")
    dialog.get_by_label("What loesung is").select_option(label="Prompt")
    expect(dialog.get_by_label("What frage is")).to_have_value("")
    dialog.get_by_label("What frage is").select_option(label="Completion")
    expect(dialog.locator(".turn")).to_have_text(["PromptMe", "CompletionWho?"])
    dialog.get_by_role("button", name="Upload").click()
    expect(datasets.get_by_text(f"{name}: 1 row.")).to_be_visible()
    assert stored(server)[1] == [{"prompt": "Me", "completion": "Who?"}]


def test_preferences_are_shown_side_by_side_and_the_chosen_answers_can_be_learned(
    server: ServerThread, datasets: Page
) -> None:
    datasets.get_by_label("Choose the columns before the upload").check()
    choose(datasets, "pairs.jsonl", PREFERENCES)
    dialog = datasets.get_by_role("dialog")
    expect(dialog.get_by_label("The first row as it is read").locator(".pair")).to_have_text(
        ["Chosen answer preferredMe", "Rejected answer not preferredNobody"]
    )
    dialog.get_by_role("button", name="Question and answer").click()
    expect(dialog).to_contain_text("the chosen ones are learned, and the rejected ones are not used")
    expect(dialog.locator(".pair")).to_have_text(
        ["Chosen answer learnedMe", "Rejected answer not usedNobody"]
    )
    expect(dialog.get_by_label("Not used", exact=True)).to_contain_text("rejected: 2 of the first 2 rows")
    assert serious_faults(datasets) == []
    dialog.get_by_role("button", name="Upload without these fields").click()
    expect(datasets.get_by_text("pairs.jsonl: 2 rows.")).to_be_visible()
    _, rows = stored(server)
    assert [message["content"] for message in rows[0]["messages"]] == ["Who?", "Me"]
    datasets.get_by_role("link", name="pairs.jsonl", exact=True).click()
    expect(datasets.locator("h1")).to_have_text("pairs.jsonl")
    expect(datasets.get_by_role("row", name="rejected")).to_contain_text("changes what is learned2 of 21, 2")


def test_comparisons_are_uploaded_as_they_are_and_shown_with_both_answers(datasets: Page) -> None:
    choose(datasets, "pairs.jsonl", PREFERENCES)
    expect(datasets.get_by_text("pairs.jsonl: 2 rows.")).to_be_visible()
    datasets.get_by_role("link", name="pairs.jsonl", exact=True).click()
    expect(datasets.get_by_text("comparisons of answers")).to_be_visible()
    row = datasets.get_by_label("Row of line 1")
    expect(row).to_contain_text("PromptWho?")
    expect(row.get_by_label("Chosen answer")).to_contain_text("Me")
    expect(row.get_by_label("Rejected answer")).to_contain_text("Nobody")
    assert serious_faults(datasets) == []


def test_an_answer_is_shown_with_its_label(server: ServerThread, page: Page) -> None:
    row = {
        "prompt": [TOOL_ROW["messages"][0]],
        "completion": TOOL_ROW["messages"][1:],
        "label": False,
        "tools": [WEATHER],
    }
    page.goto(f"{server.url}/#/dataset/{add(server, jsonl([row]))}")
    shown = page.get_by_label("Row of line 1")
    expect(shown.get_by_label("Bad answer")).to_contain_text("I must look.")
    expect(shown).to_contain_text("1 function")
    expect(shown.get_by_label("Bad answer")).not_to_contain_text("Rain in Oslo?")


def test_answers_of_openais_preferences_with_another_field_are_read_as_they_are(datasets: Page) -> None:
    row = {
        "input": {"messages": [{"role": "user", "content": "Who?"}]},
        "preferred_output": [{"role": "assistant", "content": "Me"}],
        "non_preferred_output": [{"role": "assistant", "content": "Nobody"}],
        "images": ["i.png"],
    }
    choose(datasets, "pairs.jsonl", jsonl([row]))
    dialog = datasets.get_by_role("dialog")
    expect(dialog.get_by_label("What preferred_output is")).to_have_value("preferred_output")
    dialog.get_by_role("button", name="Upload without these fields").click()
    expect(datasets.get_by_text("pairs.jsonl: 1 row.")).to_be_visible()


def test_bad_rows_of_a_mapped_file_are_named_in_the_dialog_and_left_out(datasets: Page) -> None:
    choose(datasets, "faq.csv", CSV + b"3,,Nothing asked,c\n")
    dialog = datasets.get_by_role("dialog")
    dialog.get_by_role("button", name="Upload").click()
    table = dialog.get_by_role("table", name="What is wrong in faq.csv")
    expect(table.locator("tbody td").first).to_have_text("4")
    dialog.get_by_role("button", name="Upload the other rows").click()
    expect(datasets.get_by_text("faq.csv: 2 rows, 1 left out.")).to_be_visible()


def test_a_closed_dialog_does_not_lose_the_file(datasets: Page) -> None:
    choose(datasets, "faq.csv", CSV)
    expect(datasets.get_by_role("dialog")).to_be_visible()
    datasets.keyboard.press("Escape")
    expect(datasets.get_by_role("dialog")).to_have_count(0)
    expect(datasets.get_by_text("fit no known format")).to_be_visible()
    datasets.get_by_role("button", name="Choose the columns of faq.csv").click()
    datasets.get_by_role("dialog").get_by_role("button", name="Upload").click()
    expect(datasets.get_by_text("faq.csv: 2 rows.")).to_be_visible()


def test_columns_can_be_chosen_before_a_file_is_uploaded(server: ServerThread, datasets: Page) -> None:
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    both = [{**row, "question": "q", "answer": "r"} for row in rows] * 20_000
    datasets.get_by_label("Choose the columns before the upload").check()
    sent: list[int] = []
    datasets.on("request", lambda request: sent.append(len(request.post_data_buffer or b"")))
    choose(datasets, "both.jsonl", jsonl(both))
    dialog = datasets.get_by_role("dialog")
    expect(dialog.get_by_label("What messages is")).to_have_value("messages")
    assert max(sent) < 1_100_000 < len(jsonl(both))
    dialog.get_by_role("button", name="Question and answer").click()
    expect(dialog.locator(".turn.assistant")).to_contain_text("r")
    dialog.get_by_role("button", name="Upload").click()
    expect(datasets.get_by_text("both.jsonl: 20,000 rows.")).to_be_visible()
    assert stored(server)[1][0]["messages"][1]["content"] == "r"


def test_rows_are_shown_as_they_are(server: ServerThread, page: Page) -> None:
    plain = {
        "messages": [{"role": "user", "content": "q", "weight": 0}, {"role": "assistant", "content": "a"}]
    }
    dataset = add(server, jsonl([TOOL_ROW, *[plain] * 6]))
    page.goto(f"{server.url}/#/dataset/{dataset}")
    row = page.get_by_label("Row of line 1")
    expect(row.locator("summary").first).to_have_text("1 function: weather")
    row.locator("summary").first.click()
    expect(row.get_by_text("The weather of a place.")).to_be_visible()
    expect(row.get_by_role("listitem").filter(has_text="A town.").last).to_have_text("place string A town.")
    expect(row.get_by_text("I must look.")).to_be_hidden()
    thoughts = row.get_by_text("Thoughts", exact=True)
    expect(thoughts).to_have_count(2)
    thoughts.first.click()
    expect(row.get_by_text("I must look.")).to_be_visible()
    expect(row.locator(".call")).to_contain_text("Calls a function weather")
    expect(row.locator(".call pre")).to_have_text(json.dumps({"place": "Oslo"}, indent=2))
    expect(row.locator(".turn.tool")).to_have_text('Result of weather{"rain": true}')
    expect(row.locator(".turn").last).to_contain_text("It rains.")
    expect(row.get_by_text("So it is.")).to_be_hidden()
    expect(page.get_by_label("Row of line 2")).to_contain_text("User (not learned)")
    assert serious_faults(page) == []
    page.get_by_role("button", name="Next rows").click()
    expect(page.get_by_label("Row of line 7")).to_be_visible()
    page.get_by_role("button", name="Previous rows").click()
    expect(row).to_be_visible()
    assert page.locator("main img").count() == 0


def test_texts_and_completions_are_shown_as_they_are(server: ServerThread, page: Page) -> None:
    page.goto(f"{server.url}/#/dataset/{add(server, jsonl([{'prompt': 'p', 'completion': 'c'}]))}")
    expect(page.locator(".turn")).to_have_text(["Promptp", "Completionc"])
    page.goto(f"{server.url}/#/dataset/{add(server, jsonl([{'text': HTML}]))}")
    expect(page.locator(".turn")).to_have_text([f"Text{HTML}"])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_dialog_and_the_page_fit_a_phone(
    server: ServerThread, new_page: NewPage, console: Console, scheme: str
) -> None:
    console.allowed = [FAILED_REQUEST]
    page = new_page(color_scheme=scheme, viewport={"width": 390, "height": 844}, reduced_motion="reduce")
    page.goto(f"{server.url}/#/datasets")
    page.get_by_label("Choose the columns before the upload").check()
    choose(page, "pairs.jsonl", PREFERENCES)
    expect(page.get_by_role("dialog").get_by_label("The first row as it is read")).to_be_visible()
    assert serious_faults(page) == []
    assert page.evaluate("document.querySelector('dialog').scrollWidth <= innerWidth")
    page.goto(f"{server.url}/#/dataset/{add(server, jsonl([TOOL_ROW]))}")
    page.reload()
    expect(page.get_by_label("Row of line 1")).to_be_visible()
    assert serious_faults(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_dataset_is_deleted_from_its_page(server: ServerThread, page: Page) -> None:
    page.goto(f"{server.url}/#/dataset/{add(server, jsonl([TOOL_ROW]))}")
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete it for good").click()
    expect(page.locator("h1")).to_have_text("Datasets")
    expect(page.get_by_text("No dataset yet")).to_be_visible()
