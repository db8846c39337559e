"""POST /datasets/inspect, the sample in the errors of uploads, and GET /datasets/{id}/rows."""

import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.core.settings import Settings
from tests.api.datasets.test_routes import stored, upload
from tests.core.datasets.uploads import parquet
from tests.factories import CHAT_ROW, jsonl

CSV = b"question,answer\nq1,a1\n"


def test_a_file_with_unknown_columns_is_refused_with_its_first_records(client: TestClient) -> None:
    content = parquet("SELECT 'q' AS question, 'a' AS answer, 1 AS id")
    error = upload(client, content, file="rows.parquet").json()["error"]
    sample = error["sample"]
    assert sample["records"] == [{"line": 1, "values": {"question": "q", "answer": "a", "id": 1}}]
    assert sample["column_map"] == {"instruction": "question", "output": "answer"}
    assert [message["content"] for message in sample["rows"][0]["row"]["messages"]] == ["q", "a"]
    assert sample["error"] is None
    fields = {"column_map": json.dumps(sample["column_map"])}
    answer = client.post("/datasets", files={"file": ("rows.parquet", content)}, data=fields)
    assert (answer.status_code, answer.json()["format"]) == (201, "instruction")


@pytest.mark.parametrize(
    "content",
    [
        jsonl([{"text": "t", "prompt": "p", "completion": "c"}]),
        jsonl([{**CHAT_ROW, "images": ["x"]}]),
        jsonl([{"prompt": "p", "completion": "c", "rejected": "r"}]),
    ],
)
def test_columns_that_fit_several_formats_and_unused_fields_have_a_sample_too(
    client: TestClient, content: bytes
) -> None:
    sample = upload(client, content).json()["error"]["sample"]
    assert sample["records"][0]["values"] == json.loads(content)
    assert len(sample["rows"]) == 1


def test_other_refusals_have_no_sample(client: TestClient) -> None:
    assert "sample" not in upload(client, b'{"text": 3}').json()["error"]
    assert "sample" not in upload(client, b"\x00\x01").json()["error"]


def test_a_file_is_inspected_and_not_stored(client: TestClient, settings: Settings) -> None:
    answer = client.post("/datasets/inspect", files={"file": ("rows.csv", CSV)})
    assert answer.status_code == 200
    assert (answer.json()["container"], answer.json()["format"]) == ("csv", "instruction")
    assert answer.json()["guesses"][1] == {
        "format": "prompt_completion",
        "column_map": {"prompt": "question", "completion": "answer"},
    }
    assert stored(settings) == []
    assert list(Path(settings.data_dir).glob("**/upload-*")) == []


def test_a_map_is_tried(client: TestClient) -> None:
    def inspect(column_map: str) -> dict[str, object]:
        files, fields = {"file": ("rows.csv", CSV)}, {"column_map": column_map}
        found: dict[str, object] = client.post("/datasets/inspect", files=files, data=fields).json()
        return found

    assert inspect('{"prompt": "answer", "completion": "question"}')["rows"] == [
        {"line": 2, "row": {"prompt": "a1", "completion": "q1"}}
    ]
    unknown = inspect('{"prompt": "nowhere"}')
    assert unknown["rows"] == []
    assert "names 'nowhere'" in unknown["error"]["message"]  # type: ignore[index]
    assert inspect("no json")["error"]["param"] == "column_map"  # type: ignore[index]


def test_rows_are_shown_as_they_were_read_page_by_page(client: TestClient) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    tools = {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": "thought"},
            {"role": "tool", "content": "1"},
            {"role": "assistant", "content": "a"},
        ]
    }
    dataset = upload(client, jsonl([CHAT_ROW, tools]) + b"\n" + jsonl([CHAT_ROW])).json()["id"]
    page = client.get(f"/datasets/{dataset}/rows", params={"limit": 2}).json()
    assert [row["line"] for row in page["data"]] == [1, 2]
    assert page["data"][0]["row"] == CHAT_ROW
    turn = page["data"][1]["row"]["messages"][1]
    assert (turn["reasoning_content"], turn["tool_calls"]) == ("thought", [call])
    last = client.get(f"/datasets/{dataset}/rows", params={"limit": 2, "after": page["next"]}).json()
    assert ([row["line"] for row in last["data"]], last["next"]) == ([4], None)
    assert client.get("/datasets/ds_aaaaaaaaaaaaaaaa/rows").status_code == 404
