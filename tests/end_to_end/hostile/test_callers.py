"""Hostile callers of a real API process: its other callers get their answers, and its memory stays."""

import contextlib
import functools
import gzip
import io
import json
import signal
import socket
import struct
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import duckdb
import httpx
import psutil
import pytest

from app.core.jobs import events
from app.core.jobs.events import Log
from app.core.storage.database import Database
from tests.adapter_archives import peft_files, zipped
from tests.end_to_end.box import Box, Process
from tests.end_to_end.hostile.bystanders import Bystanders
from tests.factories import make_job
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

MAX_GROWTH_BYTES = 100 << 20
FOLLOWERS = 200
EVENTS = 1500
HEAD = b"GET /jobs HTTP/1.1\r\nHost: localhost\r\n"


class Target(Box):
    """An API process."""

    def start(self) -> None:
        self.process: Process = self.start_api()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def memory(self) -> int:
        """The resident bytes of the process."""
        found: int = psutil.Process(self.process.pid).memory_info().rss
        return found

    def database(self) -> Database:
        return Database(f"sqlite:///{self.environment['TUNESMITH_DATA_DIR']}/tunesmith.db")


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    target = Target(tmp_path, tmp_path / "models")
    target.start()
    yield target
    target.close()


@pytest.fixture
def bystanders(target: Target) -> Iterator[Bystanders]:
    """Those of /health and of a route that reads the database; memory is compared with before."""
    target.client.get("/jobs")
    before = target.memory()
    with Bystanders(str(target.client.base_url), "/health", "/datasets") as bystanders:
        yield bystanders
    assert target.memory() < before + MAX_GROWTH_BYTES
    assert "Traceback" not in target.log()


def send_for_ever(target: Target, head: bytes, piece: bytes) -> None:
    """Send until the API closes the connection."""
    with target.connect() as client, contextlib.suppress(ConnectionResetError, BrokenPipeError):
        client.sendall(head)
        while True:
            client.sendall(piece)


def test_headers_without_end(target: Target, bystanders: Bystanders) -> None:
    heads = [(HEAD + b"X-Long: ", b"a" * 65536), (HEAD, b"X: y\r\n" * 10_000)] * 3
    threads = [threading.Thread(target=send_for_ever, args=(target, *head)) for head in heads]
    for thread in threads:
        thread.start()
    bystanders.wait_for_answers()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


def test_more_silent_connections_than_there_may_be(tmp_path: Path) -> None:
    target = Target(tmp_path, tmp_path / "models", max_connections="200")
    target.start()
    try:
        with (
            contextlib.ExitStack() as silent,
            Bystanders(str(target.client.base_url), "/health", "/datasets") as bystanders,
        ):
            for _ in range(1100):
                silent.enter_context(target.connect())
            bystanders.wait_for_answers()
        assert "Traceback" not in target.log()
    finally:
        target.close()


def test_many_followers_that_join_at_once(target: Target, bystanders: Bystanders) -> None:
    database = target.database()
    with database.transaction() as session:
        job_id = make_job(session).id
        events.append(session, job_id, [Log(message="x" * 100) for _ in range(EVENTS)])
    followers = [target.connect() for _ in range(FOLLOWERS)]
    for follower in followers:
        follower.sendall(
            f"GET /jobs/{job_id}/events HTTP/1.1\r\nHost: localhost\r\n"
            "Accept: text/event-stream\r\nConnection: close\r\n\r\n".encode()
        )
    bystanders.wait_for_answers()
    target.client.post(f"/jobs/{job_id}/cancel").raise_for_status()
    last_seq = EVENTS + 2
    for follower in followers:
        assert read_all(follower).count(b"\nid: ") == last_seq
    database.close()


def read_all(client: socket.socket) -> bytes:
    """Everything until the API closes the connection."""
    with client:
        return b"".join(iter(functools.partial(client.recv, 1 << 20), b""))


def zip_of_a_million_entries() -> bytes:
    """A million entries in the directory of a zip, all of which are one file."""
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("x", b"")
        content = file.getvalue()
    begin, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    directory = content[begin:end] * 1_000_000
    record = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(directory), begin, 0)
    return content[:begin] + directory + record


def long_numbers() -> bytes:
    header = b'{"x": [%s]}' % b",".join([b"9" * 4000] * 5000)
    weights = struct.pack("<Q", len(header)) + header
    return zipped(peft_files(**{"adapter_model.safetensors": weights}))


@pytest.mark.parametrize("make", [zip_of_a_million_entries, long_numbers])
def test_hostile_adapters(target: Target, bystanders: Bystanders, make: object) -> None:
    content = make()  # type: ignore[operator]
    for _ in range(3):
        answer = target.client.post("/adapters", files={"file": ("adapter.zip", content)})
        assert answer.status_code == 422, answer.text
    bystanders.wait_for_answers()


def test_datasets_that_unpack_to_far_more(target: Target, bystanders: Bystanders) -> None:

    folder = Path(target.environment["TUNESMITH_DATA_DIR"])
    path = folder / "cell.parquet"
    duckdb.sql(f"COPY (SELECT repeat('a', 300000000) AS text) TO '{path}' (FORMAT parquet, COMPRESSION zstd)")
    line = gzip.compress(b'{"text": "' + b"a" * (300 << 20) + b'"}')
    for name, content in (("cell.parquet", path.read_bytes()), ("line.jsonl.gz", line)):
        answer = target.client.post("/datasets", files={"file": (name, content)})
        assert answer.status_code == 422, answer.text
    bystanders.wait_for_answers()


def test_an_upload_of_a_killed_api_leaves_nothing(target: Target) -> None:
    scratch = Path(target.environment["TUNESMITH_DATA_DIR"]) / "scratch"
    rows = b"".join(json.dumps({"text": "x" * 1000}).encode() + b"\n" for _ in range(100_000))

    def upload() -> None:
        with contextlib.suppress(httpx.HTTPError):
            httpx.post(f"{target.client.base_url}/datasets", files={"file": ("rows.jsonl", rows)}, timeout=60)

    uploading = threading.Thread(target=upload)
    uploading.start()
    wait_for(lambda: list(scratch.glob("*/upload-*")), "the upload's copy")
    target.process.send_signal(signal.SIGKILL)
    target.process.wait()
    uploading.join()
    assert list(scratch.glob("*/upload-*"))
    target.start()
    assert list(scratch.glob("*/*")) == []
    assert target.upload([{"text": "hello"}])
