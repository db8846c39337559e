"""Files as the official client uploads, lists, reads and deletes them; each is a dataset."""

import io
import tarfile
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import openai
import pytest
from fastapi.testclient import TestClient

from app.core.datasets import openai_files
from app.core.jobs import queue, records as job_records
from app.core.jobs.events import Metrics
from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.backups.backup import write_backup
from app.core.storage.database import Database
from tests.factories import CHAT_ROW, jsonl, make_dataset, make_job

ROWS = jsonl([CHAT_ROW] * 12)


def upload(client: openai.OpenAI, content: bytes = ROWS, name: str = "rows.jsonl", **options: Any) -> Any:
    return client.files.create(file=(name, content), purpose="fine-tune", **options)


def succeed_job(database: Database) -> str:
    with database.transaction() as session:
        make_job(session)
        lease = queue.claim(session, "worker", lease_seconds=30)
        assert lease is not None
        queue.record(session, lease, [Metrics(step=1, total_steps=1, epoch=1, loss=0.5, tokens=9)])
        queue.succeed(session, lease, adapter_name="helper")
    return lease.job_id


def test_an_upload_is_a_dataset_and_its_own_bytes_come_back(
    openai_client: openai.OpenAI, live: httpx.Client
) -> None:
    content = b"\n" + ROWS.replace(b": ", b":  ")
    file = upload(openai_client, content)
    assert (file.object, file.bytes, file.filename, file.purpose, file.status) == (
        ("file", len(content), "rows.jsonl", "fine-tune", "processed")
    )
    assert openai_client.files.content(file.id).read() == content
    assert openai_client.files.retrieve(file.id) == file
    dataset = live.get(f"/datasets/{file.id}").json()
    assert (dataset["name"], dataset["rows"], dataset["state"]) == ("rows.jsonl", 12, "ready")


def test_a_native_dataset_is_a_file_that_can_be_uploaded_again(
    openai_client: openai.OpenAI, live: httpx.Client
) -> None:
    dataset_id = live.post("/datasets", files={"file": ("rows.jsonl", ROWS)}).json()["id"]
    assert openai_client.files.retrieve(dataset_id).filename == "rows.jsonl"
    content = openai_client.files.content(dataset_id).read()
    assert upload(openai_client, content).status == "processed"


def test_a_file_that_can_not_be_trained_on_is_taken_with_its_problem(
    openai_client: openai.OpenAI, live: httpx.Client
) -> None:
    content = ROWS + b'{"messages": "none"}\n'
    file = upload(openai_client, content)
    assert file.status == "processed"
    assert "Line 13" in file.status_details
    assert openai_client.files.content(file.id).read() == content
    assert live.get(f"/datasets/{file.id}").json()["state"] == "failed"
    refused = live.post("/jobs", json={"base_model": "owner/model", "dataset": file.id})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "dataset_not_ready")


def test_a_file_with_images_fails_its_job_unless_they_are_ignored(openai_client: openai.OpenAI) -> None:
    content = jsonl([{**CHAT_ROW, "images": ["cat.png"]}] * 12)
    file = upload(openai_client, content)
    assert "'images' (images, video or sound) in 12 of 12 rows" in file.status_details
    assert "on_unused=ignore" in file.status_details
    job = openai_client.fine_tuning.jobs.create(model="owner/model", training_file=file.id)
    assert (job.status, job.error.code, job.error.param) == ("failed", "invalid_file_format", "training_file")
    assert job.error.message.endswith(file.status_details)
    ignored = openai_client.files.create(
        file=("rows.jsonl", content), purpose="fine-tune", extra_body={"on_unused": "ignore"}
    )
    assert ignored.status_details is None
    job = openai_client.fine_tuning.jobs.create(model="owner/model", training_file=ignored.id)
    assert job.status == "queued"


def test_files_for_anything_else_are_refused(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="'assistants' is not supported") as caught:
        openai_client.files.create(file=("a.txt", b"text"), purpose="assistants")
    assert caught.value.param == "purpose"


def test_pages_are_stable_while_files_are_added(openai_client: openai.OpenAI, database: Database) -> None:
    ids = [upload(openai_client, name=f"{number}.jsonl").id for number in range(4)]
    ids.append(openai_files.result_of(tables_job(database, succeed_job(database))))
    seen = []
    for file in openai_client.files.list(limit=2):
        seen.append(file.id)
        upload(openai_client)
    assert seen == ids[::-1]
    oldest = openai_client.files.list(order="asc", limit=3)
    assert [file.id for file in oldest.data] == ids[:3]
    following = openai_client.files.list(order="asc", limit=1, after=ids[2])
    assert following.data[0].id == ids[3]


def tables_job(database: Database, job_id: str) -> Any:
    with database.snapshot() as session:
        return job_records.get(session, job_id)


def test_files_are_listed_by_purpose(openai_client: openai.OpenAI, database: Database) -> None:
    uploaded, job_id = upload(openai_client), succeed_job(database)
    results = list(openai_client.files.list(purpose="fine-tune-results"))
    assert [file.id for file in results] == [openai_files.result_of(tables_job(database, job_id))]
    assert [file.id for file in openai_client.files.list(purpose="fine-tune")] == [uploaded.id]
    assert list(openai_client.files.list(purpose="batch")) == []


def test_the_result_file_of_a_job_is_its_loss_curve(
    openai_client: openai.OpenAI, live: httpx.Client, database: Database
) -> None:
    job_id = succeed_job(database)
    [result] = openai_client.fine_tuning.jobs.retrieve(job_id).result_files
    file = openai_client.files.retrieve(result)
    content = openai_client.files.content(result).read()
    assert (file.filename, file.purpose, file.bytes) == (
        ("step_metrics.csv", "fine-tune-results", len(content))
    )
    assert content == live.get(f"/jobs/{job_id}/metrics", params={"format": "csv"}).content
    with pytest.raises(openai.BadRequestError, match="belongs to its job"):
        openai_client.files.delete(result)


def test_a_deleted_file_is_gone_with_its_bytes(openai_client: openai.OpenAI, settings: Settings) -> None:
    file = upload(openai_client)
    deleted = openai_client.files.delete(file.id)
    assert (deleted.id, deleted.deleted) == (file.id, True)
    assert ArtifactStore(settings.artifacts_url).list_files("datasets") == []
    for ask in (openai_client.files.retrieve, openai_client.files.content, openai_client.files.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            ask(file.id)
        assert caught.value.code == "file_not_found"


def test_a_file_that_a_job_needs_is_a_conflict_that_is_not_tried_again(
    openai_client: openai.OpenAI, database: Database
) -> None:
    file = upload(openai_client)
    with database.transaction() as session:
        make_job(session, dataset=file.id)
    with pytest.raises(openai.ConflictError) as caught:
        openai_client.files.delete(file.id)
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_a_file_expires_once_no_job_needs_it(openai_client: openai.OpenAI, database: Database) -> None:
    expiry: Any = {"anchor": "created_at", "seconds": 3600}
    file = upload(openai_client, expires_after=expiry)
    assert file.expires_at - file.created_at in (3599, 3600)
    later = datetime.now(UTC) + timedelta(hours=2)
    with database.transaction() as session:
        job_id = make_job(session, dataset=file.id).id
        assert openai_files.delete_expired(session) == []
        assert openai_files.delete_expired(session, now=later) == []
        job_records.request_cancel(session, job_id)
        assert openai_files.delete_expired(session, now=later) == [f"datasets/{file.id}"]
    with pytest.raises(openai.NotFoundError):
        openai_client.files.retrieve(file.id)


def test_an_expiry_out_of_bounds_is_named(openai_client: openai.OpenAI) -> None:
    expiry: Any = {"anchor": "created_at", "seconds": 60}
    with pytest.raises(openai.BadRequestError) as caught:
        upload(openai_client, expires_after=expiry)
    assert caught.value.param == "expires_after[seconds]"


def test_an_upload_that_is_sent_again_makes_one_file(openai_client: openai.OpenAI) -> None:
    headers = {"Idempotency-Key": "one"}
    first, again = (upload(openai_client, extra_headers=headers) for _ in range(2))
    assert first.id == again.id
    assert len(list(openai_client.files.list())) == 1


def test_a_hub_dataset_being_fetched_is_uploaded_and_has_no_content_yet(
    openai_client: openai.OpenAI, live: httpx.Client
) -> None:
    dataset_id = live.post("/datasets", json={"hub_dataset": "owner/rows"}).json()["id"]
    assert openai_client.files.retrieve(dataset_id).status == "uploaded"
    with pytest.raises(openai.ConflictError):
        openai_client.files.content(dataset_id)


def test_a_file_whose_bytes_are_lost_is_not_found(client: TestClient, settings: Settings) -> None:
    answer = client.post("/v1/files", files={"file": ("rows.jsonl", ROWS)}, data={"purpose": "fine-tune"})
    ArtifactStore(settings.artifacts_url).delete(f"datasets/{answer.json()['id']}/original")
    assert client.get(f"/v1/files/{answer.json()['id']}/content").status_code == 404


def test_a_backup_holds_the_uploads_own_bytes(client: TestClient, settings: Settings) -> None:
    client.post("/v1/files", files={"file": ("rows.jsonl", ROWS)}, data={"purpose": "fine-tune"})
    backup = io.BytesIO()
    write_backup(settings, backup)
    with tarfile.open(fileobj=io.BytesIO(backup.getvalue())) as tar:
        [original] = [name for name in tar.getnames() if name.endswith("/original")]
        assert tar.extractfile(original).read() == ROWS  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({"data": {"purpose": "fine-tune"}}, "file"),
        ({"files": {"file": ("rows.jsonl", ROWS)}}, "purpose"),
        ({"files": {"file": ("rows.jsonl", ROWS)}, "data": {"purpose": ""}}, "purpose"),
        ({"json": {"purpose": "fine-tune"}}, "file"),
    ],
)
def test_an_upload_with_a_part_missing_names_it(client: TestClient, request_: Any, param: str) -> None:
    answer = client.post("/v1/files", **request_)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("content", [b"", b"\x00\x01\x02", b"[1, 2", b"a,b\n1,2\n", b"\xff\xfe"])
def test_whatever_the_bytes_are_they_come_back(openai_client: openai.OpenAI, content: bytes) -> None:
    file = upload(openai_client, content)
    assert file.status_details
    assert openai_client.files.content(file.id).read() == content


@pytest.mark.parametrize(
    ("query", "param"),
    [("limit=0", "limit"), ("limit=10001", "limit"), ("order=up", "order"), ("after=none", "after")],
)
def test_a_bad_query_names_its_parameter(client: TestClient, query: str, param: str) -> None:
    answer = client.get(f"/v1/files?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_an_old_dataset_without_the_upload_lists_its_stored_size(
    openai_client: openai.OpenAI, database: Database, settings: Settings
) -> None:
    with database.transaction() as session:
        row = make_dataset(session, ArtifactStore(settings.artifacts_url), settings.data_dir)
        size = row.size_bytes
    assert [file.bytes for file in openai_client.files.list()] == [size]
