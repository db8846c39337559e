"""A real full disk: a request that stores something is 507 with what to do, and goes through afterwards."""

import errno
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError

from app.core.settings import Settings
from app.core.storage.disk import is_disk_full_error
from app.main import create_app
from tests.factories import jsonl
from tests.small_disk import fill, mounted, remove_filler

ROWS = {"file": ("rows.jsonl", jsonl({"text": f"row {number} " + "x" * 1000} for number in range(3000)))}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", megabytes=64) as is_mounted:
        if not is_mounted:
            pytest.skip("only root may mount a file system")
        yield tmp_path / "disk"


@pytest.fixture
def client(disk: Path, settings: Settings) -> Iterator[TestClient]:
    data_dir = disk / "data"
    data_dir.mkdir()
    (data_dir / "tunesmith.db").write_bytes((settings.data_dir / "tunesmith.db").read_bytes())
    with TestClient(create_app(Settings(data_dir=data_dir, allowed_hosts=["testserver"]))) as client:
        yield client


def stored_files(disk: Path) -> list[Path]:
    """All files but those of the database, which come and go with its connections, and the process's lock."""
    return sorted(
        path for path in disk.rglob("*") if path.is_file() and ".db" not in path.name and path.name != ".lock"
    )


def upload(client: TestClient) -> httpx.Response:
    return client.post("/datasets", files=ROWS)


def submit(client: TestClient) -> httpx.Response:
    dataset = client.get("/datasets").json()["data"][0]["id"]
    return client.post("/jobs", json={"base_model": "owner/model", "dataset": dataset, "name": "x" * 60})


def add_webhook(client: TestClient) -> httpx.Response:
    return client.post("/webhooks", json={"url": "https://8.8.8.8/" + "h" * 2000})


@pytest.mark.parametrize("path", ["/datasets", "/v1/files"])
def test_an_upload_is_507_and_leaves_nothing(client: TestClient, disk: Path, path: str) -> None:
    fill(disk, spare_bytes=1 << 20)
    before = stored_files(disk)
    answer = client.post(path, files=ROWS, data={"purpose": "fine-tune"})
    assert answer.status_code == 507
    assert answer.json()["error"]["code"] == "disk_full"
    assert stored_files(disk) == before
    remove_filler(disk)
    assert client.post(path, files=ROWS, data={"purpose": "fine-tune"}).is_success


@pytest.mark.parametrize("send", [submit, add_webhook])
def test_what_the_database_can_t_store_is_507(
    client: TestClient, disk: Path, send: Callable[[TestClient], httpx.Response]
) -> None:
    assert upload(client).is_success
    fill(disk)
    answers = [send(client) for _ in range(3)]  # a page that is free in the file takes the first ones
    assert answers[-1].status_code == 507, answers[-1].text
    assert "Free space" in answers[-1].json()["error"]["hint"]
    assert client.get("/datasets").is_success
    remove_filler(disk)
    assert send(client).is_success


def test_readiness_names_the_full_disk(client: TestClient, disk: Path) -> None:
    fill(disk)
    answer = client.get("/ready")
    assert answer.status_code == 503
    assert answer.json()["reasons"][0] == f"The disk of {disk / 'data'} is full: free some space."
    remove_filler(disk)
    assert not any("disk" in reason for reason in client.get("/ready").json()["reasons"])


def test_a_form_that_can_t_be_spooled_is_507(
    client: TestClient, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(disk))
    fill(disk)
    assert upload(client).status_code == 507


def caused(error: Exception) -> Exception:
    try:
        raise ValueError("writing failed") from error
    except ValueError as outer:
        return outer


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (OSError(errno.ENOSPC, "x"), True),
        (OSError(errno.EDQUOT, "x"), True),
        (caused(OSError(errno.ENOSPC, "x")), True),
        (OperationalError("insert", {}, sqlite3.OperationalError("database or disk is full")), True),
        (RuntimeError("IO Error: could not write: No space left on device"), True),
        (OSError(errno.EACCES, "x"), False),
        (OperationalError("insert", {}, sqlite3.OperationalError("database is locked")), False),
    ],
)
def test_a_full_disk_is_recognized_in_errors_of_any_origin(error: Exception, is_full: bool) -> None:
    assert is_disk_full_error(error) is is_full
