import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.api.deps import Services
from app.core.exports.queue import ExportResult, export_queue
from app.core.exports.results import ExportedFile
from tests.core.exports.test_queue import AGREEMENT
from tests.factories import make_adapter

CONTENT = {"model.gguf": bytes(range(256)) * 5000, "README.md": b"# helper\n"}


@pytest.fixture
def adapter(services: Services) -> str:
    with services.database.transaction() as session:
        return make_adapter(session).id


def submit(client: TestClient, adapter: str, **spec: Any) -> dict[str, Any]:
    answer = client.post(f"/adapters/{adapter}/exports", json={"format": "gguf", **spec})
    assert answer.status_code == 202, answer.text
    made: dict[str, Any] = answer.json()
    return made


@pytest.fixture
def finished(client: TestClient, services: Services, adapter: str, tmp_path: Path) -> str:
    """An export with two files."""
    submit(client, adapter)
    with services.database.transaction() as session:
        lease = export_queue.claim(session, lease_seconds=30, max_attempts=3)
        assert lease is not None
        files = []
        for name, content in CONTENT.items():
            (tmp_path / name).write_bytes(content)
            services.store.put_file(f"{lease.artifact}/{name}", tmp_path / name)
            digest = hashlib.sha256(content).hexdigest()
            files.append(ExportedFile(name=name, size_bytes=len(content), sha256=digest))
        export_queue.finish(session, lease, ExportResult(files=files, agreement=AGREEMENT, notes=["so"]))
    return f"/exports/{lease.export_id}"


def test_an_export_is_queued_listed_and_shown(client: TestClient, adapter: str) -> None:
    made = submit(client, adapter, type="f16")

    assert (made["state"], made["spec"]["type"]) == ("queued", "f16")
    assert client.get(f"/exports/{made['id']}").json() == made
    assert client.get("/adapters/helper/exports").json()["data"] == [made]
    assert client.get("/exports").json()["data"] == [made]


def test_the_same_key_makes_one_export(client: TestClient, adapter: str) -> None:
    request = {"url": f"/adapters/{adapter}/exports", "json": {"format": "merged"}}
    first, second = (client.post(**request, headers={"Idempotency-Key": "once"}) for _ in range(2))

    assert first.json()["id"] == second.json()["id"]


@pytest.mark.parametrize(
    ("spec", "param"),
    [
        ({"format": "onnx"}, "format"),
        ({"format": "gguf", "type": "q2_k"}, "type"),
        ({"format": "gguf", "type": ["q8_0", "q8_0"]}, "once"),
        ({"format": "hub", "repository": "no-owner"}, "repository"),
        ({"format": "merged", "private": True}, "private"),
    ],
)
def test_a_wrong_option_is_named(client: TestClient, adapter: str, spec: dict[str, Any], param: str) -> None:
    answer = client.post(f"/adapters/{adapter}/exports", json=spec)

    assert answer.status_code == 422
    assert param in (answer.json()["error"]["param"] or answer.json()["error"]["message"])


def test_an_unknown_adapter_or_export_is_not_found(client: TestClient) -> None:
    assert client.post("/adapters/nobody/exports", json={"format": "merged"}).status_code == 404
    assert client.get("/exports/exp_0000000000000000").json()["error"]["code"] == "export_not_found"


def test_a_file_comes_with_its_checksum(client: TestClient, finished: str) -> None:
    answer = client.get(f"{finished}/download", params={"file": "model.gguf"})

    assert answer.content == CONTENT["model.gguf"]
    assert answer.headers["x-checksum-sha256"] == hashlib.sha256(answer.content).hexdigest()
    assert answer.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [("bytes=0-99", 0, 100), ("bytes=1000000-", 1_000_000, None), ("bytes=-7", -7, None)],
)
@pytest.mark.parametrize("params", [{"file": "model.gguf"}, {}], ids=["file", "tar"])
def test_a_range_is_a_part_of_the_whole(
    client: TestClient, finished: str, params: dict[str, str], wanted: str, first: int, last: int | None
) -> None:
    whole = client.get(f"{finished}/download", params=params).content

    part = client.get(f"{finished}/download", params=params, headers={"Range": wanted})

    assert part.status_code == 206
    assert part.content == whole[first:last]
    assert part.headers["content-range"].endswith(f"/{len(whole)}")


@pytest.mark.parametrize(
    ("wanted", "status", "size"),
    [("0-%s", 206, 9), ("-%s", 206, 9), ("%s-", 416, None), ("%s-0", 200, 9), ("000%.0s2-4", 206, 3)],
)
def test_a_range_of_thousands_of_digits_is_a_number_like_others(
    client: TestClient, finished: str, wanted: str, status: int, size: int | None
) -> None:
    answer = client.get(
        f"{finished}/download?file=README.md", headers={"range": f"bytes={wanted % ('9' * 5000)}"}
    )
    assert answer.status_code == status
    assert size is None or len(answer.content) == size


def test_a_range_behind_the_end_is_refused(client: TestClient, finished: str) -> None:
    answer = client.get(f"{finished}/download?file=README.md", headers={"Range": "bytes=100-"})

    assert answer.status_code == 416
    assert answer.headers["content-range"] == "bytes */9"


def test_a_range_of_another_version_is_sent_whole(client: TestClient, finished: str) -> None:
    headers = {"Range": "bytes=0-1", "If-Range": '"other"'}

    assert client.get(f"{finished}/download?file=README.md", headers=headers).status_code == 200


def test_several_files_come_as_a_tar(client: TestClient, finished: str) -> None:
    answer = client.get(f"{finished}/download")

    with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
        found = {name: tar.extractfile(name) for name in tar.getnames()}
        assert {name: file.read() for name, file in found.items() if file} == {
            f"helper-gguf/{name}": content for name, content in CONTENT.items()
        }


def test_a_file_that_is_not_there_is_named(client: TestClient, finished: str) -> None:
    error = client.get(f"{finished}/download?file=../x").json()["error"]

    assert error["param"] == "file"
    assert "model.gguf" in error["hint"]


def test_an_export_that_is_not_ready_has_no_files(client: TestClient, adapter: str) -> None:
    export = submit(client, adapter)

    answer = client.get(f"/exports/{export['id']}/download")

    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "export_not_ready")


def test_an_export_is_cancelled_retried_and_deleted(
    client: TestClient, adapter: str, services: Services
) -> None:
    path = f"/exports/{submit(client, adapter)['id']}"
    assert client.delete(path).status_code == 409
    assert client.post(f"{path}/cancel").json()["state"] == "cancelled"
    assert client.post(f"{path}/retry").json()["state"] == "queued"
    assert client.post(f"{path}/cancel").status_code == 202
    assert client.delete(path).status_code == 204
    assert client.get(path).status_code == 404


def test_deleting_an_export_removes_its_files(client: TestClient, services: Services, finished: str) -> None:
    assert client.delete(finished).status_code == 204

    assert services.store.list_files("exports") == []


def test_a_waiting_export_gets_another_priority(client: TestClient, adapter: str) -> None:
    first, second = submit(client, adapter), submit(client, adapter, priority=-1)
    assert (first["queue_position"], second["queue_position"]) == (1, 2)

    changed = client.patch(f"/exports/{second['id']}", json={"priority": 5})
    assert changed.status_code == 200
    assert (changed.json()["queue_position"], changed.json()["spec"]["priority"]) == (1, 5)
    assert client.get(f"/exports/{first['id']}").json()["queue_position"] == 2


def test_the_priority_of_an_export_that_has_ended_can_t_be_changed(client: TestClient, finished: str) -> None:
    refused = client.patch(finished, json={"priority": 1})
    assert refused.status_code == 409
    error = refused.json()["error"]
    assert (error["code"], "succeeded" in error["message"]) == ("not_waiting", True)
    assert client.patch(finished, json={"priority": 11}).status_code == 422
