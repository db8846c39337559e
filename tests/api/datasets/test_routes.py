from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response

from app.core.settings import Settings
from app.core.storage.database import Database
from tests.factories import CHAT_ROW, jsonl, make_job


def upload(
    client: TestClient, content: bytes, *, name: str | None = None, file: str = "rows.jsonl"
) -> Response:
    fields = {"name": name} if name is not None else {}
    return client.post("/datasets", files={"file": (file, content)}, data=fields)


def stored(settings: Settings) -> list[Path]:
    return list(Path(settings.artifacts_url).rglob("*.jsonl"))


def test_an_upload_is_stored_and_described(client: TestClient, settings: Settings) -> None:
    content = jsonl([CHAT_ROW] * 3)
    answer = upload(client, content)
    assert answer.status_code == 201
    dataset = answer.json()
    assert dataset["format"] == "messages"
    assert dataset["rows"] == 3
    assert dataset["columns"] == ["messages"]
    assert dataset["problems"] == []
    assert dataset["name"] == "rows.jsonl"
    assert [path.read_bytes().count(b"\n") for path in stored(settings)] == [3]
    assert client.get(f"/datasets/{dataset['id']}").json() == dataset


def test_an_upload_can_be_named(client: TestClient) -> None:
    assert upload(client, jsonl([CHAT_ROW]), name="help").json()["name"] == "help"


def test_a_file_name_with_folders_loses_them(client: TestClient) -> None:
    assert upload(client, jsonl([CHAT_ROW]), file="../../etc/rows").json()["name"] == "rows"


def test_bad_lines_are_named_and_nothing_is_stored(client: TestClient, settings: Settings) -> None:
    lines = [b'{"text": "fine"}', b'{"text": ', b"", b'{"text": 3}']
    answer = upload(client, b"\n".join(lines))
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["code"] == "dataset_invalid"
    assert error["param"] == "file"
    assert [problem["line"] for problem in error["problems"]] == [2, 4]
    assert "must be text, found a number" in error["problems"][1]["message"]
    assert "on_problem=skip" in error["hint"]
    assert stored(settings) == []
    assert client.get("/datasets").json()["data"] == []


def test_no_copy_of_an_upload_stays_behind(client: TestClient, settings: Settings) -> None:
    upload(client, jsonl([CHAT_ROW]))
    upload(client, b"nonsense")
    assert list(settings.data_dir.glob("upload-*")) == []


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_an_empty_file_is_refused(client: TestClient, content: bytes) -> None:
    assert upload(client, content).json()["error"]["message"] == "The file is empty."


def test_a_form_without_a_file_names_the_field(client: TestClient) -> None:
    answer = client.post("/datasets", data={"name": "x"}, files={"other": b"x"})
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "file"


def test_a_column_that_utf8_can_not_hold_is_shown_escaped(client: TestClient) -> None:
    answer = upload(client, rb'{"text": "fine", "\ud800": 1}')
    assert answer.json()["columns"] == ["text", "\\ud800"]


def test_columns_are_mapped_and_bad_rows_skipped(client: TestClient) -> None:
    fields = {"column_map": '{"prompt": "question", "completion": "answer"}', "on_problem": "skip"}
    files = {"file": ("rows.csv", b"question,answer\nq,a\nq,\n")}
    dataset = client.post("/datasets", files=files, data=fields).json()
    assert (dataset["format"], dataset["rows"], dataset["problem_count"]) == ("prompt_completion", 1, 1)
    assert dataset["problems"][0]["line"] == 3


def test_fields_that_change_learning_are_refused_until_they_are_ignored(
    client: TestClient, settings: Settings
) -> None:
    content = jsonl([{**CHAT_ROW, "id": 1, "rejected": "Not this."}] * 2)
    answer = upload(client, content)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert (error["code"], error["param"], error["problems"]) == ("fields_unused", "file", [])
    rejected = {"field": "rejected", "rows": 2, "changes_learning": True, "lines": [1, 2]}
    assert error["unused_fields"] == [rejected]
    assert "on_unused=ignore" in error["hint"]
    assert stored(settings) == []
    files = {"file": ("rows.jsonl", content)}
    answer = client.post("/datasets", files=files, data={"on_unused": "ignore"})
    assert answer.status_code == 201
    plain = {"field": "id", "rows": 2, "changes_learning": False, "lines": [1, 2]}
    assert answer.json()["unused_fields"] == [rejected, plain]
    assert client.get(f"/datasets/{answer.json()['id']}").json() == answer.json()


@pytest.mark.parametrize("column_map", ["[1]", "{", '{"prompt": 1}', '{"prompt": "nowhere"}'])
def test_a_wrong_column_map_names_the_field(client: TestClient, column_map: str) -> None:
    files = {"file": ("rows.csv", b"question,answer\nq,a\n")}
    answer = client.post("/datasets", files=files, data={"column_map": column_map})
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "column_map"


def test_a_download_can_be_uploaded_again(client: TestClient) -> None:
    rows = b'prompt,completion\n"A ""quoted"" question",An answer\n'
    first = client.post("/datasets", files={"file": ("rows.csv", rows)}).json()
    answer = client.get(f"/datasets/{first['id']}/download")
    assert answer.headers["content-disposition"] == f'attachment; filename="{first["id"]}.jsonl"'
    assert answer.json() == {"prompt": 'A "quoted" question', "completion": "An answer"}
    again = client.post("/datasets", files={"file": ("rows.jsonl", answer.content)}).json()
    assert (again["format"], again["rows"]) == (first["format"], 1)


def test_the_list_has_pages_with_the_newest_first(client: TestClient) -> None:
    ids = [upload(client, jsonl([CHAT_ROW])).json()["id"] for _ in range(3)]
    first = client.get("/datasets", params={"limit": 2}).json()
    assert [dataset["id"] for dataset in first["data"]] == [ids[2], ids[1]]
    second = client.get("/datasets", params={"limit": 2, "after": first["next"]}).json()
    assert [dataset["id"] for dataset in second["data"]] == [ids[0]]
    assert second["next"] is None


def test_a_deleted_dataset_is_gone_with_its_file(client: TestClient, settings: Settings) -> None:
    dataset_id = upload(client, jsonl([CHAT_ROW])).json()["id"]
    assert client.delete(f"/datasets/{dataset_id}").status_code == 204
    assert client.get(f"/datasets/{dataset_id}").status_code == 404
    assert stored(settings) == []


def test_a_dataset_that_a_waiting_job_needs_stays(client: TestClient, database: Database) -> None:
    dataset_id = upload(client, jsonl([CHAT_ROW])).json()["id"]
    with database.transaction() as session:
        job = make_job(session, dataset=dataset_id)
    answer = client.delete(f"/datasets/{dataset_id}")
    assert answer.status_code == 409
    assert f"POST /jobs/{job.id}/cancel" in answer.json()["error"]["hint"]


def test_an_unknown_dataset_is_not_found(client: TestClient) -> None:
    assert client.get("/datasets/ds_x").json()["error"]["code"] == "dataset_not_found"


def test_a_dataset_looked_for_by_its_name_is_named_by_its_id(client: TestClient) -> None:
    _older, newest = (upload(client, jsonl([CHAT_ROW]), name="rows.jsonl").json() for _ in range(2))

    error = client.get(f"/datasets/{newest['name']}").json()["error"]

    assert error["code"] == "dataset_not_found"
    assert newest["id"] in error["hint"]
